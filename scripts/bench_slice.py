"""What a slice costs: time beside `cp` and mergekit, memory, and bytes that pass through the slicer.

A Llama checkpoint of 26 layers (2.9 GB, fp16, three shards, random bits) is sliced to its first 13 layers by the slicer
service: one process with a scheduler and a Postgres of its own. In turns with it, coreutils' cp copies a file of the
output's size, and mergekit makes the same slice with its passthrough method.

Ours, from claim to end by the database's clock: plan, copy, hash, fsync, publish. cp neither hashes nor syncs.
"""

import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import services

LAYERS, KEPT = 26, 13
HIDDEN, FF, VOCAB = 2048, 5632, 32000
SHARDS = 3


def checkpoint(folder):
    """A Llama checkpoint in the layout that save_pretrained writes."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FF,
        "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": VOCAB,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [("model.embed_tokens.weight", [VOCAB, HIDDEN])]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        tensors += [(f"{name}self_attn.{x}_proj.weight", [HIDDEN, HIDDEN]) for x in "qkvo"]
        tensors += [(f"{name}mlp.{x}_proj.weight", [FF, HIDDEN]) for x in ("gate", "up")]
        tensors += [(f"{name}mlp.down_proj.weight", [HIDDEN, FF])]
        tensors += [(f"{name}{x}_layernorm.weight", [HIDDEN]) for x in ("input", "post_attention")]
    tensors += [("model.norm.weight", [HIDDEN]), ("lm_head.weight", [VOCAB, HIDDEN])]
    per_shard = -(-len(tensors) // SHARDS)
    weight_map = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape in sorted(tensors[shard * per_shard:(shard + 1) * per_shard]):
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
            weight_map[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            while at > 0:
                piece = min(at, 64 << 20)
                file.write(os.urandom(piece))
                at -= piece
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def timed(command, **kwargs):
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)
    return time.monotonic() - started


class Slicer:
    def __init__(self, cluster):
        self.cluster = cluster

    def slice(self, uri, layers):
        """A slice: its artifact, its seconds in the service, and its seconds from the command to its end."""
        source = {"checkpoint": uri, "layers": layers, "layer_map": "first", "inherit": "all"}
        path = self.cluster.directory / "job.json"
        path.write_text(json.dumps({"kind": "slice", "seed": 1, "source": {"checkpoint": source}}))
        started = time.monotonic()
        done = self.cluster.inheritune("job", "submit", path, "--watch")
        wall = time.monotonic() - started
        times = [datetime.fromisoformat(done[key].replace("Z", "+00:00")) for key in ("started_at", "finished_at")]
        return done["outcome"]["sliced"]["checkpoint_artifact_id"], (times[1] - times[0]).total_seconds(), wall

    def forget(self, artifact):
        """Gives the disk back."""
        self.cluster.inheritune("artifact", "delete", artifact, "--yes")

    def weights(self, artifact):
        location = self.cluster.inheritune("artifact", "get", artifact)["artifact"]["location"]
        return self.cluster.objects / location / "model.safetensors"


class Mergekit:
    def __init__(self, python, model, directory):
        self.command, self.model, self.directory = Path(python).parent / "mergekit-yaml", model, directory

    def slice(self, layers):
        recipe, out = self.directory / "mergekit.yml", self.directory / "mergekit"
        recipe.write_text(
            "merge_method: passthrough\ndtype: float16\nslices:\n  - sources:\n"
            f"      - model: {self.model}\n        layer_range: [0, {layers}]\n"
        )
        seconds = timed([self.command, recipe, out, "--no-copy-tokenizer"], env={**os.environ, "HF_HUB_OFFLINE": "1"})
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        shutil.rmtree(out)
        return seconds, size


def same_tensors(a, b):
    """Whether each tensor of the target `a` has the bytes that it has in the folder `b`."""
    def header(path):
        with open(path, "rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            return 8 + size, json.loads(file.read(size))
    shards = json.loads((b / "model.safetensors.index.json").read_text())["weight_map"]
    headers = {shard: header(b / shard) for shard in set(shards.values())}
    start, tensors = header(a)
    tensors.pop("__metadata__", None)
    for name, tensor in tensors.items():
        other, theirs = headers[shards[name]][0], headers[shards[name]][1][name]
        size = tensor["data_offsets"][1] - tensor["data_offsets"][0]
        with open(a, "rb") as ours, open(b / shards[name], "rb") as source:
            ours.seek(start + tensor["data_offsets"][0])
            source.seek(other + theirs["data_offsets"][0])
            while size > 0:
                piece = min(size, 16 << 20)
                if ours.read(piece) != source.read(piece):
                    return False
                size -= piece
    return True


def bench(directory, rounds, mergekit_python):
    model = directory / "models" / "llama"
    checkpoint(model)
    os.chmod(directory / "models", 0o755)
    total = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"checkpoint: {LAYERS} layers, fp16, {SHARDS} shards, {total / 1e9:.2f} GB")
    with services.Cluster(directory, ["slicer"], [f"file://{directory / 'models'}/"]) as cluster:
        slicer, uri = Slicer(cluster), f"file://{model}"
        imported, seconds, _ = slicer.slice(uri, LAYERS)
        print(f"  import of all {LAYERS} layers: {seconds:.2f} s")
        first, _, _ = slicer.slice(uri, KEPT)
        size = slicer.weights(first).stat().st_size
        if not same_tensors(slicer.weights(first), model):
            sys.exit("bench: the slice is not the reference's bytes")
        copy_source = directory / "copy-source"
        shutil.copyfile(slicer.weights(first), copy_source)
        slicer.forget(first)
        hashed, known, walls, cp, synced = [], [], [], [], []
        for _ in range(rounds):
            cp.append(timed(["cp", copy_source, directory / "copy"]))
            synced.append(cp[-1] + timed(["sync", directory / "copy"]))
            (directory / "copy").unlink()
            for source, times in ((uri, hashed), (f"artifact://{imported}", known)):
                artifact, seconds, wall = slicer.slice(source, KEPT)
                times.append(seconds)
                if source == uri:
                    walls.append(wall)
                slicer.forget(artifact)
        base, durable = statistics.median(cp), statistics.median(synced)
        print(f"  first {KEPT} layers, {size / 1e9:.2f} GB, medians of {rounds} rounds in turns:")
        print(f"    cp (coreutils)              {base:.2f} s    with sync {durable:.2f} s")
        for name, times in (("slice, every tensor hashed ", hashed), ("slice, digests known      ", known)):
            ours = statistics.median(times)
            print(f"    {name} {ours:.2f} s    {ours / base:.2f} x cp    {ours / durable:.2f} x cp and sync")
        print(f"  slicer's peak memory: {cluster.peak_mib('slicer'):.0f} MiB")
        if mergekit_python is None:
            print("  mergekit is not there: give --mergekit-python to measure it")
            return
        mergekit = Mergekit(mergekit_python, model, directory)
        theirs = {layers: [] for layers in (1, KEPT, LAYERS)}
        ours = {layers: [] for layers in (1, KEPT, LAYERS)}
        sizes = {}
        for _ in range(rounds):
            for layers in theirs:
                seconds, sizes[layers] = mergekit.slice(layers)
                theirs[layers].append(seconds)
                artifact, _, wall = slicer.slice(uri, layers)
                ours[layers].append(wall)
                slicer.forget(artifact)
        theirs = {layers: statistics.median(times) for layers, times in theirs.items()}
        ours = {layers: statistics.median(times) for layers, times in ours.items()}
        per_gb = [(t[LAYERS] - t[1]) / (sizes[LAYERS] - sizes[1]) * 1e9 for t in (ours, theirs)]
        print(f"  beside mergekit's passthrough, command to end, medians of {rounds} rounds in turns:")
        for layers in theirs:
            print(
                f"    {layers:2} layers, {sizes[layers] / 1e9:.2f} GB: ours {ours[layers]:.2f} s    "
                f"mergekit {theirs[layers]:.2f} s    {theirs[layers] / ours[layers]:.1f} x"
            )
        print(
            f"    at the margin: ours {per_gb[0]:.2f} s/GB    mergekit {per_gb[1]:.2f} s/GB    "
            f"{per_gb[1] / per_gb[0]:.1f} x"
        )
