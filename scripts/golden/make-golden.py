#!/usr/bin/env python3
"""Regenerates crates/lm/tests/golden: what Hugging Face transformers computes for tiny random
checkpoints.

    pip install torch==2.11.0 transformers==5.23.0 safetensors      # bf16 and curve files: 2.15.0 and 5.24.0
    make golden            # or: python3 scripts/golden/make-golden.py [DIRECTORY]

One folder per case: a checkpoint as `save_pretrained` writes it (config.json, model*.safetensors)
and expected.safetensors with
    inputs, targets      int64 [B, T]
    logits               fp32 [B, T, V]
    losses               fp32 [B, T], nats; loss: their mean
    gradient.NAME        the gradient of the mean loss with respect to every parameter
    gradient_norm        their global 2-norm
    adamw.losses         fp32 [20]: the loss before each of 20 AdamW steps on that batch
    adamw.norms          fp32 [20]: the global gradient norm before clipping at each step
    sliced.layers        int64 [N]: source layers of a model cut from this one
    sliced.logits, sliced.losses    what that model computes for the same inputs and targets
One case of each family also has bf16.safetensors, for the same batch, with PREFIX `mixed.` (fp32
weights under torch.autocast) and `pure.` (everything in bf16):
    PREFIX.loss                     the mean loss
    PREFIX.gradient.NAME            its gradient with respect to every parameter, fp32
and two cases have curve.safetensors, from a training with a new batch at each step:
    tokens               int32 [200, B, T + 1]
    losses               fp32 [200]: the loss before each AdamW step
Unless stated otherwise, everything is computed in fp32 with eager attention from the saved file.
The shapes are deliberately odd: widths that are not a multiple of 8, head widths of 100, 11, 9, 7,
5 and 3, grouped heads, head counts that are not a power of two, shards, half precision, names
without their prefix. transformers has no mosaic_gpt, so MosaicGpt below implements it. The same
versions on the same machine give the same files; another machine may differ in the last bits.
"""

import copy
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MptConfig, OPTConfig

DEFAULT_DIRECTORY = Path(__file__).resolve().parents[2] / "crates" / "lm" / "tests" / "golden"
BATCH, TIME = 2, 13
STEPS = 20
CURVE_STEPS = 200
# Must match crates/lm/tests/golden.rs.
ADAMW = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0


def gpt2(**keys):
    shared = {"vocab_size": 61, "n_positions": 17, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**shared, initializer_range=0.2, bos_token_id=0, eos_token_id=0, **keys)


def llama(**keys):
    shared = {"vocab_size": 67, "max_position_embeddings": 19}
    return LlamaConfig(**shared, initializer_range=0.2, bos_token_id=0, eos_token_id=0, **keys)


def gpt_neox(**keys):
    shared = {"vocab_size": 59, "max_position_embeddings": 19, "attention_dropout": 0.0, "hidden_dropout": 0.0}
    return GPTNeoXConfig(**shared, initializer_range=0.2, bos_token_id=0, eos_token_id=0, **keys)


def opt(**keys):
    # transformers gives the padding token's row no gradient as an input; no case has that token in
    # its text.
    shared = {"vocab_size": 53, "max_position_embeddings": 17, "dropout": 0.0, "pad_token_id": 1}
    return OPTConfig(**shared, init_std=0.2, bos_token_id=2, eos_token_id=2, **keys)


def mpt(**keys):
    return MptConfig(vocab_size=57, max_seq_len=21, initializer_range=0.2, **keys)


def mosaic_gpt(**keys):
    """The keys of MPT-1.3B's config.json."""
    shared = {"model_type": "mosaic_gpt", "architectures": ["MosaicGPT"], "vocab_size": 51, "max_seq_len": 18, "alibi": True,
              "alibi_bias_max": 8, "attn_clip_qkv": None, "attn_impl": "torch", "attn_pdrop": 0, "attn_qk_ln": True,
              "attn_uses_sequence_id": False, "emb_pdrop": 0, "embedding_fraction": 1.0, "init_std": 0.2, "logit_scale": None,
              "low_precision_layernorm": True, "mlp_ratio": 4, "no_bias": True, "prefix_lm": False, "resid_pdrop": 0,
              "softmax_scale": None, "use_cache": False}
    return SimpleNamespace(**(shared | keys))


