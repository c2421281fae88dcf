#!/usr/bin/env python3
"""Makes crates/slicer/tests/golden anew: tiny checkpoints as torch.save writes them, in every variant that is read.

    pip install torch==2.11.0 transformers==5.23.0 safetensors
    make pickles           # or: python3 scripts/make-pickles.py [DIRECTORY]

One folder a case: config.json, the pickled weights, and expected.safetensors: what torch.load gives for the same
files, without buffers and without the second name of a tied tensor, under the names in the file.
Same versions, same files.
"""

import json
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

DEFAULT_DIRECTORY = Path(__file__).resolve().parent.parent / "crates" / "slicer" / "tests" / "golden"

GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 2,
    "n_positions": 16, "vocab_size": 32, "layer_norm_epsilon": 1e-5, "bos_token_id": 0, "eos_token_id": 0,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 12, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "num_hidden_layers": 2, "intermediate_size": 20,
    "max_position_embeddings": 16, "vocab_size": 30, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0,
}


def gpt2_shapes(layers):
    d, shapes = 8, OrderedDict()
    shapes["wte.weight"], shapes["wpe.weight"] = (32, d), (16, d)
    for i in range(layers):
        for norm in ("ln_1", "ln_2"):
            shapes[f"h.{i}.{norm}.weight"], shapes[f"h.{i}.{norm}.bias"] = (d,), (d,)
        for name, (inner, outer) in {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d),
                                     "mlp.c_proj": (4 * d, d)}.items():
            shapes[f"h.{i}.{name}.weight"], shapes[f"h.{i}.{name}.bias"] = (inner, outer), (outer,)
    shapes["ln_f.weight"], shapes["ln_f.bias"] = (d,), (d,)
    return shapes


def llama_shapes(layers):
    d, q, kv, ff, vocab = 12, 16, 8, 20, 30
    shapes = OrderedDict({"model.embed_tokens.weight": (vocab, d)})
    for i in range(layers):
        block = f"model.layers.{i}"
        shapes[f"{block}.self_attn.q_proj.weight"] = (q, d)
        shapes[f"{block}.self_attn.k_proj.weight"] = (kv, d)
        shapes[f"{block}.self_attn.v_proj.weight"] = (kv, d)
        shapes[f"{block}.self_attn.o_proj.weight"] = (d, q)
        shapes[f"{block}.mlp.gate_proj.weight"] = (ff, d)
        shapes[f"{block}.mlp.up_proj.weight"] = (ff, d)
        shapes[f"{block}.mlp.down_proj.weight"] = (d, ff)
        shapes[f"{block}.input_layernorm.weight"] = (d,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (d,)
    shapes["model.norm.weight"], shapes["lm_head.weight"] = (d,), (vocab, d)
    return shapes


def random(shapes, dtype):
    return OrderedDict((name, torch.randn(shape).to(dtype)) for name, shape in shapes.items())


def write_config(folder, config):
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_expected(folder, tensors):
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")


def gpt2_tied(folder):
    """Hub names, f32, causal masks as buffers, the head a second name of the embedding's storage, _metadata set."""
    tensors = random(gpt2_shapes(2), torch.float32)
    saved = OrderedDict((f"transformer.{name}", tensor) for name, tensor in tensors.items())
    for i in range(2):
        saved[f"transformer.h.{i}.attn.bias"] = torch.tril(torch.ones(16, 16, dtype=torch.uint8)).view(1, 1, 16, 16)
        saved[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    saved["lm_head.weight"] = tensors["wte.weight"]
    saved._metadata = OrderedDict({"": {"version": 1}, "transformer.wte": {"version": 1}})
    torch.save(saved, folder / "pytorch_model.bin")
    write_config(folder, GPT2)
    write_expected(folder, {f"transformer.{name}": tensor for name, tensor in tensors.items()})


def llama_f16_inv_freq(folder):
    """As OpenLLaMA: one file, F16, with F32 rotary buffers."""
    tensors = random(llama_shapes(2), torch.float16)
    saved = OrderedDict(tensors)
    for i in range(2):
        saved[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = 1.0 / (10000 ** (torch.arange(0, 4, 2).float() / 4))
    torch.save(saved, folder / "pytorch_model.bin")
    write_config(folder, LLAMA)
    write_expected(folder, tensors)


def llama_bf16_sharded(folder):
    """Two shards and an index, bf16, as save_pretrained(safe_serialization=False) of transformers 4 wrote them."""
    tensors = random(llama_shapes(2), torch.bfloat16)
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map.update({name: file for name in part})
    index = {"metadata": {"total_size": sum(2 * tensor.numel() for tensor in tensors.values())}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    write_config(folder, LLAMA)
    write_expected(folder, tensors)


def llama_from_type(folder):
    """As TinyLlama: tensors with attributes, which pickle as _rebuild_from_type_v2; and plain parameters."""
    tensors = random(llama_shapes(1), torch.float32)
    saved = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        if i % 3 == 0:
            tensor._note = "kept by torch.save"
            saved[name] = tensor
        elif i % 3 == 1:
            saved[name] = torch.nn.Parameter(tensor)
        else:
            saved[name] = torch.nn.Parameter(tensor, requires_grad=False)
            saved[name]._note = {"is": ["an", "attribute"], "of": (1, 2.5, None, True, -7, 70000, 1 << 40)}
    torch.save(saved, folder / "pytorch_model.bin")
    write_config(folder, {**LLAMA, "num_hidden_layers": 1})
    write_expected(folder, tensors)


def gpt2_views(folder):
    """Contiguous parts of one storage at offsets, pickle protocol 5, no byteorder trouble."""
    shapes = gpt2_shapes(1)
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    flat = torch.randn(sum(sizes.values()) + 5).to(torch.float16)
    tensors, at = OrderedDict(), 3
    for name, shape in shapes.items():
        tensors[name] = flat[at : at + sizes[name]].view(shape)
        at += sizes[name]
    torch.save(tensors, folder / "pytorch_model.bin", pickle_protocol=5)
    write_config(folder, {**GPT2, "n_layer": 1})
    write_expected(folder, tensors)


def not_read(folder):
    """Files that must be refused: legacy, TorchScript, not contiguous."""
    tensors = random({"wte.weight": (4, 3)}, torch.float32)
    torch.save(tensors, folder / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"wte.weight": tensors["wte.weight"].t()}, folder / "transposed.bin")
    torch.save({"wte.weight": torch.conj(torch.zeros(2, dtype=torch.complex64))}, folder / "complex.bin")
    torch.save(torch.nn.Linear(2, 2), folder / "module.bin")
    torch.save({"wte.weight": tensors["wte.weight"].to(torch.float8_e4m3fn)}, folder / "float8.bin")


CASES = {
    "gpt2-tied": gpt2_tied,
    "llama-f16-inv-freq": llama_f16_inv_freq,
    "llama-bf16-sharded": llama_bf16_sharded,
    "llama-from-type": llama_from_type,
    "gpt2-views": gpt2_views,
    "not-read": not_read,
}


def main():
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DIRECTORY
    for seed, (case, make) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        folder = directory / case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        print(case, sum(file.stat().st_size for file in folder.iterdir()), "bytes", sorted(f.name for f in folder.iterdir()))


if __name__ == "__main__":
    main()
