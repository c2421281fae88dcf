"""Measures a slice: time compared with `cp` and mergekit, memory, and bytes that pass through the
slicer.

The slicer service, one process with its own scheduler and Postgres, slices a Llama checkpoint of 26
layers (2.9 GB, fp16, three shards, random bits) to its first 13 layers. Alternately with it,
coreutils' cp copies a file of the output's size, and mergekit makes the same slice with its
passthrough method.

Ours, from claim to end by the database's clock: plan, copy, hash, publish; with `durable` the
object store syncs every file before that, and cp is followed by sync.
"""

import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import services

LAYERS, KEPT = 26, 13
HIDDEN, FF, VOCAB = 2048, 5632, 32000
SHARDS = 3


def checkpoint(folder):
    """Writes a Llama checkpoint in the layout of save_pretrained."""
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
    os.sync()  # do not wait for the writes of others
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)
    return time.monotonic() - started


class Slicer:
    def __init__(self, cluster):
        self.cluster = cluster

    def slice(self, uri, layers):
        """Runs a slice; returns its artifact, its seconds in the service, and its seconds from the
        command to its end."""
        source = {"checkpoint": uri, "layers": layers, "layer_map": "first", "inherit": "all"}
        os.sync()
        started = time.monotonic()
        done = self.cluster.submit({"kind": "slice", "seed": 1, "source": {"checkpoint": source}})
        wall = time.monotonic() - started
        return done["outcome"]["sliced"]["checkpoint_artifact_id"], services.seconds(done), wall

    def weights(self, artifact):
        location = self.cluster.inheritune("artifact", "get", artifact)["artifact"]["location"]
        return self.cluster.objects / location / "model.safetensors"

    def forget(self, artifact):
        """Frees the disk space."""
        shutil.rmtree(self.weights(artifact).parent)


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
    """Returns whether each tensor of the target `a` has the same bytes as in the folder `b`."""
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
    """Measures slices; returns the location of the checkpoint that was sliced."""
    model = directory / "models" / "llama"
    checkpoint(model)
    total = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"checkpoint: {LAYERS} layers, fp16, {SHARDS} shards, {total / 1e9:.2f} GB")
    for durable in (False, True):
        place = directory / ("durable" if durable else "volatile")
        place.mkdir()
        objects = place / "objects"
        storage = {"kind": "folder", "path": str(objects), "durable": durable}
        with services.Cluster(place, ["slicer"], [f"file://{directory / 'models'}/"], objects, storage) as cluster:
            beside_cp(cluster, model, durable, rounds)
            if not durable:
                if mergekit_python is None:
                    print("  mergekit is not measured: give --mergekit-python")
                else:
                    beside_mergekit(cluster, model, Mergekit(mergekit_python, model, directory), rounds)
        shutil.rmtree(objects)
    if mergekit_python is not None:
        pickled(directory, model, mergekit_python)
    return model


# The shards as torch.save writes them, one pickled file each.
TO_PICKLES = """
import json, sys
from pathlib import Path
import safetensors.torch, torch
source, target = map(Path, sys.argv[1:])
target.mkdir()
(target / "config.json").write_text((source / "config.json").read_text())
weight_map = {}
for shard in sorted(source.glob("*.safetensors")):
    tensors = safetensors.torch.load_file(shard)
    name = shard.name.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
    torch.save(tensors, target / name)
    weight_map.update(dict.fromkeys(tensors, name))
index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
(target / "pytorch_model.bin.index.json").write_text(json.dumps(index))
"""


def pickled(directory, model, python):
    """Measures a slice of the same model in pickled files: one pass over the kept bytes, in little
    memory."""
    source = directory / "models" / "pickled"
    subprocess.run([python, "-c", TO_PICKLES, model, source], check=True)
    place = directory / "pickled"
    place.mkdir()
    with services.Cluster(place, ["slicer"], [f"file://{directory / 'models'}/"]) as cluster:
        slicer = Slicer(cluster)
        before = cluster.bytes_read("slicer")
        artifact, seconds, _ = slicer.slice(f"file://{source}", KEPT)
        read = cluster.bytes_read("slicer") - before
        weights = slicer.weights(artifact)
        if not same_tensors(weights, model):
            sys.exit("bench: the slice of the pickled files differs from the reference's bytes")
        size = weights.stat().st_size
        print(
            f"  from pytorch_model.bin, synced: first {KEPT} layers, {size / 1e9:.2f} GB in {seconds:.2f} s; "
            f"bytes read {read / size:.2f} x those kept; peak memory {cluster.peak_mib('slicer'):.0f} MiB "
            f"(largest tensor {VOCAB * HIDDEN * 2 / 2**20:.0f} MiB)"
        )
        slicer.forget(artifact)
    shutil.rmtree(source)


