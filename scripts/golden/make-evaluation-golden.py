#!/usr/bin/env python3
"""Regenerates crates/evaluator/tests/golden: what lm_eval 0.4.13 computes for tiny models on the
data sets in data/.

    .deps/lm-eval/bin/python scripts/golden/make-evaluation-golden.py      # harness.py says what it needs
    .deps/lm-eval/bin/python scripts/golden/make-evaluation-golden.py --data DIR --model DIR --out DIR [--tasks a,b] [--limit N] [--batch-size B]

The data sets are invented and contain the hard cases of the benchmarks. The models are made here:
    models/tiny-gpt2     random; a byte-level tokenizer that adds nothing
    models/tiny-llama    briefly trained on the data, so that it would give some of the answers; grouped-query attention,
                         an untied head, and a tokenizer that adds <s>
For each model M:
    M.jsonl              a line per request, with the token ids before truncation:
                         task, doc_id, idx, n_ctx, ctx_sha256, cont_ids, ll, greedy; for a page of wikitext
                         task, doc_id, n_tokens, tokens_sha256, windows, ll. Digests are over ids of 4 bytes, little-endian.
    M.results.json       the harness's report: metrics and errors of tasks and groups, versions, shots, counts
samples.jsonl            a line per document from the harness's own log, independent of the model: task, doc_id, doc_hash,
                         prompt_hash, target_hash, and arguments_sha256, the digest of the texts of all its requests, each
                         followed by a zero byte
parquet/                 some of the data sets as on the hub, with its file names
bootstrap.json           values, and the harness's error of their perplexity from 100,000 resamples

Everything is float32 on one thread, with one sequence per batch unless specified otherwise. The
second form does the same for another model on other data, for all tasks or some; --limit uses the
first documents of each task, --mmlu-limit of each subject. The same versions on the same machine
give the same files. Another machine may differ in the last bits, which training carries into the
weights.
"""

import argparse
import hashlib
import json
import random
import shutil
import struct
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import harness  # noqa: E402

GOLDEN = Path(__file__).resolve().parents[2] / "crates" / "evaluator" / "tests" / "golden"
VOCABULARY = 512
POSITIONS = 128