class MosaicGpt(torch.nn.Module):
    """mosaic_gpt as published with MPT-1.3B, in fp32: pre-norm blocks, ALiBi, a norm over the whole
    width of queries and keys, no biases, the head tied to the embedding. Follows its definition in
    MosaicML's llm-foundry."""

    class Block(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            width, ratio, linear = config.d_model, config.mlp_ratio, torch.nn.Linear
            norm = lambda: torch.nn.LayerNorm(width, bias=False)
            attn = {"Wqkv": linear(width, 3 * width, bias=False), "out_proj": linear(width, width, bias=False)}
            if config.attn_qk_ln:
                attn |= {"q_ln": norm(), "k_ln": norm()}
            self.attn = torch.nn.ModuleDict(attn)
            self.mlp = torch.nn.ModuleDict({"mlp_up": linear(width, ratio * width, bias=False),
                                            "mlp_down": linear(ratio * width, width, bias=False)})
            self.ln_1, self.ln_2 = norm(), norm()
            self.heads = config.n_heads

        def attend(self, x, bias):
            query, key, value = self.attn["Wqkv"](x).chunk(3, dim=-1)
            if "q_ln" in self.attn:
                query, key = self.attn["q_ln"](query), self.attn["k_ln"](key)
            query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
            scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
            return self.attn["out_proj"]((scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2))

        def forward(self, x, bias):
            x = x + self.attend(self.ln_1(x), bias)
            return x + self.mlp["mlp_down"](torch.nn.functional.gelu(self.mlp["mlp_up"](self.ln_2(x))))

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = torch.nn.ModuleDict({
            "wte": torch.nn.Embedding(config.vocab_size, config.d_model),
            "blocks": torch.nn.ModuleList(self.Block(config) for _ in range(config.n_layers)),
            "ln_f": torch.nn.LayerNorm(config.d_model, bias=False),
        })
        for parameter in self.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=config.init_std)

    def bias(self, time):
        """Returns the causal mask with ALiBi: head h of H subtracts 2^(-max (h+1)/H) times the
        distance."""
        heads, steepness = self.config.n_heads, self.config.alibi_bias_max
        slopes = torch.tensor([2.0 ** (-steepness * (head + 1) / heads) for head in range(heads)])
        at = torch.arange(time)
        distance = (at[None, :] - at[:, None]).float()
        return (slopes[:, None, None] * distance).masked_fill(distance > 0, -math.inf)

    def forward(self, tokens, use_cache=False):
        x = self.transformer["wte"](tokens)
        for block in self.transformer["blocks"]:
            x = block(x, self.bias(tokens.shape[1]))
        return SimpleNamespace(logits=self.transformer["ln_f"](x) @ self.transformer["wte"].weight.T)

    def save_pretrained(self, folder, max_shard_size):
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(vars(self.config)))

    @classmethod
    def load(cls, folder, config):
        model = cls(config)
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
        return model


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


def neox_rope(theta, share):
    return rope(theta) | {"partial_rotary_factor": share}


