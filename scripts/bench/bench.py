"""What `make bench` measures: each figure a ratio against a named peer, run in turns with it on the same work.

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
    parser.add_argument("--mergekit-python", help="a Python that has mergekit; without it, mergekit is not measured")
    parser.add_argument("--garage", help="the program of a Garage server; without it, S3 is not measured")
    parser.add_argument("--rival-queue", help="the program of bench/rival-queue; without it, awa is not measured")
    parser.add_argument("--steps", help="the program of crates/lm/examples/steps.rs; without it, busy machines are not measured")
    parser.add_argument("--torch-compile", action="store_true", help="hold training against torch.compile as well")
    parser.add_argument("--only", choices=["slice", "train", "tokenize", "evaluate", "queue", "steps"], help="measure this alone")
    parser.add_argument("--lm-eval-python", help="a Python that has lm_eval; without it, evaluating is not measured")
    parser.add_argument(
        "--evaluation-data", type=Path, help="a folder of benchmarks' data sets; without it, evaluating is not measured"
    )
    parser.add_argument(
        "--directory", default=ROOT / "target",
        help="where the files are; a file system in memory, /dev/shm, takes the disk out of what is measured",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inheritune-bench-", dir=arguments.directory) as name:
        directory = Path(name)
        os.chmod(directory, 0o755)
        (directory / "models").mkdir(mode=0o755)
        if arguments.only in (None, "slice"):
            model = bench_slice.bench(directory, arguments.rounds, arguments.mergekit_python)
            if arguments.garage is None:
                print("  Garage is not there: give --garage to measure S3")
            else:
                bench_s3.bench(directory, model, arguments.rounds, arguments.garage)
        if arguments.only in (None, "evaluate"):
            if arguments.lm_eval_python is None or arguments.evaluation_data is None:
                print("  evaluating takes --lm-eval-python and --evaluation-data: the benchmarks' data sets are yours to bring")
            else:
                data = arguments.evaluation_data.resolve()
                bench_evaluate.bench(directory, arguments.rounds, arguments.lm_eval_python, data)
        if arguments.only in (None, "queue"):
            bench_queue.bench(directory, arguments.rounds, arguments.rival_queue)
        if arguments.only in (None, "steps") and arguments.steps is not None:
            bench_steps.bench(arguments.steps, arguments.rounds)
        if arguments.only not in ("slice", "evaluate", "queue", "steps"):
            if arguments.mergekit_python is None:
                print("  PyTorch and tokenizers are not there: give --mergekit-python, which has them")
                return
            if arguments.only != "train":
                bench_tokenize.bench(directory, arguments.rounds, arguments.mergekit_python)
            if arguments.only != "tokenize":
                bench_train.bench(directory, arguments.rounds, arguments.mergekit_python, arguments.torch_compile)


if __name__ == "__main__":
    main()
