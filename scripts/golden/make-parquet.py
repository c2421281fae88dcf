#!/usr/bin/env python3
"""Regenerates crates/trainer/tests/parquet: the same rows in each codec, as pyarrow writes
them, with several row groups and data pages per file.

    pip install pyarrow==26.0.1
    python3 scripts/golden/make-parquet.py
"""

from pathlib import Path

import pyarrow
from pyarrow import parquet

DIRECTORY = Path(__file__).resolve().parents[2] / "crates" / "trainer" / "tests" / "parquet"
# A row without text, an empty one, characters of every length, and one over several pages.
TEXTS = ["first row", None, "", "zwölf Wörter\nund 漢字 🦀", "no more\n\n" * 300, *(f"row {i}" for i in range(40))]


def main():
    DIRECTORY.mkdir(exist_ok=True)
    ids = list(range(len(TEXTS)))
    table = pyarrow.table({"id": ids, "text": pyarrow.array(TEXTS, pyarrow.string()), "meta": [{"n": i} for i in ids]})
    for packing in ("none", "snappy", "gzip", "zstd", "lz4", "brotli"):
        options = {"compression": packing, "row_group_size": 17, "data_page_size": 256, "use_dictionary": packing == "snappy"}
        parquet.write_table(table, DIRECTORY / f"{packing}.parquet", **options)
    # The column types of other writers: bytes, long strings, a dictionary, within a group.
    for name, column in {
        "binary": pyarrow.array([text and text.encode() if text is not None else None for text in TEXTS], pyarrow.binary()),
        "large": pyarrow.array(TEXTS, pyarrow.large_string()),
        "dictionary": pyarrow.array(TEXTS, pyarrow.string()).dictionary_encode(),
    }.items():
        # Without the schema that only Arrow reads.
        parquet.write_table(pyarrow.table({"text": column}), DIRECTORY / f"{name}.parquet", store_schema=False)
    parquet.write_table(pyarrow.table({"doc": [{"text": text, "n": 1} for text in TEXTS]}), DIRECTORY / "nested.parquet")
    parquet.write_table(pyarrow.table({"text": [["a", "b"], ["c"]]}), DIRECTORY / "lists.parquet")
    parquet.write_table(pyarrow.table({"text": pyarrow.array([b"\xff" * 8192], pyarrow.binary())}), DIRECTORY / "bytes.parquet")
    parquet.write_table(pyarrow.table({"content": ["a"], "id": [1]}), DIRECTORY / "no-text.parquet")
    parquet.write_table(pyarrow.table({"text": [1, 2]}), DIRECTORY / "numbers.parquet")


if __name__ == "__main__":
    main()
