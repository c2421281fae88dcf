"""A cluster of docker-compose.yml with its own name and ports, and a standalone server to compare
it with."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKER = os.environ.get("DOCKER", "docker")
IMAGES = {
    "INHERITUNE_IMAGE": "inheritune:prebuilt", "INHERITUNE_TORCH_IMAGE": "inheritune-torch:prebuilt",
    "CLUSTER_S3_IMAGE": "inheritune-s3:prebuilt",
}
THREADS = 1


class Failed(Exception):
    """A failed check, with its description."""


class Cluster:
    """A cluster that `up` starts; its containers, networks and volumes are removed when the block
    ends."""

    def __init__(self, programs, scale):
        self.programs, self.scale = Path(programs).resolve(), scale
        self.work = Path(tempfile.mkdtemp(prefix="inheritune-cluster-"))
        self.data = self.work / "data"
        self.secrets = self.work / "cluster"
        self.project = f"inheritune-test-{os.getpid()}"
        self.client = []
        names = ["SCHEDULER_PORT", "POSTGRES_PORT", "S3_PORT", "GRAFANA_PORT", "PROMETHEUS_PORT"]
        self.ports = dict(zip(names, map(str, free_ports(len(names)))))
        self.compose_command = shlex.split(os.environ.get("COMPOSE", "")) or compose_command()

    def __enter__(self):
        self.data.mkdir()
        return self

    def __exit__(self, *_):
        if (self.work / "env").exists():
            subprocess.run(self._compose("down", "-v", "--remove-orphans", "-t", "1"), capture_output=True, check=False)
        shutil.rmtree(self.work)

    def init(self, *options):
        """Creates secrets, configuration and settings, as a user would."""
        environment = {
            **os.environ, **self.ports, "ENV_FILE": str(self.work / "env"), "CLUSTER_DIR": str(self.secrets),
            "CLUSTER_DATA": str(self.data), "CLUSTER_THREADS": str(THREADS), "INHERITUNE": str(self.programs / "inheritune"),
        }
        subprocess.run(
            ["sh", "deploy/compose/init.sh", "--debian", *options], cwd=ROOT, env=environment, check=True,
            stdout=subprocess.DEVNULL,
        )
        scheme = "https" if "--tls" in options else "http"
        self.client = ["--server", f"{scheme}://127.0.0.1:{self.ports['SCHEDULER_PORT']}"]
        if "--tls" in options:
            self.client += ["--ca-file", str(self.secrets / "tls/ca.pem"), "--token-file", str(self.secrets / "bearer_token")]

    def up(self, *options):
        """Starts the cluster, waits until every service is ready, and returns how long that
        took."""
        began = time.monotonic()
        scale = [f"--scale={service}={count}" for service, count in self.scale.items()]
        self.compose("up", "-d", "--no-build", *scale, *options)
        wait_for(self.healthy, 120, "healthy services")
        return time.monotonic() - began

    def healthy(self):
        states = [inspect(container)["State"] for container in self.containers()]
        return bool(states) and all(
            state.get("Health", {}).get("Status", "healthy") == "healthy" if state["Running"] else state["ExitCode"] == 0
            for state in states
        )

    def compose(self, *arguments):
        done = subprocess.run(self._compose(*arguments), capture_output=True, text=True, check=False, cwd=ROOT, env=self._environment())
        if done.returncode != 0:
            raise Failed(f"compose {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    def containers(self, service=None):
        """Returns the ids of the containers of one service, or of all."""
        filters = [f"label=com.docker.compose.project={self.project}"]
        filters += [f"label=com.docker.compose.service={service}"] if service else []
        return docker("ps", "-aq", "--no-trunc", *(f"--filter={f}" for f in filters)).split()

    def inheritune(self, *arguments):
        """Starts a client."""
        command = [self.programs / "inheritune", *self.client, "--no-progress", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.data)

    def sql(self, query, role="dashboard"):
        """Returns psql's output, as one of the roles; None while the database is unreachable."""
        password = (self.secrets / f"{role}_password").read_text()
        container, = self.containers("postgres")
        return docker(
            "exec", "-e", f"PGPASSWORD={password}", container, "psql", "-X", "-A", "-t", "-h", "127.0.0.1",
            "-U", f"inheritune_{role}", "-d", "inheritune", "-c", query,
        ).strip()

    def worker_container(self, service, worker_id):
        """Returns the container of a service that runs the worker with this id; ids are new at
        every start."""
        for container in self.containers(service):
            ids = [line["worker"] for line in self.log(container) if line.get("message") == "worker started"]
            if ids and ids[-1] == worker_id:
                return container
        raise Failed(f"no container of {service} is worker {worker_id}")

    def log(self, container):
        """Returns the lines of a service's log."""
        text = subprocess.run([DOCKER, "logs", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
        return [json.loads(line) for line in text.stdout.splitlines() if line.startswith("{")]

    def everything_logged(self):
        return self.compose("logs", "--no-color")

    def _compose(self, *arguments):
        return [*self.compose_command, "--env-file", str(self.work / "env"), "-p", self.project, *arguments]

    def _environment(self):
        # The environment takes precedence over the settings file.
        others = {k: v for k, v in os.environ.items() if not k.startswith(("CLUSTER_", "COMPOSE_")) and k not in self.ports}
        return {**others, **IMAGES}


def standalone(programs, work, recipe, to):
    """Runs the same recipe in one standalone process with the same number of threads."""
    work.mkdir()
    address = work / "address"
    command = [
        programs / "inheritune-standalone", "--data-dir", work / "server", "--listen", "127.0.0.1:0", "--address-file", address,
        "--threads", str(THREADS), "--allow-uri", "file:///",
    ]
    with open(work / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(address.exists, 60, "a standalone server")
        client = [programs / "inheritune", "--server", address.read_text(), "--no-progress"]
        run = [*client, "run", "create", recipe, "--watch", "--export", to]
        done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=recipe.parent)
        if done.returncode != 0:
            raise Failed(f"the standalone run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    finally:
        server.terminate()
        server.wait()


def docker(*arguments):
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"docker {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def inspect(container):
    return json.loads(docker("inspect", container))[0]


def compose_command():
    """Returns the docker plugin, otherwise the separate program."""
    plugin = subprocess.run([DOCKER, "compose", "version"], capture_output=True, check=False).returncode == 0
    if not plugin and shutil.which("docker-compose") is None:
        raise SystemExit("test-cluster: found neither `docker compose` nor docker-compose")
    return [DOCKER, "compose"] if plugin else ["docker-compose"]


def wait_for(condition, limit_s, what):
    """Waits until `condition` returns something and returns it; ignores errors of the database
    while it stops or starts."""
    began = time.monotonic()
    while True:
        try:
            if found := condition():
                return found
            problem = "not yet"
        except Failed as failed:
            problem = failed
        if time.monotonic() - began > limit_s:
            raise Failed(f"waited {limit_s} s for {what}: {problem}")
        time.sleep(0.2)


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
