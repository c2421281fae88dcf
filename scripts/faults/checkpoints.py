#!/usr/bin/env python3
"""Checkpoint folders that were once read wrongly or rejected, and the plain models that they are
made from.

    checkpoints.py OUT [NAME...]           writes OUT/NAME; all of them if none is named
    checkpoints.py --list                  prints the names
    checkpoints.py --compare DIR OUT       compares OUT/NAME with DIR/NAME: files, config keys, names, shapes and types of tensors

Needs only Python's standard library: numbers are random, files of PyTorch are written opcode by
opcode.
"""

import argparse
import collections
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import types
import zipfile

VOCAB, WIDTH, HEADS, LAYERS, POSITIONS = 320, 32, 4, 4, 128
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1}


class Tensor:
    def __init__(self, shape, dtype="F32", data=None, seed=0, scale=0.08):
        self.shape, self.dtype = list(shape), dtype
        count = 1
        for size in shape:
            count *= size
        if data is None:
            numbers = random.Random(seed)
            values = [numbers.gauss(0, scale) for _ in range(count)]
            data = encode(values, dtype)
        self.data = data
        assert len(data) == count * SIZES[dtype], (shape, dtype, len(data))

    def to(self, dtype):
        values = [value[0] for value in struct.iter_unpack("<f", self.data)]
        return Tensor(self.shape, dtype, encode(values, dtype))


def encode(values, dtype):
    if dtype == "F32":
        return struct.pack(f"<{len(values)}f", *values)
    if dtype == "F16":
        return struct.pack(f"<{len(values)}e", *values)
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return bytes(random.Random(len(values)).randrange(256) for _ in range(len(values) * SIZES[dtype]))


def seed_of(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def model(shapes, ones=("norm", "ln_")):
    tensors = {}
    for name, shape in shapes:
        seed = seed_of(name)
        if len(shape) == 1 and name.endswith(".weight") and any(word in name for word in ones):
            numbers = random.Random(seed)
            tensors[name] = Tensor(shape, data=encode([1 + numbers.gauss(0, 0.1) for _ in range(shape[0])], "F32"))
        else:
            tensors[name] = Tensor(shape, seed=seed)
    return tensors


def llama(tied=False, **changes):
    kv, inner = 16, 88
    shapes = [("model.embed_tokens.weight", (VOCAB, WIDTH))]
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes += [
            (block + "self_attn.q_proj.weight", (WIDTH, WIDTH)),
            (block + "self_attn.k_proj.weight", (kv, WIDTH)),
            (block + "self_attn.v_proj.weight", (kv, WIDTH)),
            (block + "self_attn.o_proj.weight", (WIDTH, WIDTH)),
            (block + "mlp.gate_proj.weight", (inner, WIDTH)),
            (block + "mlp.up_proj.weight", (inner, WIDTH)),
            (block + "mlp.down_proj.weight", (WIDTH, inner)),
            (block + "input_layernorm.weight", (WIDTH,)),
            (block + "post_attention_layernorm.weight", (WIDTH,)),
        ]
    shapes.append(("model.norm.weight", (WIDTH,)))
    if not tied:
        shapes.append(("lm_head.weight", (VOCAB, WIDTH)))
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
        "dtype": "float32", "eos_token_id": 0, "head_dim": WIDTH // HEADS, "hidden_act": "silu", "hidden_size": WIDTH,
        "initializer_range": 0.02, "intermediate_size": inner, "max_position_embeddings": POSITIONS, "mlp_bias": False,
        "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": 2,
        "pad_token_id": None, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": tied,
        "transformers_version": "5.24.0", "use_cache": True, "vocab_size": VOCAB,
    }
    return changed(config, changes), model(shapes)


