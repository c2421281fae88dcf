#!/usr/bin/env python3
"""Regenerates crates/slicer/tests/golden: tiny checkpoints as torch.save writes them, in every
supported variant.

    pip install torch==2.11.0 transformers==5.23.0 safetensors tokenizers
    make pickles           # or: python3 scripts/golden/make-pickles.py [DIRECTORY]

One folder per case: config.json, the pickled weights, and expected.safetensors, the result of
torch.load for the same files, without buffers and without the second name of a tied tensor, under
the names in the file. For nanoGPT and lit-gpt, expected.safetensors is the Hugging Face model; this
script checks that it computes the same as nanoGPT's code. The same versions give the same files,
except legacy.bin, which contains addresses.
"""

import json
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_DIRECTORY = ROOT / "crates" / "slicer" / "tests" / "golden"

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
    """Hub names, f32, causal masks as buffers, the head as a second name of the embedding's
    storage, _metadata set."""
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
    """Like OpenLLaMA: one file, F16, with F32 rotary buffers."""
    tensors = random(llama_shapes(2), torch.float16)
    saved = OrderedDict(tensors)
    for i in range(2):
        saved[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = 1.0 / (10000 ** (torch.arange(0, 4, 2).float() / 4))
    torch.save(saved, folder / "pytorch_model.bin")
    write_config(folder, LLAMA)
    write_expected(folder, tensors)


def llama_bf16_sharded(folder):
    """Two shards and an index, bf16, as save_pretrained(safe_serialization=False) of transformers 4
    wrote them."""
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
    """Like TinyLlama: tensors with attributes, which pickle as _rebuild_from_type_v2, and plain
    parameters."""
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
    """Contiguous parts of one storage at offsets, pickle protocol 5, without a byte order
    problem."""
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


def nanogpt_forward(weights, tokens, heads):
    """Computes what nanoGPT's model.py does, from its own state dict: nn.Linear weights, optional
    biases, exact GELU."""
    get = lambda name: weights.get(f"transformer.{name}")
    linear = lambda x, name: torch.nn.functional.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))
    norm = lambda x, name: torch.nn.functional.layer_norm(x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), 1e-5)
    x = get("wte.weight")[tokens] + get("wpe.weight")[torch.arange(tokens.shape[1])]
    batch, time, width = x.shape
    layer = 0
    while get(f"h.{layer}.ln_1.weight") is not None:
        qkv = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn").split(width, dim=2)
        q, k, v = (part.view(batch, time, heads, width // heads).transpose(1, 2) for part in qkv)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).reshape(batch, time, width), f"h.{layer}.attn.c_proj")
        hidden = torch.nn.functional.gelu(linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"))
        x = x + linear(hidden, f"h.{layer}.mlp.c_proj")
        layer += 1
    return norm(x, "ln_f") @ get("wte.weight").T


def nanogpt(folder, bias):
    """ckpt.pt as train.py of nanoGPT writes it."""
    shapes = {name: shape for name, shape in gpt2_shapes(2).items() if bias or not name.endswith(".bias")}
    projections = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    weights = OrderedDict()
    for name, shape in shapes.items():
        weights[f"transformer.{name}"] = torch.randn(tuple(reversed(shape)) if name.endswith(projections) else shape) * 0.2
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    parameters = [torch.nn.Parameter(tensor) for tensor in list(weights.values())[:3]]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95))
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    args = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 16, "bias": bias, "vocab_size": 32, "dropout": 0.0}
    torch.save(
        {
            "model": OrderedDict((f"_orig_mod.{name}" if bias else name, tensor) for name, tensor in weights.items()),
            "optimizer": optimizer.state_dict(),
            "model_args": args,
            "iter_num": 2000,
            "best_val_loss": torch.tensor(3.25),
            "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True, "wandb_log": False, "beta2": 0.95},
        },
        folder / "ckpt.pt",
    )
    expected = {}
    for name in shapes:
        tensor = weights[f"transformer.{name}"]
        expected[f"transformer.{name}"] = tensor.t() if name.endswith(projections) else tensor
    write_expected(folder, expected)
    # transformers has no GPT-2 without biases, so they are zeros there (ADR 5).
    for name, shape in gpt2_shapes(2).items():
        expected.setdefault(f"transformer.{name}", torch.zeros(shape))
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0)).eval()
    missing, unexpected = model.load_state_dict(expected, strict=False)
    assert not unexpected and missing == ["lm_head.weight"], (missing, unexpected)
    tokens = torch.randint(0, 32, (2, 16))
    difference = (model(tokens).logits - nanogpt_forward(weights, tokens, heads=2)).abs().max().item()
    assert difference < 0.01, difference


