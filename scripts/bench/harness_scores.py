"""Scores as a user of lm_eval would: the evaluator is compared with this.

    .deps/lm-eval/bin/python scripts/bench/harness_scores.py MODEL DATA OUT --tasks a=20,b,c [--threads T] [--batch-size B]

Runs lm_eval 0.4.13 on the CPU in float32 with the local data in DATA, on the first 20 documents of
task a. Keeps the report in OUT, and the converted data sets for a second run. Prints a line of
JSON:
    seconds              from the start of the process to the scores
    import_seconds       the imports' share of these
    results              {task: {metric: value}}
With --index the harness first indexes its own tasks, as its command line does: about ten seconds.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import harness


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tasks", required=True)
    for name, default in (("threads", 1), ("batch-size", 1), ("bootstrap-iters", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--index", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    harness.prepare(arguments.out / "cache", arguments.threads)
    before = harness.process_seconds()
    import torch
    from lm_eval.models.huggingface import HFLM

    imported = harness.process_seconds() - before
    torch.set_num_threads(arguments.threads)
    folder = arguments.out / "tasks"
    tasks = [task.partition("=") for task in arguments.tasks.split(",")]
    limits = {name: int(limit) for name, _, limit in tasks if limit}
    harness.write_tasks(arguments.data, folder)
    # The harness prints, but this script's output must be one line.
    with contextlib.redirect_stdout(sys.stderr):
        lm = HFLM(pretrained=str(arguments.model), device="cpu", dtype="float32", batch_size=arguments.batch_size)
        report = harness.evaluate(
            lm, [name for name, _, _ in tasks], folder, arguments.index, limits=limits,
            bootstrap_iters=arguments.bootstrap_iters, log_samples=False,
        )  # fmt: skip
    seconds = harness.process_seconds()
    (arguments.out / "results.json").write_text(json.dumps(report, indent=1, default=float) + "\n")
    results = {
        task: {key.removesuffix(",none"): value for key, value in found.items() if key.endswith(",none")}
        for task, found in report["results"].items()
    }
    print(json.dumps({"seconds": seconds, "import_seconds": imported, "results": results}, default=float))


if __name__ == "__main__":
    main()