def gpt2(**changes):
    shapes = [("transformer.wte.weight", (VOCAB, WIDTH)), ("transformer.wpe.weight", (POSITIONS, WIDTH))]
    for i in range(LAYERS):
        block = f"transformer.h.{i}."
        for name, shape in [
            ("ln_1", (WIDTH,)), ("attn.c_attn", (WIDTH, 3 * WIDTH)), ("attn.c_proj", (WIDTH, WIDTH)), ("ln_2", (WIDTH,)),
            ("mlp.c_fc", (WIDTH, 4 * WIDTH)), ("mlp.c_proj", (4 * WIDTH, WIDTH)),
        ]:
            shapes += [(f"{block}{name}.weight", shape), (f"{block}{name}.bias", shape[-1:])]
    shapes += [("transformer.ln_f.weight", (WIDTH,)), ("transformer.ln_f.bias", (WIDTH,))]
    config = {
        "activation_function": "gelu_new", "add_cross_attention": False, "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 0, "dtype": "float32", "embd_pdrop": 0.1, "eos_token_id": 0,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_embd": WIDTH, "n_head": HEADS,
        "n_inner": None, "n_layer": LAYERS, "n_positions": POSITIONS, "pad_token_id": None,
        "reorder_and_upcast_attn": False, "resid_pdrop": 0.1, "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "tie_word_embeddings": True, "transformers_version": "5.24.0", "use_cache": True, "vocab_size": VOCAB,
    }
    return changed(config, changes), model(shapes)


def gpt_neox(tied=False, **changes):
    inner = 128
    shapes = [("gpt_neox.embed_in.weight", (VOCAB, WIDTH))]
    for i in range(LAYERS):
        block = f"gpt_neox.layers.{i}."
        for name, shape in [
            ("input_layernorm", (WIDTH,)), ("post_attention_layernorm", (WIDTH,)),
            ("attention.query_key_value", (3 * WIDTH, WIDTH)), ("attention.dense", (WIDTH, WIDTH)),
            ("mlp.dense_h_to_4h", (inner, WIDTH)), ("mlp.dense_4h_to_h", (WIDTH, inner)),
        ]:
            shapes += [(f"{block}{name}.weight", shape), (f"{block}{name}.bias", shape[:1])]
    shapes += [("gpt_neox.final_layer_norm.weight", (WIDTH,)), ("gpt_neox.final_layer_norm.bias", (WIDTH,))]
    if not tied:
        shapes.append(("embed_out.weight", (VOCAB, WIDTH)))
    config = {
        "architectures": ["GPTNeoXForCausalLM"], "attention_bias": True, "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "gelu", "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": inner,
        "layer_norm_eps": 1e-05, "max_position_embeddings": POSITIONS, "model_type": "gpt_neox",
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "rotary_emb_base": 20000, "rotary_pct": 0.5,
        "tie_word_embeddings": tied, "torch_dtype": "float32", "use_cache": True, "use_parallel_residual": True,
        "vocab_size": VOCAB,
    }
    return changed(config, changes), model(shapes)


def opt(**changes):
    inner = 64
    prefix = "model.decoder."
    shapes = [(prefix + "embed_tokens.weight", (VOCAB, WIDTH)), (prefix + "embed_positions.weight", (POSITIONS + 2, WIDTH))]
    for i in range(LAYERS):
        block = f"{prefix}layers.{i}."
        for name, shape in [
            ("self_attn_layer_norm", (WIDTH,)), ("self_attn.q_proj", (WIDTH, WIDTH)), ("self_attn.k_proj", (WIDTH, WIDTH)),
            ("self_attn.v_proj", (WIDTH, WIDTH)), ("self_attn.out_proj", (WIDTH, WIDTH)), ("final_layer_norm", (WIDTH,)),
            ("fc1", (inner, WIDTH)), ("fc2", (WIDTH, inner)),
        ]:
            shapes += [(f"{block}{name}.weight", shape), (f"{block}{name}.bias", shape[:1])]
    shapes += [(prefix + "final_layer_norm.weight", (WIDTH,)), (prefix + "final_layer_norm.bias", (WIDTH,))]
    config = {
        "_name_or_path": "org/opt", "activation_function": "relu", "architectures": ["OPTForCausalLM"], "bos_token_id": 2,
        "do_layer_norm_before": True, "eos_token_id": 2, "ffn_dim": inner, "hidden_size": WIDTH, "init_std": 0.02,
        "max_position_embeddings": POSITIONS, "model_type": "opt", "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS, "pad_token_id": 1, "torch_dtype": "float16", "use_cache": True, "vocab_size": VOCAB,
        "word_embed_proj_dim": WIDTH,
    }
    return changed(config, changes), model(shapes)


