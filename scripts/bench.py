"""What `make bench` measures: a slice job beside `cp` of as many bytes.

Starts `inheritune-standalone` on a temporary folder, lets it make a random Llama checkpoint, and then slices its first
half and copies a file of the output's size with coreutils' cp, in turns. A slice job plans, copies, hashes every file,
fsyncs and publishes; cp copies. Figures: wall seconds, medians over the rounds, and their ratio.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "target" / "release"
LAYERS = 16


def inheritune(server, *arguments):
    command = [BIN / "inheritune", "--server", server, "--output", "json", "--no-progress", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(map(str, arguments))} ended with {done.returncode}")
    return json.loads(done.stdout)


def job(server, directory, spec):
    """Works one job to its end: its reply and its seconds from claim to end, by the database's clock."""
    path = directory / "job.json"
    path.write_text(json.dumps(spec))
    done = inheritune(server, "job", "submit", path, "--watch")
    started, finished = (datetime.fromisoformat(done[key].replace("Z", "+00:00")) for key in ("started_at", "finished_at"))
    return done, (finished - started).total_seconds()


def copied(source, target):
    started = time.monotonic()
    subprocess.run(["cp", source, target], check=True)
    seconds = time.monotonic() - started
    target.unlink()
    return seconds


def bench(server, directory, rounds):
    shape = {"family": "llama", "n_layers": LAYERS, "d_model": 1024, "n_heads": 16, "n_kv_heads": 4, "max_positions": 2048}
    fresh = {"kind": "slice", "seed": 1, "source": {"architecture": {"architecture": shape, "vocab_size": 32000}}}
    made, seconds = job(server, directory, fresh)
    reference = made["outcome"]["sliced"]["checkpoint_artifact_id"]
    print(f"reference: {LAYERS} layers, {made['outcome']['sliced']['parameters'] / 1e6:.0f} M parameters, made in {seconds:.1f} s")
    half = {"checkpoint": f"artifact://{reference}", "layers": LAYERS // 2, "layer_map": "first", "inherit": "all"}
    slices, copies, size = [], [], 0
    for _ in range(rounds):
        made, seconds = job(server, directory, {"kind": "slice", "seed": 1, "source": {"checkpoint": half}})
        slices.append(seconds)
        artifact = made["outcome"]["sliced"]["checkpoint_artifact_id"]
        folder = directory / "data" / "objects" / inheritune(server, "artifact", "get", artifact)["artifact"]["location"]
        weights = folder / "model.safetensors"
        size = weights.stat().st_size
        copies.append(copied(weights, directory / "copy"))
    ours, theirs = statistics.median(slices), statistics.median(copies)
    print(f"slice {LAYERS // 2} of {LAYERS} layers, {size / 1e9:.2f} GB, {rounds} rounds in turns:")
    print(f"  slice job {ours:.2f} s    cp (coreutils) {theirs:.2f} s    ratio {ours / theirs:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="inheritune-bench-", dir=ROOT / "target") as name:
        directory = Path(name)
        os.chmod(directory, 0o755)
        address = directory / "address"
        command = [BIN / "inheritune-standalone", "--data-dir", directory / "data", "--listen", "127.0.0.1:0", "--address-file", address]
        with open(directory / "log", "w") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not address.exists():
                if server.poll() is not None:
                    sys.exit("bench: the server did not start:\n" + (directory / "log").read_text()[-2000:])
                time.sleep(0.1)
            bench(address.read_text(), directory, rounds)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
