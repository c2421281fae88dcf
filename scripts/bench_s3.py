"""What a slice from S3 to S3 costs: time beside downloading and uploading the same bytes, memory, and bytes that pass
through the slicer.

The server is s3s-fs on loopback, in a process of its own that counts what passes (crates/store/examples/s3_bench.rs);
the client beside is object_store, which the slicer uses too: it downloads the output's bytes to a file, several ranges
at once, and then uploads them, several parts at once.
"""

import os
import statistics
import subprocess
import time
from pathlib import Path

import bench_slice
import services

ROOT = Path(__file__).resolve().parent.parent
# Those of the test server.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIDINHERITUNETEST", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
EXAMPLE = ROOT / "target" / "release" / "examples" / "s3_bench"


class Server:
    def __init__(self, root):
        (root / "bucket").mkdir(parents=True)
        (root / "models").mkdir()
        self.port = services.free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [EXAMPLE, "serve", root, str(self.port)], env={**os.environ, **CREDENTIALS}, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )
        while not services.answers(self.port):
            time.sleep(0.05)

    def passed(self):
        """Bytes of objects that passed in and out, and parts that the server copied, since the last time asked."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return [int(word) for word in self.process.stdout.readline().split()]

    def stop(self):
        self.process.terminate()
        self.process.wait()


def bench(directory, rounds):
    subprocess.run(
        ["cargo", "build", "-q", "--release", "--locked", "-p", "inheritune-store", "--example", "s3_bench"],
        check=True, cwd=ROOT,
    )
    server = Server(directory / "s3")
    try:
        bench_slice.checkpoint(directory / "s3" / "models" / "llama")
        storage = {
            "kind": "s3", "bucket": "bucket", "endpoint": server.endpoint, "region": "bench", "allow_http": True,
        }
        with services.Cluster(directory, ["slicer"], ["s3://models/"], storage, CREDENTIALS) as cluster:
            measured(directory, cluster, server, rounds)
    finally:
        server.stop()


def measured(directory, cluster, server, rounds):
    slicer, uri = bench_slice.Slicer(cluster), "s3://models/llama"
    imported, _, _ = slicer.slice(uri, bench_slice.LAYERS)
    first, _, _ = slicer.slice(uri, bench_slice.KEPT)
    location = cluster.inheritune("artifact", "get", first)["artifact"]["location"]
    key = f"{location}/model.safetensors"
    size = (directory / "s3" / "bucket" / key).stat().st_size
    client, hashed, known, bytes_passed = [], [], [], {}
    environment = {**os.environ, **CREDENTIALS, "AWS_ENDPOINT_URL": server.endpoint}
    for _ in range(rounds):
        round_trip = [EXAMPLE, "round-trip", "bucket", key, "copy.safetensors", directory / "round-trip"]
        done = subprocess.run(round_trip, check=True, env=environment, stdout=subprocess.PIPE, text=True)
        client.append(float(done.stdout))
        (directory / "s3" / "bucket" / "copy.safetensors").unlink()
        for name, source, times in (("hashed", uri, hashed), ("known", f"artifact://{imported}", known)):
            server.passed()
            artifact, seconds, _ = slicer.slice(source, bench_slice.KEPT)
            bytes_passed[name] = server.passed()
            times.append(seconds)
            slicer.forget(artifact)
    base = statistics.median(client)
    print(f"S3 to S3, first {bench_slice.KEPT} layers, {size / 1e9:.2f} GB, medians of {rounds} rounds in turns:")
    print(f"    download and upload (object_store)  {base:.2f} s")
    for name, label, times in (("hashed", "slice, every tensor hashed", hashed), ("known", "slice, digests known", known)):
        passed, copies = bytes_passed[name]
        seconds = statistics.median(times)
        print(
            f"    {label:35} {seconds:.2f} s    {seconds / base:.2f} x    {passed / 1e6:.0f} MB passed through"
            f"    {copies} parts copied by the server"
        )
    print(f"  slicer's peak memory: {cluster.peak_mib('slicer'):.0f} MiB")