def mpt(**changes):
    shapes = [("transformer.wte.weight", (VOCAB, WIDTH))]
    for i in range(LAYERS):
        block = f"transformer.blocks.{i}."
        shapes += [
            (block + "norm_1.weight", (WIDTH,)), (block + "attn.Wqkv.weight", (3 * WIDTH, WIDTH)),
            (block + "attn.out_proj.weight", (WIDTH, WIDTH)), (block + "norm_2.weight", (WIDTH,)),
            (block + "ffn.up_proj.weight", (4 * WIDTH, WIDTH)), (block + "ffn.down_proj.weight", (WIDTH, 4 * WIDTH)),
        ]
    shapes.append(("transformer.norm_f.weight", (WIDTH,)))
    config = {
        "architectures": ["MPTForCausalLM"],
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention",
                        "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None},
        "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
        "d_model": WIDTH, "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_device": "cpu",
        "learned_pos_emb": True, "logit_scale": None, "max_seq_len": POSITIONS, "model_type": "mpt", "n_heads": HEADS,
        "n_layers": LAYERS, "no_bias": True, "norm_type": "low_precision_layernorm", "resid_pdrop": 0,
        "tokenizer_name": "x", "torch_dtype": "bfloat16", "use_cache": False, "vocab_size": VOCAB,
    }
    return changed(config, changes), model(shapes)


def changed(config, changes):
    config = dict(config)
    for key, value in changes.items():
        if value is ...:
            config.pop(key, None)
        else:
            config[key] = value
    return config


# Files.


def safetensors(path, tensors, gaps=0):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + len(tensor.data)]}
        at += len(tensor.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values()))


class Storage:
    def __init__(self, key, kind, count):
        self.key, self.kind, self.count = key, kind, count


def torch_modules():
    """Stand-ins for the names in a pickle of PyTorch, which Python's own pickler must be able to
    find."""
    found = {}
    for path, names in {"torch": ["FloatStorage", "HalfStorage", "BFloat16Storage"], "torch._utils": ["_rebuild_tensor_v2"]}.items():
        module = types.ModuleType(path)
        for name in names:
            stand_in = type(name, (), {"__module__": path, "__qualname__": name})
            setattr(module, name, stand_in)
        found[path] = module
    return found


def torch_file(path, root):
    """Writes what `torch.save(root, path)` writes; every Tensor in `root` becomes one."""
    modules = torch_modules()
    kinds = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}
    storages = []

    class Saver(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)

        def persistent_id(self, thing):
            if isinstance(thing, Storage):
                return ("storage", getattr(modules["torch"], thing.kind), thing.key, "cpu", thing.count)
            return None

        def reducer_override(self, thing):
            if not isinstance(thing, Tensor):
                return NotImplemented
            key = str(len(storages))
            storages.append(thing.data)
            strides, step = [], 1
            for size in reversed(thing.shape):
                strides.insert(0, step)
                step *= size
            storage = Storage(key, kinds[thing.dtype], len(thing.data) // SIZES[thing.dtype])
            rebuild = modules["torch._utils"]._rebuild_tensor_v2
            return rebuild, (storage, 0, tuple(thing.shape), tuple(strides), False, collections.OrderedDict())

    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        out = io.BytesIO()
        Saver(out, protocol=2).dump(root)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    top = os.path.basename(path).rsplit(".", 1)[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{top}/data.pkl", out.getvalue())
        archive.writestr(f"{top}/byteorder", "little")
        for key, data in enumerate(storages):
            archive.writestr(f"{top}/data/{key}", data)
        archive.writestr(f"{top}/version", "3\n")


def write_json(path, value):
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def tokenizer(folder):
    bytes_to_text = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    for byte in range(256):
        bytes_to_text.setdefault(byte, chr(256 + sum(other < byte and other not in range(33, 127) and
                                                     other not in range(161, 173) and other not in range(174, 256)
                                                     for other in range(256))))
    vocab = {"<|endoftext|>": 0}
    for byte in range(256):
        vocab[bytes_to_text[byte]] = byte + 1
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(os.path.join(folder, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": []},
    })
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})


