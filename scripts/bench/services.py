"""Services as separate processes on a temporary Postgres, for measurements."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / "target" / "release"


class Cluster:
    """A Postgres, a scheduler and `workers` (slicer, trainer, evaluator) under `directory`, until
    the block ends."""

    def __init__(self, directory, workers, allowed_uris, objects=None, storage=None, environment=None):
        self.directory, self.workers, self.allowed = Path(directory), workers, allowed_uris
        # The folder in which each object is a file, whatever the store.
        self.objects = objects or self.directory / "objects"
        self.storage = storage or {"kind": "folder", "path": str(self.objects)}
        self.environment = {**os.environ, **(environment or {})}
        self.processes = {}

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name, process in reversed(list(self.processes.items())):
            process.send_signal(signal.SIGINT if name == "postgres" else signal.SIGTERM)
            process.wait()

    def inheritune(self, *arguments):
        """Runs a command of the CLI; returns its output."""
        command = [BIN / "inheritune", "--server", self.address, "--output", "json", "--no-progress", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: {' '.join(map(str, arguments))} ended with {done.returncode}; logs: {self._logs()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def submit(self, spec):
        """Submits a job and waits for its end; returns the output of `job submit`."""
        path = self.directory / "job.json"
        path.write_text(json.dumps(spec))
        return self.inheritune("job", "submit", path, "--watch")

    def sql(self, query):
        """Returns the single value of a database query."""
        command = ["psql", self.database, "-X", "-A", "-t", "-c", query]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    def peak_mib(self, name):
        """Returns the peak resident memory of a service."""
        return proc_number(f"{self.processes[name].pid}/status", "VmHWM") / 1024

    def resident_mib(self, name):
        """Returns the current resident memory of a service."""
        return proc_number(f"{self.processes[name].pid}/status", "VmRSS") / 1024

    def bytes_read(self, name):
        """Returns the file bytes that a service has read so far."""
        return proc_number(f"{self.processes[name].pid}/io", "rchar")

    def cpu_s(self, name):
        """Returns the processor time of a service so far."""
        fields = Path(f"/proc/{self.processes[name].pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _start(self):
        self.database = self._postgres()
        ports = {name: free_port() for name in ["scheduler", *self.workers]}
        self.address = f"http://127.0.0.1:{ports['scheduler']}"
        for name, port in ports.items():
            config = {
                "": {"listen": f"127.0.0.1:{port}"},
                "database": {"url": self.database, "max_connections": 8},
                "objects": {"allowed_uris": self.allowed},
                "objects.storage": self.storage,
                "telemetry": {"format": "pretty", "filter": "info"},
            }
            if name == "scheduler":
                config["scheduler"] = {"sweep_ms": 1000, "poll_ms": 1000}
            else:
                cache = str(self.directory / f"cache-{name}")
                config["worker"] = {
                    "concurrency": 1, "heartbeat_ms": 1000, "lease_ms": 5000, "poll_ms": 1000, "cache_dir": cache,
                }
            path = self.directory / f"{name}.toml"
            path.write_text(toml(config))
            program = [BIN / f"inheritune-{name}", "--config", path]
            if name == "scheduler":
                subprocess.run([*program, "migrate"], check=True, stdout=subprocess.DEVNULL, env=self.environment)
            self._run(name, program)
            self._wait(name, lambda port=port: answers(port))

    def _postgres(self):
        found = shutil.which("postgres") or next(
            iter(sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")), reverse=True)), None
        )
        if found is None:
            sys.exit("bench: no Postgres server found; run: make setup")
        folder, as_user = self.directory / "postgres", []
        folder.mkdir()
        if os.getuid() == 0:  # Postgres refuses to run as root
            os.chown(folder, 65534, 65534)
            as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        initdb = [
            *as_user, Path(found).parent / "initdb", "-D", folder / "data", "-U", "inheritune", "-E", "UTF8",
            "--no-locale", "-A", "trust", "--no-sync", "--no-instructions",
        ]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        port = free_port()
        options = ["-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=512MB"]
        self._run("postgres", [*as_user, found, "-D", folder / "data", *options], cwd=folder)
        self._wait("postgres", lambda: answers(port))
        return f"postgres://inheritune@127.0.0.1:{port}/postgres"

    def _run(self, name, command, cwd=None):
        with open(self.directory / f"{name}.log", "w") as log:
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, cwd=cwd, env=self.environment)

    def _wait(self, name, ready):
        for _ in range(300):
            if self.processes[name].poll() is not None:
                break
            if ready():
                return
            time.sleep(0.1)
        sys.exit(f"bench: {name} did not start: {self._logs()}")

    def _logs(self):
        tails = (f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.directory.glob("*.log")))
        return "\n".join(tails)


def seconds(job):
    """Returns how long an ended job took, from its claim to its end, by the database's clock."""
    times = [datetime.fromisoformat(job[key].replace("Z", "+00:00")) for key in ("started_at", "finished_at")]
    return (times[1] - times[0]).total_seconds()


def peer(*command, environment=None, quiet=False):
    """Returns a peer script's own measurements: the JSON in its last line. Its other output is
    hidden if `quiet`."""
    environment = {**os.environ, **(environment or {})}
    errors = subprocess.DEVNULL if quiet else None
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def proc_number(path, name):
    """Returns the number after `name:` in a file of /proc."""
    lines = (line.split() for line in Path("/proc", path).read_text().splitlines())
    return int(next(words[1] for words in lines if words[0] == f"{name}:"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def toml(config):
    lines = []
    for section, values in config.items():
        if section:
            lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"
