"""Compares tokenizing with the Hugging Face tokenizers library on the same file, tokenizer and
threads: MB/s.

Ours is a tokenize job, from claim to end by the database's clock: reading JSONL, encoding, writing
the ids, publishing. Theirs is a plain script (hf_tokenize.py): the same rows in batches,
encode_batch_fast, 16-bit ids to a file, from its first read, without Python's imports. They run
alternately.
"""

import itertools
import json
import os
import statistics
from pathlib import Path

import services

SCRIPTS = Path(__file__).resolve().parent
TEXT_BYTES = 64_000_000


def bench(directory, rounds, python):
    """Measures on documents of real text and code: this repository's own, repeated."""
    root, kinds = services.ROOT, ("*.md", "crates/*/src/*.rs", "docs/*.md", "docs/adr/*.md", "migrations/*.sql")
    documents = [path.read_text() for kind in kinds for path in sorted(root.glob(kind))]
    corpus, size = directory / "models" / "corpus.jsonl", 0
    with open(corpus, "w") as file:
        for turn in itertools.count():
            for text in documents:
                file.write(json.dumps({"text": f"{turn}\n{text}"}) + "\n")
                size += len(text.encode())
            if size >= TEXT_BYTES:
                break
    place = directory / "tokenize"
    place.mkdir()
    threads = {"RAYON_NUM_THREADS": str(os.cpu_count())}
    with services.Cluster(place, ["trainer"], [f"file://{corpus.parent}/"], environment=threads) as cluster:
        first, _, _ = job(cluster, corpus, {"train": {"vocab_size": 8192}})
        location = cluster.inheritune("artifact", "get", first)["artifact"]["location"]
        tokenizer = cluster.objects / location / "tokenizer.json"
        ours, theirs = [], []
        for _ in range(rounds):
            _, seconds, tokens = job(cluster, corpus, {"from": f"artifact://{first}"})
            ours.append(seconds)
            script = SCRIPTS / "hf_tokenize.py"
            measured = services.peer(python, script, corpus, tokenizer, place / "theirs.bin", environment=threads)
            theirs.append(measured["seconds"])
            if measured["tokens"] != tokens:
                raise SystemExit(f"bench: {tokens} tokens, but the library makes {measured['tokens']}")
        memory = cluster.peak_mib("trainer")
    mine, peer = statistics.median(ours), statistics.median(theirs)
    print(f"  tokenizing {size / 1e6:.0f} MB of text, medians of {rounds} alternating rounds:")
    print(f"    tokenize job                 {size / 1e6 / mine:6.1f} MB/s    peak memory {memory:.0f} MiB")
    print(f"    Hugging Face tokenizers      {size / 1e6 / peer:6.1f} MB/s    ours: {peer / mine:.2f} x the speed", flush=True)


def job(cluster, corpus, tokenizer):
    """Runs a tokenize job; returns its token set, its seconds in the service, and its tokens."""
    done = cluster.submit({
        "kind": "tokenize", "sources": [f"file://{corpus}"], "tokenizer": tokenizer, "validation_fraction": 0.1,
    })
    made = done["outcome"]["tokenized"]
    return made["tokens_artifact_id"], services.seconds(done), made["train_tokens"] + made["validation_tokens"]
