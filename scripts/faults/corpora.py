#!/usr/bin/env python3
"""Makes corpora and token files as they occur in practice: misnamed, compressed, with byte order
marks, damaged.

    python3 scripts/faults/corpora.py OUT                 # OUT/corpora/NAME, OUT/token-files/NAME
    python3 scripts/faults/corpora.py OUT --compare DIR   # also compares names and content of OUT's files with DIR's

Needs only Python's standard library, and `zstd` on the PATH for some files (skipped without it).
Parquet files are made by scripts/golden/make-parquet.py, with pyarrow.
"""

import argparse
import gzip
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

WORDS = ("copper garden morning stone lamp harbour paper evening candle cloud letter market bread window forest river bridge "
         "silver").split()
BOM = b"\xef\xbb\xbf"


def texts(n=60):
    pick = random.Random(1)
    return [f"Note {i}: {' '.join(pick.choice(WORDS) for _ in range(30))}." for i in range(n)]


def rows(extra=None):
    lines = [json.dumps({"text": text}) for text in texts()]
    if extra:
        lines.insert(30, extra)
    return "".join(line + "\n" for line in lines).encode()


def table():
    return ("text\n" + "".join(f'"{text}"\n' for text in texts())).encode()


def token_ids():
    pick = random.Random(2)
    return [pick.randrange(900) for _ in range(1610)]


def corpora():
    plain = rows()
    return {
        "plain_jsonl/a.jsonl": plain,
        "json_lines_json/a.json": plain,
        "json_gz_c4/c4-train.00000-of-01024.json.gz": gzip.compress(plain, mtime=0),
        "gz_not_gz/a.jsonl.gz": plain,
        "csv_alone/a.csv": table(),
        "jsonl_bom/a.jsonl": BOM + plain,
        "jsonl_null_text/a.jsonl": rows('{"text": null, "id": 5}'),
        "jsonl_lone_surrogate/a.jsonl": rows('{"text": "half an emoji \\ud83d here"}'),
        "txt_bom/a.txt": BOM + "".join(text + "\n" for text in texts()).encode(),
        "mixed_hf_folder/data/train-00000-of-00001.jsonl": plain,
        "mixed_hf_folder/README.md": b"---\nlicense: mit\n---\n# Dataset card\nThis is the card, not data.\n",
        "mixed_hf_folder/LICENSE.txt": b"MIT License, permission is granted\n",
        "mixed_hf_folder/.gitattributes": b"*.parquet lfs\n",
        "hidden_files/a.jsonl": plain,
        "hidden_files/_SUCCESS": b"",
        "hidden_files/.a.jsonl.crc": b"crc\0\1",
        "hidden_files/.ipynb_checkpoints/a-checkpoint.jsonl": plain,
        "zst_long28/a.jsonl.zst": ("zstd", plain),
        # Kinds similar to those that occurred.
        "json_array/a.json": json.dumps([{"text": text} for text in texts()], indent=1).encode(),
        "json_columns/a.json": json.dumps({"text": texts()}).encode(),
        "pretty_object/a.json": json.dumps({"text": texts()[0]}, indent=2).encode(),
        "utf16/a.txt": "\n".join(texts()).encode("utf-16"),
        "cut_gz/a.jsonl.gz": gzip.compress(plain, mtime=0)[:-20],
        "members_gz/a.jsonl.gz": b"".join(gzip.compress(line + b"\n", mtime=0) for line in plain.splitlines()),
        "cut_line/a.jsonl": plain[:-9],
    }


def token_files():
    ids = token_ids()
    two, four = struct.pack(f"<{len(ids)}H", *ids), struct.pack(f"<{len(ids)}I", *ids)
    header = lambda *numbers: struct.pack("<256i", *numbers, *[0] * (256 - len(numbers)))
    return {
        "bin_u32/train.bin": four,
        "bin_llmc_short/train.bin": header(20240520, 1, len(ids) + 500) + two,
        # Kinds similar to those that occurred.
        "bin_u16/train.bin": two,
        "bin_llmc_u32/train.bin": header(20240801, 7, len(ids)) + four,
        "bin_llmc_version/train.bin": header(20240520, 2, len(ids)) + two,
        "npy/train.bin": b"\x93NUMPY\x01\0v\0" + b"{'descr': '<u2', 'fortran_order': False, 'shape': (1610,), }".ljust(117) + b"\n" + two,
        "megatron/train.idx": b"MMIDIDX\0\0" + struct.pack("<QB", 1, 8),
        "text_beside/train.bin": two,
        "text_beside/notes.txt": b"some words\n",
    }


def write(out, files):
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            if not shutil.which("zstd"):
                continue
            content = subprocess.run(["zstd", "-q", "-c", "--long=28"], input=content[1], stdout=subprocess.PIPE, check=True).stdout
        path.write_bytes(content)


def compare(out, other):
    """Compares names and first bytes, which determine a file's kind."""
    wrong = []
    for folder in ("corpora", "token-files"):
        for path in sorted((other / folder).rglob("*")):
            name = path.relative_to(other)
            if not path.is_file() or path.suffix == ".parquet":
                continue
            ours = out / name
            if not ours.is_file():
                wrong.append(f"{name}: is not made")
            elif ours.read_bytes()[:2] != path.read_bytes()[:2] and folder == "corpora":
                wrong.append(f"{name}: begins with {ours.read_bytes()[:4]}, not {path.read_bytes()[:4]}")
            elif (len(ours.read_bytes()) == 0) != (path.stat().st_size == 0):
                wrong.append(f"{name}: only one is empty")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--compare", type=Path)
    args = parser.parse_args()
    write(args.out / "corpora", corpora())
    write(args.out / "token-files", token_files())
    if args.compare:
        wrong = compare(args.out, args.compare)
        print("\n".join(wrong) or "the same")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
