"""Trains as a PyTorch user would: bench_train.py compares the trainer with this."""

import json
import os
import resource
import sys
import time

import torch
import transformers

SPEED_WEIGHT = 0.2  # of the newest step in the running mean, as in the trainer


def model(shape):
    a = shape["architecture"]
    common = {"vocab_size": shape["vocab_size"], "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    if a["family"] == "gpt2":
        config = transformers.GPT2Config(
            n_layer=a["n_layers"], n_embd=a["d_model"], n_head=a["n_heads"], n_positions=a["max_positions"],
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **common,
        )
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=a["n_layers"], hidden_size=a["d_model"], num_attention_heads=a["n_heads"],
            num_key_value_heads=a["n_kv_heads"], intermediate_size=a["d_ff"], max_position_embeddings=a["max_positions"],
            tie_word_embeddings=a["tied_head"], **common,
        )
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def main():
    shape = json.loads(sys.argv[1])
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(1)
    net = model(shape).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    size = (shape["micro_batch"], shape["block_size"] + 1)

    def loss_of(tokens):
        with torch.autocast("cpu", torch.bfloat16, enabled=shape["precision"] == "bf16-mixed"):
            logits = net(tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    if shape["compile"]:
        loss_of = torch.compile(loss_of)
        loss_of(torch.randint(0, 2048, size)).backward()
        optimizer.zero_grad(set_to_none=True)
    mean = None
    for _ in range(shape["steps"]):
        started = time.monotonic()
        tokens = torch.randint(0, 2048, size)
        loss = loss_of(tokens)
        loss.backward()
        loss.item()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        taken = time.monotonic() - started
        mean = taken if mean is None else mean + SPEED_WEIGHT * (taken - mean)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": size[0] * (size[1] - 1) / mean, "peak_mib": peak}))


if __name__ == "__main__":
    main()
