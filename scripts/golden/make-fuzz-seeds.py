#!/usr/bin/env python3
"""Regenerates fuzz/seeds from crates/slicer/tests/golden and scripts/faults: small files of every
kind that the fuzz targets read.

    python3 scripts/golden/make-fuzz-seeds.py

Files named found-* are inputs that a fuzzer found; they are not touched.
"""

import importlib.util
import io
import json
import struct
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "crates" / "slicer" / "tests" / "golden"
SEEDS = ROOT / "fuzz" / "seeds"

CONFIGS = {
    "gpt2": {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 16, "vocab_size": 32, "layer_norm_epsilon": 1e-5,
             "scale_attn_by_inverse_layer_idx": True, "bias": True, "activation_function": "gelu_new"},
    "llama": {"hidden_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
              "num_hidden_layers": 2, "intermediate_size": 20, "max_position_embeddings": 16, "vocab_size": 30,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu"},
    "gpt_neox": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64,
                 "max_position_embeddings": 16, "vocab_size": 32, "layer_norm_eps": 1e-5, "rotary_pct": 0.25,
                 "rotary_emb_base": 10000, "use_parallel_residual": True, "hidden_act": "gelu",
                 "tie_word_embeddings": False},
    "opt": {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "ffn_dim": 32, "vocab_size": 32,
            "max_position_embeddings": 16, "word_embed_proj_dim": 8, "do_layer_norm_before": True,
            "activation_function": "relu", "tie_word_embeddings": True},
    "mpt": {"d_model": 8, "n_heads": 2, "n_layers": 2, "expansion_ratio": 4, "max_seq_len": 16, "vocab_size": 32,
            "attn_config": {"alibi": True, "alibi_bias_max": 8}, "no_bias": True, "tie_word_embeddings": True},
    "mosaic_gpt": {"d_model": 8, "n_heads": 2, "n_layers": 2, "mlp_ratio": 4, "max_seq_len": 16, "vocab_size": 32,
                   "alibi": True, "alibi_bias_max": 8, "attn_qk_ln": True, "no_bias": True},
}


def write(target, name, data):
    (SEEDS / target).mkdir(parents=True, exist_ok=True)
    (SEEDS / target / name).write_bytes(data)


