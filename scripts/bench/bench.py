"""The measurements of `make bench`. Each figure is a ratio against a named peer that runs
alternately with ours on the same work.

Figures are medians of wall seconds over the rounds.
"""

import argparse
import os
import tempfile
from pathlib import Path

import bench_evaluate
import bench_queue
import bench_s3
import bench_slice
import bench_steps
import bench_tokenize
import bench_train

ROOT = Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mergekit-python", help="a Python with mergekit; if absent, mergekit is not measured")
    parser.add_argument("--garage", help="the Garage server program; if absent, S3 is not measured")
    parser.add_argument("--rival-queue", help="the program of bench/rival-queue; if absent, awa is not measured")
    parser.add_argument("--steps", help="the program of crates/lm/examples/steps.rs; if absent, busy machines are not measured")
    parser.add_argument("--torch-compile", action="store_true", help="also compare training with torch.compile")
    parser.add_argument("--only", choices=["slice", "train", "tokenize", "evaluate", "queue", "steps"], help="measure only this")
    parser.add_argument("--lm-eval-python", help="a Python with lm_eval; if absent, evaluation is not measured")
    parser.add_argument(
        "--evaluation-data", type=Path, help="a folder of benchmark data sets; if absent, evaluation is not measured"
    )
    parser.add_argument(
        "--directory", default=ROOT / "target",
        help="folder for the files; use a memory file system (/dev/shm) to exclude the disk from the measurement",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inheritune-bench-", dir=arguments.directory) as name:
        directory = Path(name)
        os.chmod(directory, 0o755)
        (directory / "models").mkdir(mode=0o755)
        if arguments.only in (None, "slice"):
            model = bench_slice.bench(directory, arguments.rounds, arguments.mergekit_python)
            if arguments.garage is None:
                print("  S3 is not measured: give --garage")
            else:
                bench_s3.bench(directory, model, arguments.rounds, arguments.garage)
        if arguments.only in (None, "evaluate"):
            if arguments.lm_eval_python is None or arguments.evaluation_data is None:
                print("  evaluation is not measured: give --lm-eval-python and --evaluation-data (you bring the benchmarks' data sets)")
            else:
                data = arguments.evaluation_data.resolve()
                bench_evaluate.bench(directory, arguments.rounds, arguments.lm_eval_python, data)
        if arguments.only in (None, "queue"):
            bench_queue.bench(directory, arguments.rounds, arguments.rival_queue)
        if arguments.only in (None, "steps") and arguments.steps is not None:
            bench_steps.bench(arguments.steps, arguments.rounds)
        if arguments.only not in ("slice", "evaluate", "queue", "steps"):
            if arguments.mergekit_python is None:
                print("  training and tokenizing are not measured: give --mergekit-python, which has PyTorch and tokenizers")
                return
            if arguments.only != "train":
                bench_tokenize.bench(directory, arguments.rounds, arguments.mergekit_python)
            if arguments.only != "tokenize":
                bench_train.bench(directory, arguments.rounds, arguments.mergekit_python, arguments.torch_compile)


if __name__ == "__main__":
    main()
