"""What `make bench` measures: each figure a ratio against a named peer, run in turns with it on the same work.

Figures are medians of wall seconds over the rounds.
"""

import argparse
import os
import tempfile
from pathlib import Path

import bench_s3
import bench_slice

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit-python", help="a Python that has mergekit; without it, mergekit is not measured")
    parser.add_argument("--garage", help="the program of a Garage server; without it, S3 is not measured")
    arguments = parser.parse_args()
    # Beside the build, not in /tmp: that may be memory.
    with tempfile.TemporaryDirectory(prefix="inheritune-bench-", dir=ROOT / "target") as name:
        directory = Path(name)
        os.chmod(directory, 0o755)
        model = bench_slice.bench(directory, arguments.rounds, arguments.mergekit_python)
        if arguments.garage is None:
            print("  Garage is not there: give --garage to measure S3")
        else:
            bench_s3.bench(directory, model, arguments.rounds, arguments.garage)


if __name__ == "__main__":
    main()