def beside_cp(cluster, model, durable, rounds):
    slicer, uri = Slicer(cluster), f"file://{model}"
    imported, _, _ = slicer.slice(uri, LAYERS)
    first, _, _ = slicer.slice(uri, KEPT)
    weights = slicer.weights(first)
    size = weights.stat().st_size
    if not same_tensors(weights, model):
        sys.exit("bench: the slice differs from the reference's bytes")
    copy = cluster.directory / "copy"
    hashed, known, cp = [], [], []
    for _ in range(rounds):
        command = f'cp "{weights}" "{copy}"' + (f' && sync "{copy}"' if durable else "")
        cp.append(timed(["sh", "-c", command]))
        copy.unlink()
        for source, times in ((uri, hashed), (f"artifact://{imported}", known)):
            artifact, seconds, _ = slicer.slice(source, KEPT)
            times.append(seconds)
            slicer.forget(artifact)
    base = statistics.median(cp)
    peer = "cp and sync" if durable else "cp"
    print(f"  {'on disk' if durable else 'not synced'}: first {KEPT} layers, {size / 1e9:.2f} GB, medians of {rounds} alternating rounds:")
    print(f"    {peer:27} {base:.2f} s")
    for name, times in (("slice, every tensor hashed", hashed), ("slice, digests known", known)):
        ours = statistics.median(times)
        print(f"    {name:27} {ours:.2f} s    {ours / base:.2f} x {peer}")
    print(f"    slicer's peak memory        {cluster.peak_mib('slicer'):.0f} MiB")


def beside_mergekit(cluster, model, mergekit, rounds):
    slicer, uri = Slicer(cluster), f"file://{model}"
    imported, _, _ = slicer.slice(uri, LAYERS)
    theirs, ours, sizes = ({layers: [] for layers in (1, KEPT, LAYERS)} for _ in range(3))
    known = {layers: [] for layers in theirs}
    for _ in range(rounds):
        for layers in theirs:
            seconds, sizes[layers] = mergekit.slice(layers)
            theirs[layers].append(seconds)
            artifact, _, wall = slicer.slice(uri, layers)
            ours[layers].append(wall)
            slicer.forget(artifact)
            artifact, _, wall = slicer.slice(f"artifact://{imported}", layers)
            known[layers].append(wall)
            slicer.forget(artifact)
    known = {layers: statistics.median(times) for layers, times in known.items()}
    theirs = {layers: statistics.median(times) for layers, times in theirs.items()}
    ours = {layers: statistics.median(times) for layers, times in ours.items()}
    print(f"  compared with mergekit's passthrough, not synced, from command to end, medians of {rounds} alternating rounds:")
    for layers in theirs:
        print(
            f"    {layers:2} layers, {sizes[layers] / 1e9:.2f} GB: slice, hashed {ours[layers]:.2f} s    "
            f"mergekit {theirs[layers]:.2f} s    {theirs[layers] / ours[layers]:.1f} x"
        )
    def per_gb(times, layers):
        return (times[layers] - times[1]) / (sizes[layers] - sizes[1]) * 1e9

    for layers in (KEPT, LAYERS):
        for name, times in (("every tensor hashed", ours), ("digests known", known)):
            our_cost, their_cost = per_gb(times, layers), per_gb(theirs, layers)
            print(
                f"    per additional GB, 1 to {layers} layers: slice, {name}, {our_cost:.2f} s/GB    mergekit, which does not "
                f"hash, {their_cost:.2f} s/GB    {their_cost / our_cost:.1f} x"
            )
