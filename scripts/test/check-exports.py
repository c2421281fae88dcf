#!/usr/bin/env python3
"""Loads exported checkpoint folders in the installed transformers, and compares them with their
references.

    check-exports.py CASES REPORT [EXPECTED]

CASES is a JSON list of {"name", "export", "reference", "layers", "untied"}: `layers` are the layers
of the reference in the export; without a `reference`, only loading is checked. REPORT becomes
{name: logits}. An export must load without a warning and without missing, unexpected or mismatched
tensors. It must give the logits of its reference with only these layers, or, if EXPECTED (the
report of another version) contains the case, those logits. The last line summarizes the comparison.
"""

import json
import logging
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "0")

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-5
TEXTS = ["And God said unto Moses,", "  two  spaces\n\tand a tab; 1234 é ☂"]


class Collected(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.told = []

    def emit(self, record):
        self.told.append(record.getMessage())


def quietly(load):
    """Returns the result of `load`, and every warning during it, logged or issued."""
    handler = Collected()
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    transformers.logging.set_verbosity_warning()
    for once in ("warning_once", "info_once"):
        clear = getattr(getattr(logging.Logger, once, None), "cache_clear", None)
        if clear:
            clear()
    try:
        with warnings.catch_warnings(record=True) as issued:
            warnings.simplefilter("always")
            result = load()
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    # Deprecations of Python concern only transformers and its dependencies.
    mine = [str(w.message) for w in issued if not issubclass(w.category, (DeprecationWarning, PendingDeprecationWarning, ResourceWarning))]
    return result, handler.told + mine


def blocks(model):
    for path in ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers", "transformer.blocks"):
        owner, _, name = path.rpartition(".")
        try:
            parent = model.get_submodule(owner)
        except AttributeError:
            continue
        if hasattr(parent, name):
            return parent, name
    raise ValueError("a model without blocks")


def logits(model, ids):
    model = model.float().eval()
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0]


def own_head(model, reference):
    """Returns the head in the reference's files, whatever its config says."""
    import glob

    from safetensors.torch import load_file

    tensors = {}
    for file in glob.glob(os.path.join(reference, "*.safetensors")):
        tensors.update(load_file(file))
    for file in glob.glob(os.path.join(reference, "*.bin")):
        tensors.update(torch.load(file, weights_only=True))
    name = "lm_head.weight" if "lm_head.weight" in tensors else "embed_out.weight"
    head = torch.nn.Parameter(tensors[name].float())
    model.get_output_embeddings().weight = head
    return model


def check(case, expected):
    problems = []
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    (model, info), told = quietly(lambda: load(case["export"]))
    problems += [f"warned: {text}" for text in told]
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            problems.append(f"{kind}: {sorted(map(str, info[kind]))[:5]}")
    vocab = model.config.vocab_size
    ids = torch.arange(0, 96).mul(37).remainder(vocab)[None]
    found = logits(model, ids)
    # Another version's logits take precedence: older versions misread some references without a
    # warning.
    if case.get("reference") and expected is None:
        previous = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        reference = AutoModelForCausalLM.from_pretrained(case["reference"], dtype=torch.float32)
        transformers.logging.set_verbosity(previous)
        if case.get("untied"):
            reference = own_head(reference.float(), case["reference"])
        parent, name = blocks(reference)
        kept = getattr(parent, name)
        setattr(parent, name, torch.nn.ModuleList([kept[i] for i in case["layers"]]))
        difference = (found - logits(reference, ids)).abs().max().item()
        if not difference <= TOLERANCE:
            problems.append(f"its logits differ by {difference} from its reference's")
    if expected is not None:
        difference = (found - torch.tensor(expected)).abs().max().item()
        if not difference <= TOLERANCE:
            problems.append(f"its logits differ by {difference} from the other version's")
    if case.get("tokenizer"):
        (made, told) = quietly(lambda: AutoTokenizer.from_pretrained(case["export"]))
        problems += [f"its tokenizer warned: {text}" for text in told]
        source = AutoTokenizer.from_pretrained(case["tokenizer"])
        if len(made) != len(source) or any(made(text)["input_ids"] != source(text)["input_ids"] for text in TEXTS):
            problems.append("its tokenizer gives different ids than its reference's")
    return problems, found


def main():
    cases, report = json.load(open(sys.argv[1])), {}
    others = json.load(open(sys.argv[3])) if len(sys.argv) > 3 else {}
    failed = 0
    for case in cases:
        name = case["name"]
        try:
            problems, found = check(case, others.get(name))
            report[name] = found.tolist()
        except Exception as error:  # Any exception counts as a failure of the export.
            problems = [f"{type(error).__name__}: {str(error)[:500]}"]
        for problem in problems:
            print(f"{name}: {problem}")
        failed += bool(problems)
    json.dump(report, open(sys.argv[2], "w"))
    print(f"transformers {transformers.__version__}: {len(cases) - failed} of {len(cases)} exports are correct"
          + (", and as in the other version" if others else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
