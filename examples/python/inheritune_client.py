#!/usr/bin/env python3
"""Submits a recipe to Inheritune and watches the run to its end, over gRPC alone.

    pip install -r requirements.txt
    python3 inheritune_client.py --address 127.0.0.1:7600 submit ../../deploy/recipes/demo-full-data.toml --watch

Stubs are generated from ../../proto into a temporary folder at start; nothing generated is kept.
Exit codes: 0 the run succeeded (or the command did), 1 it failed or was cancelled, 2 bad input, 3
the service cannot be reached.
"""

import argparse
import pathlib
import sys
import tempfile
import time
import tomllib
import uuid

import grpc
from google.protobuf import json_format

try:
    from google.rpc import error_details_pb2, status_pb2
except ImportError:  # Without googleapis-common-protos, errors are shown without their details.
    error_details_pb2 = status_pb2 = None

PROTO_DIR = pathlib.Path(__file__).resolve().parents[2] / "proto"
FINAL = {"JOB_STATUS_SUCCEEDED", "JOB_STATUS_FAILED", "JOB_STATUS_CANCELLED"}
MAX_RECONNECTS = 30
RECONNECT_WAIT_S = 1.0


def load_stubs(proto_dir):
    """Generates and imports the modules of package inheritune.v1; returns those that this client
    uses."""
    import grpc_tools
    from grpc_tools import protoc

    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    files = sorted(str(path.relative_to(proto_dir)) for path in proto_dir.glob("inheritune/v1/*.proto"))
    if not files:
        raise SystemExit(f"{proto_dir}: contains no inheritune/v1/*.proto; use --proto")
    with tempfile.TemporaryDirectory(prefix="inheritune-stubs-") as out:
        arguments = ["protoc", f"-I{proto_dir}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main(arguments + files) != 0:
            raise SystemExit("could not generate the stubs")
        sys.path.insert(0, out)
        try:
            from inheritune.v1 import run_pb2, run_pb2_grpc, job_pb2
        finally:
            sys.path.remove(out)
    return run_pb2, run_pb2_grpc, job_pb2


# A recipe file (TOML) has the fields of RunSpec, except that paths, enum values and choices are
# written differently.
def run_spec(recipe, run_pb2):
    """Converts a recipe to a RunSpec message; rejects unknown fields."""
    spec = dict(recipe)
    rename_enum(spec, "recipe", "RECIPE")
    corpus = spec["corpus"] = dict(spec.get("corpus", {}))
    if corpus.get("tokenizer") == "reference":
        corpus["tokenizer"] = {"reference": {}}
    elif "uri" in corpus.get("tokenizer", {}):
        corpus["tokenizer"] = {"uri": absolute(corpus["tokenizer"]["uri"])}
    corpus["sources"] = [absolute(source) for source in corpus.get("sources", [])]
    reference = spec["reference"] = dict(spec.get("reference", {}))
    if "checkpoint" in reference:
        reference["checkpoint"] = absolute(reference["checkpoint"])
    if "architecture" in reference:
        reference["architecture"] = dict(reference["architecture"])
        rename_enum(reference["architecture"], "family", "FAMILY")
    if "training" in reference:
        reference["training"] = training_spec(reference["training"])
    target = spec["target"] = dict(spec.get("target", {}))
    rename_enum(target, "growth_source", "GROWTH_SOURCE")
    rename_enum(target, "inherit", "INHERIT_SET")
    if "layer_map" in target:
        target["layer_map"] = layer_map(target["layer_map"])
    spec["training"] = training_spec(spec.get("training", {}))
    return json_format.ParseDict(spec, run_pb2.RunSpec())


def absolute(location):
    """Makes a recipe's location absolute: `demo/corpus.txt` and `file:demo/corpus.txt` are relative
    to the current folder."""
    if "://" in location:
        return location
    return pathlib.Path(location.removeprefix("file:")).absolute().as_uri()


def training_spec(training):
    training = dict(training)
    rename_enum(training, "schedule", "SCHEDULE")
    rename_enum(training, "decay", "DECAY_ON")
    return training


def layer_map(rule):
    if isinstance(rule, dict):
        return {"rule": "LAYER_MAP_RULE_LIST", "list": rule["list"]}
    return {"rule": "LAYER_MAP_RULE_" + rule.replace("-", "_").upper()}


def rename_enum(fields, name, prefix):
    if name in fields:
        fields[name] = prefix + "_" + str(fields[name]).replace("-", "_").upper()


class Client:
    """RunService on one channel."""

    def __init__(self, address, proto_dir):
        self.run_pb2, run_pb2_grpc, self.job_pb2 = load_stubs(proto_dir)
        self.address = address
        options = [
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ]
        self.channel = grpc.insecure_channel(address.removeprefix("http://"), options=options)
        self.runs = run_pb2_grpc.RunServiceStub(self.channel)

    def submit(self, recipe, request_id):
        spec = run_spec(recipe, self.run_pb2)
        request = self.run_pb2.CreateRunRequest(spec=spec, request_id=request_id)
        return self.runs.CreateRun(request, timeout=30).run

    def get(self, run_id):
        return self.runs.GetRun(self.run_pb2.GetRunRequest(id=run_id), timeout=30).run

    def list(self):
        token = ""
        while True:
            page = self.runs.ListRuns(self.run_pb2.ListRunsRequest(page_token=token), timeout=30)
            yield from page.runs
            token = page.next_page_token
            if not token:
                return

    def cancel(self, run_id):
        return self.runs.CancelRun(self.run_pb2.CancelRunRequest(id=run_id), timeout=30).run

    def watch(self, run_id, show):
        """Calls `show(response)` for every change until the run ends; returns the run. Reconnects
        if the service restarts."""
        run, last_note, failures = None, 0, 0
        while True:
            request = self.run_pb2.WatchRunRequest(id=run_id, after_note_seq=last_note)
            try:
                for response in self.runs.WatchRun(request):
                    failures = 0
                    run = response.run
                    last_note = max([last_note] + [note.seq for note in response.notes])
                    show(response)
                if run is not None and self.status(run) in FINAL:
                    return run
            except grpc.RpcError as error:
                failures += 1
                if error.code() != grpc.StatusCode.UNAVAILABLE or failures > MAX_RECONNECTS:
                    raise
            time.sleep(RECONNECT_WAIT_S)

    def status(self, message):
        return self.job_pb2.JobStatus.Name(message.status)


class Printer:
    """Prints changes: notes as they arrive, and the progress of jobs at every whole percent or new
    state."""

    def __init__(self, client):
        self.client = client
        self.shown = {}
        self.state = None

    def __call__(self, response):
        for note in response.notes:
            print(f"{note.time.ToDatetime():%H:%M:%S}  {note.text}")
        if response.run.state != self.state:
            self.state = response.run.state
            print(f"          {self.state}")
        for job in response.jobs:
            line = self.line(job)
            if self.shown.get(job.id) != line[0]:
                self.shown[job.id] = line[0]
                print(f"          {line[1]}", flush=True)

    def line(self, job):
        status = self.client.status(job).removeprefix("JOB_STATUS_").lower()
        progress = job.progress
        parts = [job.label, status]
        percent = None
        if status == "running" and progress.HasField("progress_percentage"):
            percent = int(progress.progress_percentage)
            parts.append(f"{percent} %")
            if progress.per_second > 0:
                parts.append(f"{progress.per_second:,.0f} {progress.unit}/s")
            if progress.HasField("estimated_remaining_seconds"):
                parts.append(f"{progress.estimated_remaining_seconds:.0f} s left")
        if job.error:
            parts.append(job.error)
        return (status, percent), "  ".join(parts)


def print_run(client, run):
    print(f"run      {run.id}")
    print(f"name     {run.name}")
    print(f"status   {client.status(run).removeprefix('JOB_STATUS_')}")
    print(f"state    {run.state}")
    for model in run.models:
        loss = "-"
        if model.HasField("validation"):
            loss = f"{model.validation.value:.4f}"
            if model.validation.HasField("stderr"):
                loss += f" ± {model.validation.stderr:.4f}"
        layers = model.layers if model.HasField("layers") else "-"
        print(f"  {model.name}: layers {layers}, steps {model.steps}, validation loss {loss} nats")
    if run.HasField("winner"):
        print(f"winner   {run.winner.name}: {run.winner.checkpoint}")


def explain(error):
    """Prints a failed call with every rejected field."""
    print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin" or status_pb2 is None:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            bad_request = error_details_pb2.BadRequest()
            if detail.Unpack(bad_request):
                for violation in bad_request.field_violations:
                    print(f"  {violation.field}: {violation.description}", file=sys.stderr)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default="127.0.0.1:7600", help="host:port of the service (%(default)s)")
    parser.add_argument("--proto", type=pathlib.Path, default=PROTO_DIR, help="folder that contains inheritune/v1")
    commands = parser.add_subparsers(dest="command", required=True)
    submit = commands.add_parser("submit", help="start a run from a recipe file")
    submit.add_argument("recipe", type=pathlib.Path)
    submit.add_argument("--watch", action="store_true", help="watch it to the end")
    submit.add_argument("--request-id", default=None, help="a UUID; repeating the request returns the same run")
    for name, text in [("watch", "watch a run to its end"), ("get", "show a run"), ("cancel", "stop a run for good")]:
        commands.add_parser(name, help=text).add_argument("run_id")
    commands.add_parser("list", help="list runs, newest first")
    return parser.parse_args()


def run_command(options):
    client = Client(options.address, options.proto)
    if options.command == "list":
        for run in client.list():
            print(f"{run.id}  {client.status(run).removeprefix('JOB_STATUS_'):10}  {run.name}")
        return 0
    if options.command == "get":
        print_run(client, client.get(options.run_id))
        return 0
    if options.command == "cancel":
        print_run(client, client.cancel(options.run_id))
        return 0
    if options.command == "submit":
        recipe = tomllib.loads(options.recipe.read_text(encoding="utf-8"))
        run_id = client.submit(recipe, options.request_id or str(uuid.uuid4())).id
        print(f"run {run_id}", flush=True)
        if not options.watch:
            return 0
    else:
        run_id = options.run_id
    run = client.watch(run_id, Printer(client))
    print_run(client, run)
    return 0 if client.status(run) == "JOB_STATUS_SUCCEEDED" else 1


def main():
    options = arguments()
    try:
        return run_command(options)
    except grpc.RpcError as error:
        explain(error)
        return 3 if error.code() == grpc.StatusCode.UNAVAILABLE else 2
    except (OSError, tomllib.TOMLDecodeError, json_format.ParseError, KeyError, AttributeError) as error:
        print(f"bad input: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