CASES = {
    "gpt2-inner": (gpt2(n_layer=2, n_embd=30, n_head=3, n_inner=50), {}),
    "gpt2-inverse-layer-scale": (gpt2(n_layer=3, n_embd=20, n_head=5, scale_attn_by_inverse_layer_idx=True), {"slice": [0, 1]}),
    "gpt2-f16-hub-names": (gpt2(n_layer=1, n_embd=26, n_head=2), {"dtype": torch.float16, "hub_names": True}),
    "llama-head-100": (
        llama(num_hidden_layers=1, hidden_size=12, num_attention_heads=6, num_key_value_heads=2, head_dim=100,
              intermediate_size=27, tie_word_embeddings=False, rope_parameters=rope(10_000.0)),
        {},
    ),
    "llama-tied-sharded": (
        llama(num_hidden_layers=2, hidden_size=36, num_attention_heads=6, num_key_value_heads=2,
              intermediate_size=45, tie_word_embeddings=True, rope_parameters=rope(500_000.0)),
        {"max_shard_size": "24KB"},
    ),
    "llama-bf16": (
        llama(num_hidden_layers=2, hidden_size=30, num_attention_heads=3, num_key_value_heads=3,
              intermediate_size=41, tie_word_embeddings=False, rms_norm_eps=1e-5, rope_parameters=rope(10_000.0)),
        {"dtype": torch.bfloat16},
    ),
    "gpt2-no-bias": (
        gpt2(n_layer=3, n_embd=18, n_head=2, n_inner=23, scale_attn_by_inverse_layer_idx=True),
        {"no_bias": True, "slice": [0, 1]},
    ),
    "gpt2-no-bias-bf16-hub-names": (
        gpt2(n_layer=3, n_embd=15, n_head=3, n_inner=19), {"no_bias": True, "dtype": torch.bfloat16, "hub_names": True},
    ),
    "gpt2-no-bias-sharded": (
        gpt2(n_layer=2, n_embd=21, n_head=3, n_inner=25), {"no_bias": True, "max_shard_size": "12KB"},
    ),
    "gpt_neox-pythia": (
        gpt_neox(num_hidden_layers=3, hidden_size=22, num_attention_heads=2, intermediate_size=27, hidden_act="gelu",
                 use_parallel_residual=True, rope_parameters=neox_rope(10_000.0, 0.25)),
        {"neox_buffers": True},
    ),
    "gpt_neox-sequential-f16-sharded": (
        gpt_neox(num_hidden_layers=3, hidden_size=18, num_attention_heads=3, intermediate_size=25, hidden_act="gelu_new",
                 use_parallel_residual=False, rope_parameters=neox_rope(25_000.0, 1.0)),
        {"dtype": torch.float16, "max_shard_size": "8KB"},
    ),
    "gpt_neox-tied-bf16": (
        gpt_neox(num_hidden_layers=2, hidden_size=25, num_attention_heads=5, intermediate_size=26, hidden_act="gelu_fast",
                 tie_word_embeddings=True, layer_norm_eps=1e-4, rope_parameters=neox_rope(10_000.0, 0.9)),
        {"dtype": torch.bfloat16},
    ),
    "opt-sharded": (
        opt(num_hidden_layers=3, hidden_size=21, num_attention_heads=3, ffn_dim=29), {"max_shard_size": "12KB"},
    ),
    "opt-f16": (opt(num_hidden_layers=3, hidden_size=20, num_attention_heads=4, ffn_dim=23), {"dtype": torch.float16}),
    "opt-no-prefix": (opt(num_hidden_layers=2, hidden_size=18, num_attention_heads=2, ffn_dim=31), {"prefix": "model."}),
    "mpt-5-heads": (mpt(n_layers=3, d_model=15, n_heads=5), {}),
    "mpt-3-heads-bf16": (mpt(n_layers=3, d_model=18, n_heads=3), {"dtype": torch.bfloat16}),
    "mpt-4-heads-sharded": (mpt(n_layers=2, d_model=20, n_heads=4, layer_norm_epsilon=1e-4), {"max_shard_size": "12KB"}),
    "mosaic_gpt-qk-norm": (mosaic_gpt(n_layers=3, d_model=20, n_heads=4), {}),
    "mosaic_gpt-plain-f16": (
        mosaic_gpt(n_layers=3, d_model=18, n_heads=2, attn_qk_ln=False, mlp_ratio=3, alibi_bias_max=6), {"dtype": torch.float16},
    ),
    "mosaic_gpt-8-heads-bf16": (mosaic_gpt(n_layers=2, d_model=24, n_heads=8, mlp_ratio=2), {"dtype": torch.bfloat16}),
}


# One case of each family.
BF16_CASES = {"gpt2-inner", "llama-tied-sharded", "gpt_neox-pythia", "opt-sharded", "mpt-5-heads", "mosaic_gpt-qk-norm"}
CURVE_CASES = {"gpt2-inner", "llama-tied-sharded"}


def save_checkpoint(folder, config, options):
    """Writes a random checkpoint whose biases and norms are random too, so that all of them are
    tested."""
    if config.model_type == "mosaic_gpt":
        model = MosaicGpt(config)
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(options.get("dtype", torch.float32)).save_pretrained(folder, max_shard_size=options.get("max_shard_size", "5GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in sorted(folder.glob("*.safetensors")):
        save_file(rename(load_file(file), config, options), file, metadata={"format": "pt"})
    index_file = folder / "model.safetensors.index.json"
    if index_file.exists() and options.get("no_bias"):
        index = json.loads(index_file.read_text())
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if not name.endswith(".bias")}
        index_file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    # The writer of a file is not part of the case.
    config_file = folder / "config.json"
    keys = json.loads(config_file.read_text())
    keys.pop("transformers_version", None)
    if options.get("no_bias"):
        keys["bias"] = False
    config_file.write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n")


def rename(tensors, config, options):
    """Returns a file's tensors as the case needs them: other names, additional buffers, biases left
    out."""
    prefix = "transformer." if options.get("hub_names") else options.get("prefix", "")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if options.get("no_bias"):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}
    if options.get("hub_names"):
        # The files of the hub's first GPT-2 have no prefix, and carry the causal mask as a buffer.
        positions = config.n_positions
        tensors["h.0.attn.bias"] = torch.tril(torch.ones(positions, positions)).view(1, 1, positions, positions)
    if options.get("neox_buffers"):
        # As in Pythia's files.
        positions = config.max_position_embeddings
        mask = torch.tril(torch.ones(positions, positions, dtype=torch.uint8)).view(1, 1, positions, positions)
        tensors["gpt_neox.layers.0.attention.bias"] = mask
        tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
        tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(1)
    return tensors


