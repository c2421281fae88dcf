#!/usr/bin/env python3
"""Validates model cards with huggingface_hub (pip install huggingface_hub), without the network.

usage: cards.py [CARD.md ...]      crates/domain/tests/golden/model-card.md by default; exit code 1 if one is not valid
"""

import sys
from pathlib import Path

from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

GOLDEN = Path(__file__).resolve().parents[2] / "crates/domain/tests/golden/model-card.md"


def check(path):
    data = ModelCard.load(path).data
    raw = metadata_load(path)
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation", raw
    assert "inheritune" in data.tags and data.language is None, raw
    for key in ("base_model", "license", "license_name", "license_link"):
        assert raw.get(key) is None or isinstance(raw[key], str), (key, raw[key])
    if "model-index" not in raw:
        return "no results"
    name, results = model_index_to_eval_results(raw["model-index"])
    assert name == raw["model-index"][0]["name"] and results
    for result in results:
        assert isinstance(result.metric_value, float) and result.dataset_name and result.metric_type, result
    # A round trip loses nothing.
    again = model_index_to_eval_results(eval_results_to_model_index(name, results))
    assert again == (name, results), again
    assert data.eval_results == results and data.model_name == name
    return f"{len(results)} results of {name!r}, base model {data.base_model!r}, license {data.license!r}"


for path in [Path(argument) for argument in sys.argv[1:]] or [GOLDEN]:
    print(f"{path}: {check(path)}")