def litgpt(folder):
    """lit_model.pth and lit_config.json, from a Llama by the steps of lit-gpt's
    convert_hf_checkpoint.py."""
    tensors = random(llama_shapes(2), torch.bfloat16)
    heads, groups, head = 4, 2, 4
    saved = OrderedDict({
        "lm_head.weight": tensors["lm_head.weight"],
        "transformer.wte.weight": tensors["model.embed_tokens.weight"],
        "transformer.ln_f.weight": tensors["model.norm.weight"],
    })
    names = {
        "input_layernorm": "norm_1", "self_attn.o_proj": "attn.proj", "post_attention_layernorm": "norm_2",
        "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj",
    }
    for i in range(2):
        for theirs, lit in names.items():
            saved[f"transformer.h.{i}.{lit}.weight"] = tensors[f"model.layers.{i}.{theirs}.weight"]
        q, k, v = (tensors[f"model.layers.{i}.self_attn.{part}_proj.weight"] for part in "qkv")
        parts = zip(torch.split(q, head * heads // groups), torch.split(k, head), torch.split(v, head))
        saved[f"transformer.h.{i}.attn.attn.weight"] = torch.cat([tensor for group in parts for tensor in group])
    torch.save({"model": saved, "iter_num": 7}, folder / "lit_model.pth", pickle_protocol=5)
    config = {
        "name": "tiny", "block_size": 16, "vocab_size": 29, "padding_multiple": 30, "padded_vocab_size": 30, "n_layer": 2,
        "n_head": 4, "n_embd": 12, "rotary_percentage": 1.0, "parallel_residual": False, "bias": False,
        "n_query_groups": 2, "head_size": 4, "shared_attention_norm": False, "_norm_class": "RMSNorm", "norm_eps": 1e-5,
        "_mlp_class": "LLaMAMLP", "intermediate_size": 20, "rope_condense_ratio": 1, "rope_base": 10000,
    }
    (folder / "lit_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_expected(folder, tensors)


def pythia(folder):
    """Like EleutherAI's Pythia: GPT-NeoX, f16, one pickled file, masks and rotary buffers, a
    byte-level tokenizer.json.

    evaluation.json: the nats of a text by transformers, each token given those before it, the first
    given end-of-text.
    """
    text = (ROOT / "LICENSE").read_text()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "tokenizer_class": "GPTNeoXTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    config = transformers.GPTNeoXConfig(
        vocab_size=416, hidden_size=24, num_attention_heads=3, num_hidden_layers=3, intermediate_size=48, rotary_pct=0.25,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=0, hidden_act="gelu", use_parallel_residual=True,
        initializer_range=0.3,
    )
    model = transformers.GPTNeoXForCausalLM(config).half()
    write_config(folder, {**config.to_dict(), "architectures": ["GPTNeoXForCausalLM"], "torch_dtype": "float16"})
    tensors = model.state_dict()
    saved = OrderedDict(tensors)
    for i in range(3):
        attention = f"gpt_neox.layers.{i}.attention"
        saved[f"{attention}.bias"] = torch.tril(torch.ones(128, 128, dtype=torch.bool)).view(1, 1, 128, 128)
        saved[f"{attention}.masked_bias"] = torch.tensor(-1e9).half()
        saved[f"{attention}.rotary_emb.inv_freq"] = torch.ones(1)
    torch.save(saved, folder / "pytorch_model.bin")
    write_expected(folder, tensors)
    text = "\n".join(text.splitlines()[:6])
    tokens = [0, *tokenizer.encode(text).ids]
    assert 64 < len(tokens) <= 128, len(tokens)
    with torch.no_grad():
        logits = model.float().eval()(torch.tensor([tokens[:-1]])).logits
    nats = torch.nn.functional.cross_entropy(logits[0].double(), torch.tensor(tokens[1:]), reduction="sum").item()
    evaluation = {"text": text, "tokens": len(tokens) - 1, "nats": nats}
    (folder / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n")


def not_read(folder):
    """Files that must be rejected: legacy, TorchScript, not contiguous."""
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
    "nanogpt-compiled": lambda folder: nanogpt(folder, bias=True),
    "nanogpt-no-bias": lambda folder: nanogpt(folder, bias=False),
    "litgpt": litgpt,
    "pythia": pythia,
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