def position_losses(model, inputs, targets):
    logits = model(inputs, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return logits, losses.view_as(targets)


def load(folder, config, options):
    if config.model_type == "mosaic_gpt":
        return MosaicGpt.load(folder, config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if options.get("no_bias"):
        # transformers sets biases that the file lacks to zero; they must not be trained here.
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                assert not parameter.any(), name
                parameter.requires_grad_(False)
    return model


def name_in_files(config, name):
    """Returns the name of a parameter in files; transformers 5 uses another one for GPT-NeoX's head."""
    return "embed_out.weight" if config.model_type == "gpt_neox" and name == "lm_head.weight" else name


def sliced(model, layers):
    """Returns a copy of `model` with only these of its blocks, in this order."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, blocks in module.named_children():
            if name in ("h", "layers", "blocks") and isinstance(blocks, torch.nn.ModuleList):
                setattr(module, name, torch.nn.ModuleList(copy.deepcopy(blocks[layer]) for layer in layers))
                model.config.num_hidden_layers = len(layers)
                return model
    raise SystemExit("a model without blocks")


def default_slice(config):
    """Skips one layer and repeats another, if there are enough layers."""
    depth = getattr(config, "num_hidden_layers", None) or config.n_layers
    return {1: [0, 0], 2: [1, 0, 1], 3: [0, 2, 2]}[depth]


def expected(folder, config, options):
    model = load(folder, config, options)
    # Token 1 pads in OPT.
    lowest = 2 if config.model_type == "opt" else 0
    tokens = torch.randint(lowest, config.vocab_size, (BATCH, TIME + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    logits, losses = position_losses(model, inputs, targets)
    losses.mean().backward()
    out = {"inputs": inputs, "targets": targets, "logits": logits.detach(), "losses": losses.detach(), "loss": losses.detach().mean()}
    learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, parameter in learned:
        out[f"gradient.{name_in_files(config, name)}"] = parameter.grad.clone()
    out["gradient_norm"] = torch.nn.utils.get_total_norm([parameter.grad for _, parameter in learned])

    layers = options.get("slice", default_slice(config))
    with torch.no_grad():
        sliced_logits, sliced_losses = position_losses(sliced(model, layers), inputs, targets)
    out |= {"sliced.layers": torch.tensor(layers), "sliced.logits": sliced_logits, "sliced.losses": sliced_losses}

    learned, optimizer = adamw(model)
    steps = [train_step(model, learned, optimizer, inputs, targets) for _ in range(STEPS)]
    out["adamw.losses"], out["adamw.norms"] = (torch.tensor(values) for values in zip(*steps))
    return {name: tensor.contiguous() for name, tensor in out.items()}


def bf16(folder, config, options):
    batch = load_file(folder / "expected.safetensors")
    out = {}
    for prefix in ("mixed", "pure"):
        model = load(folder, config, options)
        if prefix == "pure":
            model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=prefix == "mixed"):
            logits = model(batch["inputs"], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        out[f"{prefix}.loss"] = loss.detach()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                out[f"{prefix}.gradient.{name_in_files(config, name)}"] = parameter.grad.float().contiguous()
    return out


def adamw(model):
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0},
    ]
    return learned, torch.optim.AdamW(groups, foreach=False, fused=False, **ADAMW)


def train_step(model, learned, optimizer, inputs, targets):
    """Makes a step; returns the loss before it and the gradient's norm before clipping."""
    optimizer.zero_grad()
    loss = position_losses(model, inputs, targets)[1].mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(learned, MAX_NORM).item()
    optimizer.step()
    return loss.item(), norm


def curve(folder, config, options):
    """Trains on text in which three of four tokens follow from the previous one, so that there is
    something to learn."""
    model = load(folder, config, options)
    shape = (CURVE_STEPS, BATCH, TIME + 1)
    tokens, follows = torch.randint(0, config.vocab_size, shape), torch.rand(shape) < 0.75
    for at in range(1, TIME + 1):
        tokens[..., at] = torch.where(follows[..., at], (tokens[..., at - 1] * 7 + 3) % config.vocab_size, tokens[..., at])
    learned, optimizer = adamw(model)
    losses = [train_step(model, learned, optimizer, step[:, :-1], step[:, 1:])[0] for step in tokens]
    return {"tokens": tokens.int(), "losses": torch.tensor(losses)}


def main():
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DIRECTORY
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for seed, (case, (config, options)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        folder = directory / case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_checkpoint(folder, config, options)
        save_file(expected(folder, config, options), folder / "expected.safetensors")
        torch.manual_seed(1000 + seed)
        if case in BF16_CASES:
            save_file(bf16(folder, config, options), folder / "bf16.safetensors")
        if case in CURVE_CASES:
            save_file(curve(folder, config, options), folder / "curve.safetensors")
        print(case, sum(file.stat().st_size for file in folder.iterdir()), "bytes", sorted(f.name for f in folder.iterdir()))


if __name__ == "__main__":
    main()
