"""Compares evaluation with lm-evaluation-harness on the same model, documents and threads: wall
seconds from start to scores, tokenizing included.

Ours is an evaluate job of one worker, from its claim to its end by the database's clock: fetching
and loading the model, reading the data, scoring, standard errors, publishing. Theirs is
harness_scores.py, from the start of its process; its imports are reported separately. They run
alternately, and their scores must agree. Models are random, of the named shapes. A shortened task
is limited to whole subjects or to its first documents.
"""

import os
import shutil
import statistics
from pathlib import Path

import harness
import services

SCRIPTS = Path(__file__).resolve().parent
SINGLE = ["wsc", "piqa", "boolq", "winogrande", "logiqa", "truthfulqa_mc2", "mnli", "qnli", "wnli", "wikitext", "lambada_openai"]
TEXT_CHARACTERS = 1_000_000
TRUTHFULQA = ["truthfulqa_mc1", "truthfulqa_mc2"]
# One in sixty of MMLU's 14,042 questions, in two whole subjects whose questions and examples are
# about as long as the mean (409 and 1,983 characters; 466 and 2,467 over all).
MMLU_SAMPLE = ["mmlu_econometrics", "mmlu_international_law"]
# A suite is what one run of the harness measures: the first N documents of each task, all (None),
# or one in N ("/60").
SHAPES = {
    "tiny: 4 layers, d 64, vocabulary 8192": {
        "architecture": {
            "family": "llama", "n_layers": 4, "d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_ff": 256,
            "max_positions": 2048, "tied_head": True,
        },
        "vocab_size": 8192,
        "suites": {
            "MMLU, 30 questions per subject": {"mmlu": 30},
            "TruthfulQA, all": dict.fromkeys(TRUTHFULQA),
            "the poster's, 400 documents per task": {"mmlu": 30} | dict.fromkeys(SINGLE, 400),
        },
    },
    "SmolLM2-135M: 30 layers, d 576, vocabulary 49152": {
        "architecture": {
            "family": "llama", "n_layers": 30, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "d_ff": 1536,
            "max_positions": 2048, "tied_head": True,
        },
        "vocab_size": 49152,
        "suites": {
            "MMLU, anatomy": {"mmlu_anatomy": None},
            "TruthfulQA, 48 questions": dict.fromkeys(TRUTHFULQA, 48),
            "the poster's, one document in sixty": dict.fromkeys(MMLU_SAMPLE) | dict.fromkeys(SINGLE, "/60"),
        },
    },
}


def bench(directory, rounds, python, data):
    """Measures on the data sets below `data`."""
    # A tokenizer trained on other text would split words, and prompts would exceed the models'
    # positions.
    text = directory / "models" / "evaluation.txt"
    with text.open("w") as file:
        for rows in sorted(data.rglob("*.jsonl")):
            file.write(rows.read_text()[:TEXT_CHARACTERS] + "\n")
    threads = os.cpu_count()
    for number, (name, shape) in enumerate(SHAPES.items()):
        place = directory / f"evaluate-{number}"
        place.mkdir()
        allowed = [f"file://{text}", f"file://{data}/"]
        environment = {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        with services.Cluster(place, ["slicer", "trainer", "evaluator"], allowed, environment=environment) as cluster:
            checkpoint, model = random_model(cluster, text, shape)
            print(f"  {name}, medians of {rounds} alternating rounds:", flush=True)
            for suite, shares in shape["suites"].items():
                tasks = {task: documents(data, task, share) for task, share in shares.items()}
                ours, theirs, imports = [], [], []
                for _ in range(rounds):
                    seconds, scores = job(cluster, checkpoint, data, tasks)
                    ours.append(seconds)
                    measured = lm_eval(python, place, model, data, tasks, threads)
                    theirs.append(measured["seconds"])
                    imports.append(measured["import_seconds"])
                    check(scores, measured["results"])
                mine, peer, start = map(statistics.median, (ours, theirs, imports))
                print(
                    f"    {suite:<44} {mine:7.1f} s    lm_eval {peer:7.1f} s ({start:.1f} s imports)    "
                    f"ours: {peer / mine:5.1f} x the speed",
                    flush=True,
                )
            print(f"    peak memory of the evaluator {cluster.peak_mib('evaluator'):.0f} MiB", flush=True)


def random_model(cluster, text, shape):
    """Returns the location and the folder of a random checkpoint with its own tokenizer."""
    tokenizer = {"train": {"vocab_size": min(shape["vocab_size"], 32768)}}
    tokens = cluster.submit({
        "kind": "tokenize", "sources": [f"file://{text}"], "tokenizer": tokenizer, "validation_fraction": 0.1,
    })["outcome"]["tokenized"]["tokens_artifact_id"]
    source = {"architecture": {"architecture": shape["architecture"], "vocab_size": shape["vocab_size"]}}
    made = cluster.submit({"kind": "slice", "seed": 1, "source": source, "tokenizer": tokens})
    checkpoint = made["outcome"]["sliced"]["checkpoint_artifact_id"]
    location = cluster.inheritune("artifact", "get", checkpoint)["artifact"]["location"]
    # The harness accepts no other files in the folder.
    model = cluster.directory / "model"
    shutil.copytree(cluster.objects / location, model)
    return f"artifact://{checkpoint}", model


def documents(data, task, share):
    """Returns the number of documents in a share of `task`; None for all."""
    if task not in harness.TASKS or share is None:
        return share
    _, dataset, split = harness.TASKS[task]
    rows = len((data / dataset / f"{split}.jsonl").read_text().splitlines())
    return max(1, rows // int(share[1:])) if isinstance(share, str) else min(share, rows)


def job(cluster, checkpoint, data, tasks):
    """Runs an evaluate job; returns its seconds, and its scores by task and metric."""
    tasks = [{"task": "benchmark", "name": task, "data": f"file://{data}", "limit": limit} for task, limit in tasks.items()]
    done = cluster.submit({"kind": "evaluate", "checkpoint": checkpoint, "batch_size": 8, "tasks": tasks})
    scores = done["outcome"]["evaluated"]["scores"]
    return services.seconds(done), {(score["task"], score["metric"]): score["value"] for score in scores}


def lm_eval(python, place, model, data, tasks, threads):
    names = ",".join(f"{task}={limit}" if limit else task for task, limit in tasks.items())
    arguments = [SCRIPTS / "harness_scores.py", model, data, place / "harness", "--tasks", names]
    return services.peer(python, *arguments, "--threads", str(threads), "--batch-size", "8", quiet=True)


def check(scores, results):
    """Exits if a score differs from the harness's."""
    for (task, metric), value in scores.items():
        theirs = results[task][metric]
        if abs(value - theirs) > 1e-3 * abs(theirs):
            raise SystemExit(f"bench: {task} {metric} is {value}, but lm_eval says {theirs}")