def folder_of(folder, config, tensors=None, file="model.safetensors"):
    """Writes a checkpoint folder with a tokenizer; `tensors` go into `file`."""
    os.makedirs(folder, exist_ok=True)
    if config is not None:
        write_json(os.path.join(folder, "config.json"), config)
        write_json(os.path.join(folder, "generation_config.json"), {
            "_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0, "transformers_version": "5.24.0"})
    tokenizer(folder)
    if tensors is not None:
        write = safetensors if file.endswith(".safetensors") else torch_file
        write(os.path.join(folder, file), tensors)


def renamed(tensors, rename):
    return {rename(name): tensor for name, tensor in tensors.items()}


def sharded(folder, config, tensors, change):
    folder_of(folder, config)
    parts, weight_map = [{}, {}, {}], {}
    for i, (name, tensor) in enumerate(tensors.items()):
        file = f"model-{i % 3 + 1:05}-of-00003.safetensors"
        parts[i % 3][name] = tensor
        weight_map[name] = file
    for i, part in enumerate(parts):
        safetensors(os.path.join(folder, f"model-{i + 1:05}-of-00003.safetensors"), part)
    change(weight_map)
    write_json(os.path.join(folder, "model.safetensors.index.json"), {"metadata": {"total_size": 1}, "weight_map": weight_map})


def litgpt(tensors):
    names = {
        "model.embed_tokens.weight": "transformer.wte.weight", "model.norm.weight": "transformer.ln_f.weight",
        "lm_head.weight": "lm_head.weight",
    }
    blocks = {
        "input_layernorm": "norm_1", "self_attn.o_proj": "attn.proj", "post_attention_layernorm": "norm_2",
        "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj",
    }
    out = collections.OrderedDict((theirs, tensors[ours]) for ours, theirs in names.items())
    for i in range(LAYERS):
        ours, theirs = f"model.layers.{i}.", f"transformer.h.{i}."
        fused = [tensors[f"{ours}self_attn.{part}_proj.weight"] for part in "qkv"]
        out[theirs + "attn.qkv.weight"] = Tensor((64, WIDTH), data=b"".join(part.data for part in fused))
        for name, other in blocks.items():
            out[f"{theirs}{other}.weight"] = tensors[f"{ours}{name}.weight"]
    return out


LIT_YAML = """name: "tiny-llama"
hf_config: {"name": "x", "org": "y"}
block_size: 128
vocab_size: 320
padding_multiple: 64
padded_vocab_size: 320
n_layer: 4
n_head: 4
n_embd: 32
rotary_percentage: 1.0
parallel_residual: false
bias: false
lm_head_bias: false
n_query_groups: 2
shared_attention_norm: false
norm_class_name: "RMSNorm"
norm_eps: 1e-05
mlp_class_name: "LLaMAMLP"
intermediate_size: 88
rope_condense_ratio: 1
rope_base: 10000
head_size: 8
attn_bias: false
rope_adjustments:\x20
n_expert: 0
sliding_window_size:\x20
norm_qk: false
attention_logit_softcapping:\x20
"""


def nano(tensors):
    """Returns a GPT-2 in nanoGPT's names and layout."""
    out = collections.OrderedDict()
    for name, tensor in tensors.items():
        if any(name.endswith(end) for end in ("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            rows, columns = tensor.shape
            data = b"".join(tensor.data[4 * (r * columns + c):][:4] for c in range(columns) for r in range(rows))
            tensor = Tensor((columns, rows), data=data)
        out[name] = tensor
    out["lm_head.weight"] = tensors["transformer.wte.weight"]
    return out


def training_of(weights, model_args):
    return {
        "model": weights, "optimizer": {"state": {0: {"step": 1.0}}, "param_groups": [{"lr": 6e-4, "betas": (0.9, 0.95), "params": [0]}]},
        "model_args": model_args, "iter_num": 100, "best_val_loss": 3.0, "config": {"out_dir": "out", "wandb_log": False},
    }


# The folders by name: each function writes `at`.


def config_bom(at):
    config, tensors = llama()
    folder_of(at, config, tensors)
    path = os.path.join(at, "config.json")
    with open(path, "rb") as file:
        text = file.read()
    with open(path, "wb") as file:
        file.write(b"\xef\xbb\xbf" + text)


def extra_state(at):
    config, tensors = llama()
    for i in range(LAYERS):
        size = 12 if i == 0 else 0
        tensors[f"model.layers.{i}.self_attn.q_proj._extra_state"] = Tensor((size,), "U8", bytes(size))
    folder_of(at, config, tensors)


def extra_state_none(at):
    config, tensors = llama()
    tensors["model.layers.0.self_attn.q_proj._extra_state"] = None
    folder_of(at, config, tensors, "pytorch_model.bin")


def fp8(at):
    config, tensors = llama(quantization_config={"quant_method": "fp8", "activation_scheme": "static"})
    out = {}
    for name, tensor in tensors.items():
        if "_proj" in name:
            out[name] = Tensor(tensor.shape, "F8_E4M3", bytes(len(tensor.data) // 4))
            out[name + "_scale"] = Tensor((1,))
        else:
            out[name] = tensor
    folder_of(at, config, out)


def gptq(at):
    config, tensors = llama(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    out = {}
    for name, tensor in tensors.items():
        if "_proj" not in name:
            out[name] = tensor
            continue
        rows, columns = tensor.shape
        base = name.removesuffix(".weight")
        out[base + ".qweight"] = Tensor((columns // 8, rows), "I32")
        out[base + ".qzeros"] = Tensor((1, rows // 8), "I32")
        out[base + ".scales"] = Tensor((1, rows), "F16")
        out[base + ".g_idx"] = Tensor((columns,), "I32")
    folder_of(at, config, out)


def gpt2_both_names(at):
    folder_of(at, *gpt2(num_hidden_layers=LAYERS))


def hub_cache_root(at):
    root = os.path.join(at, "models--org--name")
    snapshot = os.path.join(root, "snapshots", "abc123")
    config, tensors = llama()
    sharded(snapshot, config, tensors, lambda weight_map: None)
    for name in ("blobs", "refs"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    for file in os.listdir(snapshot):
        path = os.path.join(snapshot, file)
        with open(path, "rb") as content:
            blob = hashlib.sha1(content.read()).hexdigest()
        os.rename(path, os.path.join(root, "blobs", blob))
        os.symlink(os.path.join("..", "..", "blobs", blob), path)
    with open(os.path.join(root, "refs", "main"), "w") as file:
        file.write("abc123")


def index_stale_inv_freq(at):
    names = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": "model-00001-of-00003.safetensors" for i in range(LAYERS)}
    sharded(at, *llama(), lambda weight_map: weight_map.update(names))


def index_wrong_shard(at):
    sharded(at, *llama(), lambda weight_map: weight_map.update({"model.norm.weight": "model-00001-of-00003.safetensors"}))


def layer_types_left_by_converter(at):
    folder_of(at, *llama(layer_types=["full_attention"] * LAYERS))


def lfs_pointer(at):
    folder_of(at, llama()[0])
    with open(os.path.join(at, "model.safetensors"), "w") as file:
        file.write(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n")


def lit_new_yaml(at):
    os.makedirs(at, exist_ok=True)
    torch_file(os.path.join(at, "lit_model.pth"), litgpt(llama()[1]))
    with open(os.path.join(at, "model_config.yaml"), "w") as file:
        file.write(LIT_YAML)


def lit_new_with_hf_config(at):
    folder_of(at, llama()[0])
    lit_new_yaml(at)


def llama2c_ckpt(at):
    os.makedirs(at, exist_ok=True)
    weights = {"tok_embeddings.weight": llama()[1]["model.embed_tokens.weight"]}
    args = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": 2, "vocab_size": VOCAB, "max_seq_len": POSITIONS}
    torch_file(os.path.join(at, "ckpt.pt"), training_of(weights, args))


def llama_bare_names(at):
    config, tensors = llama(tied=True)
    folder_of(at, config, renamed(tensors, lambda name: name.removeprefix("model.")))


def max_sequence_length(at):
    folder_of(at, *llama(architectures=["LLaMAForCausalLM"], head_dim=..., max_position_embeddings=...,
                         max_sequence_length=POSITIONS, pad_token_id=-1, rope_parameters=...))


def mistral_as_llama(at):
    folder_of(at, *llama(sliding_window=None))


def module_prefix(at):
    config, tensors = llama()
    folder_of(at, config, renamed(tensors, lambda name: "module." + name))


def nano_other_name(at):
    os.makedirs(at, exist_ok=True)
    args = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": POSITIONS, "bias": True,
            "vocab_size": VOCAB, "dropout": 0.0}
    torch_file(os.path.join(at, "ckpt_10000.pt"), training_of(nano(gpt2()[1]), args))


def only_consolidated(at):
    folder_of(at, *llama(), file="consolidated.safetensors")


def peft_adapter(at):
    folder_of(at, None)
    write_json(os.path.join(at, "adapter_config.json"), {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8})
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": Tensor((2, WIDTH))}
    safetensors(os.path.join(at, "adapter_model.safetensors"), lora)


def python_nan_infinity(at):
    folder_of(at, *llama(my_limit=float("inf")))


def quantization_config_left(at):
    folder_of(at, *llama(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True,
                                              "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}))


def rope_linear_factor_1(at):
    folder_of(at, *llama(rope_parameters=..., rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 1.0}))


def swish_alias(at):
    folder_of(at, *llama(hidden_act="swish"))


def symlink_broken_readme(at):
    folder_of(at, *llama())
    os.symlink("../../blobs/gone", os.path.join(at, "README.md"))


def tied_flag_but_own_head(at):
    config, tensors = llama()
    folder_of(at, changed(config, {"tie_word_embeddings": True}), tensors)


def v5_as_saved(at):
    folder_of(at, *llama(rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}))


def v_head(at):
    config, tensors = llama()
    tensors["v_head.summary.weight"], tensors["v_head.summary.bias"] = Tensor((1, WIDTH)), Tensor((1,))
    folder_of(at, config, tensors)


def wrapped_state_dict(at):
    config, tensors = llama()
    folder_of(at, config)
    torch_file(os.path.join(at, "pytorch_model.bin"), {"state_dict": tensors, "epoch": 1})


FAULTS = [
    config_bom, extra_state, extra_state_none, fp8, gpt2_both_names, gptq, hub_cache_root, index_stale_inv_freq,
    index_wrong_shard, layer_types_left_by_converter, lfs_pointer, lit_new_with_hf_config, lit_new_yaml, llama2c_ckpt,
    llama_bare_names, max_sequence_length, mistral_as_llama, module_prefix, nano_other_name, only_consolidated,
    peft_adapter, python_nan_infinity, quantization_config_left, rope_linear_factor_1, swish_alias,
    symlink_broken_readme, tied_flag_but_own_head, v5_as_saved, v_head, wrapped_state_dict,
]

# Further cases of the same kinds.


def in_type(tensors, dtype):
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def plain(make, dtype="F32", /, file="model.safetensors", change=lambda tensors: tensors, **changes):
    def write(at):
        config, tensors = make(**changes)
        folder_of(at, config, change(in_type(tensors, dtype) if dtype != "F32" else tensors), file)

    return write


def with_head(name, of):
    """Returns a function that adds a head, a copy of the embedding `of`."""
    def add(tensors):
        return {**tensors, name: tensors[of]}

    return add


def own_head(tensors):
    return {**tensors, "lm_head.weight": Tensor((VOCAB, WIDTH), seed=99)}


def idle_generation(at):
    folder_of(at, *llama())
    write_json(os.path.join(at, "generation_config.json"), {
        "do_sample": False, "temperature": 0.9, "top_p": 0.6, "early_stopping": True, "pad_token_id": -1, "eos_token_id": 0})


MORE = {
    # Every family, tied and untied, in every type.
    "llama_plain": plain(llama),
    "llama_bf16": plain(llama, "BF16", dtype="bfloat16"),
    "llama_tied_f16": plain(llama, "F16", tied=True, dtype="float16"),
    "llama_v4": plain(llama, dtype=..., torch_dtype="float32", rope_parameters=..., rope_theta=500000.0, rope_scaling=None),
    "llama_dynamic": plain(llama, rope_parameters={"rope_theta": 500.0, "rope_type": "dynamic", "factor": 1.0}),
    "llama_dynamic_2": plain(llama, rope_parameters=..., rope_theta=500.0, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama_llama3_1": plain(llama, rope_parameters={"rope_theta": 500.0, "rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0,
                                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
    "llama_yarn_1": plain(llama, rope_parameters={"rope_theta": 500.0, "rope_type": "yarn", "factor": 1.0}),
    "gpt2_plain": plain(gpt2),
    "gpt2_f16_hub_names": plain(gpt2, "F16", change=lambda t: renamed(t, lambda n: n.removeprefix("transformer.")), dtype="float16"),
    "gpt2_inverse_scale": plain(gpt2, scale_attn_by_inverse_layer_idx=True),
    "gpt_neox_plain": plain(gpt_neox),
    "gpt_neox_tied_bf16": plain(gpt_neox, "BF16", tied=True, torch_dtype="bfloat16"),
    "gpt_neox_v5": plain(gpt_neox, rotary_emb_base=..., rotary_pct=..., torch_dtype=..., dtype="float32", use_parallel_residual=False,
                         rope_parameters={"rope_theta": 50000.0, "rope_type": "default", "partial_rotary_factor": 1.0}),
    "opt_f16": plain(opt, "F16"),
    "opt_plain_bin": plain(opt, file="pytorch_model.bin", torch_dtype="float32"),
    "mpt_bf16": plain(mpt, "BF16"),
    "mpt_plain": plain(mpt, torch_dtype="float32"),
    # Heads.
    "gpt2_head_copy": plain(gpt2, change=with_head("lm_head.weight", "transformer.wte.weight")),
    "gpt2_untied_flag_same_head": plain(gpt2, change=with_head("lm_head.weight", "transformer.wte.weight"), tie_word_embeddings=False),
    "gpt2_own_head": plain(gpt2, change=own_head),
    "gpt2_untied_own_head": plain(gpt2, change=own_head, tie_word_embeddings=False),
    "gpt2_untied_no_head": plain(gpt2, tie_word_embeddings=False),
    "opt_own_head": plain(opt, change=own_head, torch_dtype="float32"),
    "mpt_own_head_bin": plain(mpt, change=own_head, file="pytorch_model.bin", torch_dtype="float32"),
    "gpt_neox_own_head_bin": plain(gpt_neox, change=lambda t: {**t, "embed_out.weight": Tensor((VOCAB, WIDTH), seed=99)},
                                   tied=True, file="pytorch_model.bin"),
    "llama_head_copy_other_type": plain(
        llama, change=lambda t: {**t, "model.embed_tokens.weight": t["model.embed_tokens.weight"].to("BF16").to_f32(),
                                 "lm_head.weight": t["model.embed_tokens.weight"].to("BF16")}, tied=True),
    "llama_untied_no_head": plain(llama, change=lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"}),
    # Claims of config.json.
    "gpt2_claims": plain(gpt2, quantization_config={"quant_method": "gptq"}, _attn_implementation="flash_attention_2",
                         auto_map={"AutoModelForCausalLM": "house.House"}, _name_or_path="x", pruned_heads={"0": [1]}),
    "llama_torch_dtype_auto": plain(llama, dtype=..., torch_dtype="auto"),
    "gpt2_alias_conflict": plain(gpt2, num_hidden_layers=LAYERS, n_layer=12),
    "mpt_both_names": plain(mpt, num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, torch_dtype="float32"),
    "llama_lists": plain(llama, layer_types=["full_attention", "sliding_attention"] * 2, attention_types=[[["global", "local"], 2]],
                         num_heads_per_layer=[4, 4, 4, 4]),
    # Cases that transformers warns about.
    "llama_ids_without_rows": plain(llama, eos_token_id=[0, 128001], bos_token_id=128000, pad_token_id=32000),
    "gpt2_default_ids": plain(gpt2, bos_token_id=..., eos_token_id=...),
    "llama_how_to_run": plain(llama, gradient_checkpointing=True, use_cache=False, is_causal=True, max_length=50),
    "llama_idle_generation": idle_generation,
    # Names.
    "llama_compiled": plain(llama, change=lambda t: renamed(t, lambda n: "_orig_mod." + n)),
    "llama_lightning": plain(llama, change=lambda t: renamed(t, lambda n: "model." + n)),
    "gpt_neox_bare": plain(gpt_neox, change=lambda t: renamed(t, lambda n: n.removeprefix("gpt_neox.")), tied=True),
    "mpt_bare": plain(mpt, change=lambda t: renamed(t, lambda n: n.removeprefix("transformer.")), torch_dtype="float32"),
    "llama_other_file": plain(llama, file="tiny_llama.safetensors"),
    "llama_pth": plain(llama, file="weights.pth"),
}


def to_f32(self):
    halves = [b"\0\0" + self.data[i:i + 2] for i in range(0, len(self.data), 2)]
    return Tensor(self.shape, "F32", b"".join(halves))


Tensor.to_f32 = to_f32

FOLDERS = {**{write.__name__: write for write in FAULTS}, **MORE}


def described(folder):
    """Returns file names, config keys, and names, shapes and types of tensors."""
    found = {"files": sorted(os.path.relpath(os.path.join(at, file), folder) for at, _, files in os.walk(folder) for file in files)}
    found["files"] = [name for name in found["files"] if "/blobs/" not in f"/{name}"]
    for name in found["files"]:
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        if name.endswith("config.json") and not name.startswith(("tokenizer", "generation")):
            with open(path, encoding="utf-8-sig") as file:
                text = file.read()
            # A link that was copied as text.
            found[name] = json.loads(text) if text.startswith("{") else None
        if name.endswith(".safetensors"):
            with open(path, "rb") as file:
                size = struct.unpack("<Q", file.read(8))[0]
                if size < 1 << 20:
                    header = json.loads(file.read(size))
                    found[name] = {k: (v["dtype"], v["shape"]) for k, v in header.items() if k != "__metadata__"}
    return found


def compare(there, here):
    """Prints differences; index files name other shards if the tensors are in a different order."""
    differing = 0
    for name in (write.__name__ for write in FAULTS):
        if not os.path.isdir(os.path.join(there, name)):
            print(f"{name}: not in {there}")
            continue
        theirs, ours = described(os.path.join(there, name)), described(os.path.join(here, name))
        for key in sorted(set(theirs) | set(ours)):
            a, b = theirs.get(key), ours.get(key)
            in_shards = key.startswith("model-0") or "/model-0" in key
            if a != b and not in_shards and not ("snapshots" in key and a is None):
                differing += 1
                print(f"{name}: {key}: {a if a is None else json.dumps(a)[:300]} / {b if b is None else json.dumps(b)[:300]}")
    return differing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--compare", metavar="DIR")
    parser.add_argument("out", nargs="?")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    if args.list:
        print("\n".join(FOLDERS))
        return 0
    if not args.out:
        parser.error("OUT is missing")
    for name in args.names or FOLDERS:
        at = os.path.join(args.out, name)
        shutil.rmtree(at, ignore_errors=True)
        FOLDERS[name](at)
    return compare(args.compare, args.out) if args.compare else 0


if __name__ == "__main__":
    sys.exit(main())
