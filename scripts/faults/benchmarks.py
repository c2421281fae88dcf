#!/usr/bin/env python3
"""Makes folders of benchmark data in the layouts and with the types of the Hugging Face hub.

    pip install pyarrow==26.0.1                              # for Parquet; without it, those are skipped
    python3 scripts/faults/benchmarks.py OUT                 # OUT/NAME
    python3 scripts/faults/benchmarks.py OUT --compare DIR   # also compares names and columns of OUT's files with DIR's
"""

import argparse
import json
import sys
from pathlib import Path

try:
    import pyarrow
    from pyarrow import parquet
except ImportError:
    pyarrow = None


def boolq(n):
    return [{"question": "is paper flat", "passage": "Paper is flat.", "answer": True} for _ in range(n)]


def mmlu(n):
    choices = lambda i: [str(i), str(i + 1), str(i + 2), "none"]
    return [{"question": f"Which number follows {i}?", "subject": "anatomy", "choices": choices(i), "answer": 1} for i in range(n)]


def piqa(n):
    solutions = {"sol1": "Fold it in the middle.", "sol2": "Burn it."}
    return [{"goal": f"How to fold sheet {i}?", **solutions, "label": i % 2} for i in range(n)]


def winogrande(n):
    sentence = "The lamp did not fit the box because the _ was small."
    return [{"sentence": sentence, "option1": "lamp", "option2": "box", "answer": 2} for _ in range(n)]


FILES = {
    "boolq_google/boolq/validation.parquet": boolq(8),
    "mmlu_cais_layout/mmlu/anatomy/dev-00000-of-00001.parquet": mmlu(5),
    "mmlu_cais_layout/mmlu/anatomy/test-00000-of-00001.parquet": mmlu(8),
    "piqa_bom/piqa/validation.jsonl": piqa(8),
    "winogrande_int/winogrande/validation.jsonl": winogrande(8),
    # Layouts similar to those that occurred.
    "piqa_revision/piqa/plain_text/validation/0000.parquet": piqa(8),
    "winogrande_configs/winogrande/winogrande_xl/validation-00000-of-00001.parquet": winogrande(8),
    "winogrande_configs/winogrande/winogrande_l/validation-00000-of-00001.parquet": winogrande(2),
    "cache/datasets--baber--piqa/snapshots/0123abc/plain_text/validation-00000-of-00001.parquet": piqa(8),
    "piqa_json/baber/piqa/data/validation.json": piqa(8),
    "ambiguous/piqa/plain_text/validation.jsonl": piqa(8),
    "ambiguous/piqa/data/validation.jsonl": piqa(4),
}


def write(out):
    for name, rows in FILES.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            if pyarrow:
                parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            mark = "\ufeff" if "_bom" in name else ""
            path.write_text(mark + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines()]


def compare(out, other):
    wrong = []
    for path in sorted(other.rglob("*.*")):
        name = path.relative_to(other)
        if not path.is_file():
            continue
        if not (out / name).is_file():
            wrong.append(f"{name}: is not made")
            continue
        types = [[{column: type(value) for column, value in row.items()} for row in read(file)] for file in (out / name, path)]
        if types[0][0] != types[1][0]:
            wrong.append(f"{name}: {types[0][0]} in place of {types[1][0]}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", type=Path)
    args = parser.parse_args()
    write(args.out)
    if args.compare:
        wrong = compare(args.out, args.compare)
        print("\n".join(wrong) or "the same")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
