"""Compares a slice from S3 to S3 with a download and upload of the same bytes by the same client.

The server (Garage), the slicer and the client are separate processes. These run alternately: the
client's copy of an object of the output's size, the slice with every tensor hashed (all bytes pass
through the slicer), and the slice of an imported model, whose digests are known, so that Garage
copies the parts itself.
"""

import os
import secrets
import shutil
import statistics
import subprocess
import sys
import time

import bench_slice
import services

BUCKET = "models"
GARAGE = """
metadata_dir = "{folder}/meta"
data_dir = "{folder}/data"
db_engine = "lmdb"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{secret}"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:{s3}"
root_domain = ".s3.localhost"
[admin]
api_bind_addr = "127.0.0.1:{admin}"
"""


class Garage:
    """A Garage server with one bucket, until the block ends."""

    def __init__(self, program, directory):
        self.program, self.directory = program, directory

    def __enter__(self):
        self.directory.mkdir()
        ports = {name: services.free_port() for name in ("rpc", "s3", "admin")}
        config = self.directory / "garage.toml"
        config.write_text(GARAGE.format(folder=self.directory, secret=secrets.token_hex(32), **ports))
        key, secret = f"GK{secrets.token_hex(12)}", secrets.token_hex(32)
        environment = {
            "GARAGE_DEFAULT_ACCESS_KEY": key, "GARAGE_DEFAULT_SECRET_KEY": secret, "GARAGE_DEFAULT_BUCKET": BUCKET,
        }
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"
        self.client = {
            "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "garage",
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true",
        }
        with open(self.directory / "log", "w") as log:
            command = [self.program, "-c", config, "server", "--single-node", "--default-bucket"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        for _ in range(100):
            if services.answers(ports["s3"]):
                return self
            time.sleep(0.1)
        sys.exit(f"bench: garage did not start: {(self.directory / 'log').read_text()[-2000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.directory)


def bench(directory, model, rounds, garage):
    place = directory / "s3"
    place.mkdir()
    with Garage(garage, directory / "garage") as server:
        storage = {
            "kind": "s3", "bucket": BUCKET, "endpoint": server.endpoint, "region": "garage", "allow_http": True,
        }
        allowed = [f"file://{directory / 'models'}/", f"s3://{BUCKET}/"]
        with services.Cluster(place, ["slicer"], allowed, None, storage, server.client) as cluster:
            beside_client(cluster, model, server, rounds)


def loopback_bytes():
    """Returns the bytes that processes of this machine have sent each other so far."""
    return services.proc_number("net/dev", "lo")


def beside_client(cluster, model, server, rounds):
    slicer = bench_slice.Slicer(cluster)
    imported, _, _ = slicer.slice(f"file://{model}", bench_slice.LAYERS)
    folder = cluster.inheritune("artifact", "get", imported)["artifact"]["location"]
    kept, _, _ = slicer.slice(f"artifact://{imported}", bench_slice.KEPT)
    location = cluster.inheritune("artifact", "get", kept)["artifact"]["location"]
    # The same bytes, but as a foreign folder, so no digest is known.
    sources = {"slice, every tensor hashed": f"s3://{BUCKET}/{folder}", "slice, digests known": f"artifact://{imported}"}
    times, passed, client = {name: [] for name in sources}, {}, []
    copy = [services.BIN / "examples" / "download_upload", BUCKET, f"{location}/model.safetensors"]
    for turn in range(rounds):
        os.sync()
        started = time.monotonic()
        subprocess.run([*copy, f"copy/{turn}"], check=True, env={**os.environ, **server.client})
        client.append(time.monotonic() - started)
        for name, source in sources.items():
            before = loopback_bytes()
            _, seconds, _ = slicer.slice(source, bench_slice.KEPT)
            times[name].append(seconds)
            passed[name] = loopback_bytes() - before
    base = statistics.median(client)
    print(f"  S3 to S3 on Garage: first {bench_slice.KEPT} layers, medians of {rounds} alternating rounds:")
    print(f"    {'download and upload':27} {base:.2f} s")
    for name, taken in times.items():
        ours = statistics.median(taken)
        print(f"    {name:27} {ours:.2f} s    {ours / base:.2f} x    {passed[name] / 1e6:.0f} MB on the network")
    print(f"    slicer's peak memory        {cluster.peak_mib('slicer'):.0f} MiB")