def header(tensors):
    text = json.dumps(tensors, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text


def headers():
    for case in ("gpt2-views", "llama-bf16-sharded", "gpt2-tied"):
        file = (GOLDEN / case / "expected.safetensors").read_bytes()
        write("safetensors_header", case, file[:8 + struct.unpack("<Q", file[:8])[0]])
    write("safetensors_header", "empty", header({}))
    write("safetensors_header", "no-bytes", header({
        "__metadata__": {"format": "pt", "note": "\u00e9\n"},
        "a": {"dtype": "F32", "shape": [2, 0], "data_offsets": [0, 0]},
        "b.c/d-e_f": {"dtype": "BOOL", "shape": [], "data_offsets": [0, 1]}}) + b"\1")
    every = {}
    for i, dtype in enumerate(("F64", "I64", "I32", "I16", "BF16", "F16", "I8", "U8")):
        every[dtype] = {"dtype": dtype, "shape": [1] * i, "data_offsets": [0, 8]}
    write("safetensors_header", "every-dtype", header(every))
    write("safetensors_header", "wraps", header({
        "a": {"dtype": "F64", "shape": [1 << 61, 8], "data_offsets": [0, 0]},
        "b": {"dtype": "U8", "shape": [(1 << 64) - 1], "data_offsets": [0, (1 << 64) - 1]}}))


def indexes():
    index = json.loads((GOLDEN / "llama-bf16-sharded" / "pytorch_model.bin.index.json").read_text())
    write("shard_index", "pickle", json.dumps(index).encode())
    for name, file in (("safetensors", "model-0000{}-of-00002.safetensors"), ("above", "../model-0000{}.safetensors"),
                       ("absolute", "/m{}.bin"), ("backslash", "..\\m{}.bin"), ("hidden", ".m{}.bin")):
        weights = {"a.weight": file.format(1), "b": file.format(1), "c/d": file.format(2)}
        index = {"metadata": {"total_size": 8, "deep": [[{}]]}, "weight_map": weights}
        write("shard_index", name, json.dumps(index).encode())
    write("shard_index", "twice", b'{"weight_map":{"a":"m.bin","a":"n.bin"}}')


def entries(file):
    with zipfile.ZipFile(file) as archive:
        return {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}


def small_archive(parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo("m/" + name), data)
    return file.getvalue()


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def one_tensor(before, after, keys=("w",)):
    """Returns a pickle of a dict of tensors of 2 x 3 numbers, all in storage 0."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x06tQ"
    tensor = (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02K\x03\x86K\x03K\x01\x86"
              b"\x89ccollections\nOrderedDict\n)RtR")
    items = b"".join(text(key) + tensor for key in keys)
    return b"\x80\x02" + before + b"}q\x00(" + items + b"u" + after + b"."


def pickles():
    for file in ("gpt2-tied/pytorch_model.bin", "llama-from-type/pytorch_model.bin", "gpt2-views/pytorch_model.bin",
                 "nanogpt-compiled/ckpt.pt", "nanogpt-no-bias/ckpt.pt", "litgpt/lit_model.pth",
                 "not-read/transposed.bin", "not-read/module.bin", "not-read/float8.bin", "not-read/complex.bin"):
        file = GOLDEN / file
        case = file.stem if file.parent.name == "not-read" else file.parent.name
        parts = entries(file)
        write("pickle", case, parts["data.pkl"])
        if case in ("gpt2-views", "transposed", "module", "llama-from-type"):
            write("torch_archive", case, file.read_bytes())
        # zipfile's own form: no padding, no 64-bit fields.
        if case in ("nanogpt-no-bias", "litgpt"):
            write("torch_archive", case, small_archive(parts))
    metadata = b"}" + text("_metadata") + b"}sb"
    args = b"".join(text(key) + b"K" + bytes([value]) for key, value in (
        ("n_layer", 1), ("n_head", 1), ("n_embd", 4), ("block_size", 4), ("vocab_size", 2)))
    nanogpt = b"}" + text("model_args") + b"}(" + args + text("bias") + b"\x89" + text("dropout") + b"G" + bytes(8)
    nanogpt += b"us" + text("model")
    small = {"nanogpt": one_tensor(nanogpt, b"s", ("_orig_mod.transformer.ln_f.weight",)), "tensor": one_tensor(b"", b""), "attributes": one_tensor(b"", metadata),
             "model": one_tensor(b"}" + text("model"), b"s"), "two": one_tensor(b"", b"", ("a.b", "c"))}
    values = (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01aJ\xff\xff\xff\xffK\x01](K\x01M\x00\x01"
              b"\x8a\x05\x00\x00\x00\x00\x01G\x3f\xf8\x00\x00\x00\x00\x00\x00e\x8c\x01b\x88\x89\x86\x85N\x87"
              b"\x8c\x05torch\x8c\x0dDoubleStorage\x93h\x00j\x00\x00\x00\x00)tu.")
    write("pickle", "values", values)
    for name, data in small.items():
        write("pickle", name, data)
        write("torch_archive", name, small_archive({"data.pkl": data, "byteorder": b"little", "data/0": bytes(24)}))
    write("torch_archive", "legacy", (GOLDEN / "not-read" / "legacy.bin").read_bytes())
    write("torch_archive", "nothing", small_archive({}))


def configs():
    for family, keys in CONFIGS.items():
        config = {"model_type": family, "initializer_range": 0.02, **keys}
        write("decoder_config", family, json.dumps(config).encode())
    write("decoder_config", "litgpt", (GOLDEN / "litgpt" / "lit_config.json").read_bytes())
    largest = {"model_type": "llama", "hidden_size": 1 << 20, "num_attention_heads": 1, "num_hidden_layers": 4,
               "intermediate_size": 1 << 20, "max_position_embeddings": 1 << 20, "vocab_size": 1 << 20,
               "rms_norm_eps": 1e-5}
    write("decoder_config", "largest", json.dumps(largest).encode())


def tokenizers():
    """Writes the tokenizers of scripts/faults/tokenizers.py, with a vocabulary of a few tokens."""
    spec = importlib.util.spec_from_file_location("faults", Path(__file__).resolve().parents[1] / "faults" / "tokenizers.py")
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    few = [("a", "b"), ("ab", "c")]
    faults.byte_level = lambda special, merges=0: ({token: at for at, token in enumerate([*special, "a", "b", "c", "ab", "abc"])}, few)
    files = {"tokenizer_json": ["tokenizer.json"], "vocabulary_pair": ["vocab.json", "merges.txt"], "sentencepiece": ["tokenizer.model"]}
    written = set()
    with tempfile.TemporaryDirectory() as folder:
        for name, make in faults.CASES.items():
            made = Path(folder) / name
            make(made)
            for target, names in files.items():
                if all((made / file).exists() for file in names):
                    data = b"\0".join((made / file).read_bytes() for file in names)
                    if data not in written and len(data) < 1 << 16:
                        write(target, name, data)
                    written.add(data)
    field = faults.field
    piece = lambda text, kind: field(1, field(1, text.encode()) + field(2, -1.0) + field(3, kind))
    few = piece("<unk>", 2) + piece("<s>", 3) + piece("</s>", 3) + piece("\u2581a", 1)
    write("sentencepiece", "few", few)
    write("sentencepiece", "bpe", few + field(2, field(3, 2) + field(44, b"?") + field(46, b"<s>")))
    write("sentencepiece", "kinds", few + piece("user", 4) + piece("\0", 5) + piece("<0x41>", 6))
    write("sentencepiece", "rules", few + field(3, field(2, bytes(8)) + field(3, 0)) + field(5, field(2, b"x")))


if __name__ == "__main__":
    headers()
    indexes()
    pickles()
    configs()
    tokenizers()
