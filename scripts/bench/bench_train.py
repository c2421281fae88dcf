"""Compares training steps with PyTorch on the same shape, batch, precision and threads: tokens per
second, peak memory.

Ours is a train job in the trainer service. PyTorch's is a plain loop over the same transformers
model with fused AdamW, clipping and batches from memory (torch_steps.py). Both are separate
processes and run alternately. Both speeds are running means of the step time, in which the last
steps weigh most. bf16 is fp32 weights under autocast. PyTorch runs eager, and compiled by
torch.compile on request (without its first step, the compilation).
"""

import itertools
import json
import os
import statistics
from pathlib import Path

import services

SCRIPTS = Path(__file__).resolve().parent
# Each shape with the work of one run.
SHAPES = {
    "GPT-2, 6 layers, d 384, block 256": {
        "architecture": {"family": "gpt2", "n_layers": 6, "d_model": 384, "n_heads": 6, "max_positions": 256},
        "vocab_size": 8192, "block_size": 256, "micro_batch": 8, "steps": 10,
    },
    "SmolLM2-135M, 30 layers, d 576, block 512": {
        "architecture": {
            "family": "llama", "n_layers": 30, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536,
            "max_positions": 512, "tied_head": True,
        },
        "vocab_size": 49152, "block_size": 512, "micro_batch": 2, "steps": 6,
    },
}


PRECISIONS = ("fp32", "bf16-mixed")


def bench(directory, rounds, python, compiled=False):
    text = directory / "models" / "corpus.txt"
    text.write_text("\n".join(path.read_text() for path in sorted(services.ROOT.glob("*.md"))) * 4)
    peers = {"PyTorch eager": False} | ({"torch.compile": True} if compiled else {})
    for number, (name, precision) in enumerate(itertools.product(SHAPES, PRECISIONS)):
        shape = SHAPES[name] | {"precision": precision}
        runs = {label: [] for label in ("trainer", *peers)}
        for turn in range(rounds):
            place = directory / f"train-{number}-{turn}"
            place.mkdir()
            runs["trainer"].append(train(place, text, shape))
            for label, compile in peers.items():
                runs[label].append(torch_steps(python, shape | {"compile": compile}))
        print(f"  {name}, {shape['micro_batch']} sequences, {precision}, medians of {rounds} alternating rounds:", flush=True)
        medians = {label: [statistics.median(values) for values in zip(*run)] for label, run in runs.items()}
        ours, ours_memory = medians["trainer"]
        for label, (speed, memory) in medians.items():
            ratio = "" if label == "trainer" else f"    ours: {ours / speed:.2f} x the speed, {ours_memory / memory:.2f} x the memory"
            print(f"    {label:14} {speed:7.0f} tokens/s    peak memory {memory:5.0f} MiB{ratio}", flush=True)


def train(place, text, shape):
    """Returns tokens per second and the peak memory of a trainer that does nothing else."""
    threads = {"OMP_NUM_THREADS": str(os.cpu_count())}
    with services.Cluster(place, ["slicer", "trainer"], [f"file://{text}"], environment=threads) as cluster:
        tokens = cluster.submit({
            "kind": "tokenize", "sources": [f"file://{text}"], "tokenizer": {"train": {"vocab_size": 2048}},
            "validation_fraction": 0.1,
        })["outcome"]["tokenized"]["tokens_artifact_id"]
        source = {"architecture": shape["architecture"], "vocab_size": shape["vocab_size"]}
        model = cluster.submit({"kind": "slice", "seed": 1, "source": {"architecture": source}})
        training = {
            "block_size": shape["block_size"], "micro_batch": shape["micro_batch"], "steps": shape["steps"],
            "lr_max": 1e-3, "log_every_steps": 1, "checkpoint_every_steps": 0, "precision": shape["precision"],
        }
        cluster.submit({
            "kind": "train", "checkpoint": f"artifact://{model['outcome']['sliced']['checkpoint_artifact_id']}", "tokens": tokens,
            "training": training, "data_fraction": 1.0, "seed": 1, "expect_inherited": False,
        })
        query = "SELECT value FROM metric_points WHERE name = 'tokens_per_second' ORDER BY step DESC LIMIT 1"
        return float(cluster.sql(query)), cluster.peak_mib("trainer")


def torch_steps(python, shape):
    measured = services.peer(python, SCRIPTS / "torch_steps.py", json.dumps(shape))
    return measured["tokens_per_second"], measured["peak_mib"]
