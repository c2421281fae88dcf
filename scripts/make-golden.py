#!/usr/bin/env python3
"""Makes crates/lm/tests/golden anew: what Hugging Face transformers computes for tiny random checkpoints.

    pip install torch==2.11.0 transformers==5.23.0 safetensors
    make golden            # or: python3 scripts/make-golden.py [DIRECTORY]

One folder a case: a checkpoint as `save_pretrained` writes it (config.json, model*.safetensors) and
expected.safetensors with
    inputs, targets      int64 [B, T]
    logits               fp32 [B, T, V]
    losses               fp32 [B, T], nats; loss: their mean
    gradient.NAME        the gradient of the mean loss by every parameter
    gradient_norm        their global 2-norm
    adamw.losses         fp32 [20]: the loss before each of 20 AdamW steps on that batch
    adamw.norms          fp32 [20]: the global gradient norm before clipping at each step
Everything is computed in fp32 with eager attention from the file as it was saved. The shapes are odd on
purpose: widths that are no multiple of 8, head widths of 100 and 10, grouped heads, shards, half precision.
Same versions and machine, same files; another machine may differ in the last bits.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

DEFAULT_DIRECTORY = Path(__file__).resolve().parent.parent / "crates" / "lm" / "tests" / "golden"
BATCH, TIME = 2, 13
STEPS = 20
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


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


CASES = {
    "gpt2-inner": (gpt2(n_layer=2, n_embd=30, n_head=3, n_inner=50), {}),
    "gpt2-inverse-layer-scale": (gpt2(n_layer=3, n_embd=20, n_head=5, scale_attn_by_inverse_layer_idx=True), {}),
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
}


def save_checkpoint(folder, config, options):
    """Writes a random checkpoint whose biases and norms are random too, so that none goes untested."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(options.get("dtype", torch.float32)).save_pretrained(folder, max_shard_size=options.get("max_shard_size", "5GB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if options.get("hub_names"):
        # The files of the hub's first GPT-2 have no prefix, and carry the causal mask as a buffer.
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        positions = config.n_positions
        tensors["h.0.attn.bias"] = torch.tril(torch.ones(positions, positions)).view(1, 1, positions, positions)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # Who wrote a file is no part of the case.
    config_file = folder / "config.json"
    keys = json.loads(config_file.read_text())
    keys.pop("transformers_version", None)
    config_file.write_text(json.dumps(keys, indent=2, sort_keys=True) + "\n")


def position_losses(model, inputs, targets):
    logits = model(inputs, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return logits, losses.view_as(targets)


def expected(folder, config):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens = torch.randint(0, config.vocab_size, (BATCH, TIME + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    logits, losses = position_losses(model, inputs, targets)
    losses.mean().backward()
    out = {"inputs": inputs, "targets": targets, "logits": logits.detach(), "losses": losses.detach(), "loss": losses.detach().mean()}
    for name, parameter in model.named_parameters():
        out[f"gradient.{name}"] = parameter.grad.clone()
    out["gradient_norm"] = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])

    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, foreach=False, fused=False, **ADAMW)
    trajectory, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = position_losses(model, inputs, targets)[1].mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        optimizer.step()
        trajectory.append(loss.item())
    out["adamw.losses"], out["adamw.norms"] = torch.tensor(trajectory), torch.tensor(norms)
    return {name: tensor.contiguous() for name, tensor in out.items()}


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
        save_file(expected(folder, config), folder / "expected.safetensors")
        print(case, sum(file.stat().st_size for file in folder.iterdir()), "bytes", sorted(f.name for f in folder.iterdir()))


if __name__ == "__main__":
    main()