def texts():
    """Yields every string of the data, file by file."""

    def strings(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from strings(part)

    for file in sorted((GOLDEN / "data").rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            yield from strings(json.loads(line))


def train_tokenizer(folder, special, bos, eos):
    """Makes a byte-level tokenizer; `bos` is put first unless it equals `eos`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if bos != eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    write_json(folder / "tokenizer_config.json", config)
    return tokenizer


def save_model(model, folder):
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    # The writer of a file is not part of the case.
    config.pop("transformers_version", None)
    write_json(file, config)


def make_tiny_gpt2(folder):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = train_tokenizer(folder, ["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>")
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=POSITIONS, n_embd=36, n_layer=2, n_head=3, initializer_range=0.15,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    save_model(GPT2LMHeadModel(config), folder)


def make_tiny_llama(folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(folder, ["<unk>", "<s>", "</s>"], "<s>", "</s>")
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=POSITIONS, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=80, tie_word_embeddings=False, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids = torch.tensor([id for text in texts() for id in tokenizer.encode(text).ids])
    for _ in range(400):
        starts = torch.randint(len(ids) - POSITIONS, (8,)).tolist()
        batch = torch.stack([ids[start : start + POSITIONS] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, folder)


def write_parquet():
    """Writes rows of text, of numbers, of lists, and of lists within a struct."""
    import pyarrow
    from pyarrow import parquet

    for name, packed in {
        "piqa/validation": "piqa/validation", "truthfulqa_mc/validation": "truthfulqa_mc/validation-00000-of-00001",
        "arc_easy/test": "arc_easy/test-00000-of-00001", "mmlu/test/anatomy": "mmlu/test/anatomy",
        "mmlu/dev/anatomy": "mmlu/dev/anatomy",
    }.items():  # fmt: skip
        rows = [json.loads(line) for line in (GOLDEN / "data" / f"{name}.jsonl").read_text().splitlines()]
        file = GOLDEN / "parquet" / f"{packed}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, compression="snappy")


def digest(ids):
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()


def recorder(model, batch_size):
    """The harness's model, which stores requests and answers in `records`."""
    from lm_eval.models.huggingface import HFLM

    class Recorder(HFLM):
        records = []

        def loglikelihood(self, requests, disable_tqdm=False):
            self.asked = requests
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            self.asked, self.windows = None, []
            answers = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
            windows = iter(self.windows)
            for request, ll in zip(requests, answers):
                ids = self.tok_encode(request.args[0])
                count = scored = 0
                while scored < len(ids):
                    count, scored = count + 1, scored + next(windows)
                record = {"task": request.task_name, "doc_id": request.doc_id, "n_tokens": len(ids), "tokens_sha256": digest(ids)}
                self.records.append(record | {"windows": count, "ll": ll})
            return answers

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            answers = super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
            if self.asked is None:
                self.windows += [len(continuation) for _, _, continuation in requests]
                return answers
            for request, (_, context, continuation), (ll, greedy) in zip(self.asked, requests, answers):
                record = {"task": request.task_name, "doc_id": request.doc_id, "idx": request.idx, "n_ctx": len(context)}
                record |= {"ctx_sha256": digest(context), "cont_ids": continuation, "ll": ll, "greedy": greedy}
                self.records.append(record)
            return answers

    return Recorder(pretrained=str(model), device="cpu", dtype="float32", batch_size=batch_size)


def dump(data, model, out, scratch, batch_size=1, tasks=None, **limits):
    found = harness.write_tasks(data, scratch / "tasks")
    tasks = tasks or found
    lm = recorder(model, batch_size)
    report = harness.evaluate(lm, tasks, scratch / "tasks", bootstrap_iters=100_000, log_samples=True, **limits)
    out.mkdir(parents=True, exist_ok=True)
    samples = [sample_record(task, sample) for task, samples in report.pop("samples").items() for sample in samples]
    (out / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in samples))
    (out / f"{model.name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lm.records))
    write_json(out / f"{model.name}.results.json", report)


def sample_record(task, sample):
    texts = [text for request in sample["arguments"] for text in request]
    asked = hashlib.sha256("".join(f"{text}\0" for text in texts).encode()).hexdigest()
    hashes = {key: sample[key] for key in ("doc_id", "doc_hash", "prompt_hash", "target_hash")}
    return {"task": task} | hashes | {"arguments_sha256": asked}


def make_bootstrap(file):
    from lm_eval.api.metrics import perplexity, stderr_for_metric

    rng = random.Random(3)
    cases = []
    for count in (2, 7, 100, 400):
        values = [-rng.expovariate(0.4) for _ in range(count)]
        cases.append({"values": values, "perplexity": perplexity(values), "stderr": stderr_for_metric(perplexity, 100_000)(values)})
    write_json(file, cases)


def write_json(file, value):
    file.write_text(json.dumps(value, indent=1, sort_keys=True, default=float) + "\n")


def main():
    parser = argparse.ArgumentParser()
    for name in ("data", "model", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--tasks", type=lambda names: names.split(","))
    for name in ("limit", "mmlu-limit"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--batch-size", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        harness.prepare(scratch / "cache", 1)
        import torch

        torch.set_num_threads(1)
        if arguments.model:
            limits = {"limit": arguments.limit, "mmlu_limit": arguments.mmlu_limit}
            dump(arguments.data, arguments.model, arguments.out, scratch, arguments.batch_size, arguments.tasks, **limits)
            return
        for make in (make_tiny_gpt2, make_tiny_llama):
            folder = GOLDEN / "models" / make.__name__.removeprefix("make_").replace("_", "-")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            make(folder)
            dump(GOLDEN / "data", folder, GOLDEN, scratch)
        make_bootstrap(GOLDEN / "bootstrap.json")
        write_parquet()


if __name__ == "__main__":
    main()
