"""Compares the job queue with awa, a similar queue (Rust, Postgres), alternately on one server; and
measures many simultaneous watches.

The server is the installed `postgres`, with its own defaults except larger buffers (fsync is on).
Both have eight connections. Ours are jobs of runs on the real schema: with fences, attempts,
history and events in the runs' inboxes.
"""

import os
import statistics
import subprocess
import time

import services

CONNECTIONS = 8
SECONDS = 5
BATCH = 100
INSERT_BATCH = 500
BACKLOG = 200_000
SMALL_BACKLOG, LARGE_BACKLOG = 1_000, 1_000_000
LATENCIES = 200
SNAPSHOT_S = 150
STREAMS = 1_000


def bench(directory, rounds, rival, snapshot_s=SNAPSHOT_S):
    """Prints one line per figure. `rival` is the program of bench/rival-queue, or None."""
    folder = directory / "queue"
    folder.mkdir()
    with services.Cluster(folder, [], []) as cluster:
        queues = [Queue(cluster, "ours", services.BIN / "examples" / "bench_queue")]
        if rival is None:
            print("  awa is not measured: give --rival-queue")
        else:
            queues.append(Queue(cluster, "awa", rival))
        print(f"  load average at the start {os.getloadavg()[0]:.1f}")
        throughput(queues, rounds)
        depth(queues, rounds)
        snapshot(queues, snapshot_s)
        watches(cluster)
        print(f"  load average at the end {os.getloadavg()[0]:.1f}")


class Queue:
    """One of the programs, with its own database."""

    def __init__(self, cluster, name, program):
        self.cluster, self.name, self.program = cluster, name, program
        self.database = cluster.database.rsplit("/", 1)[0] + f"/queue_{name}"

    def fresh(self, jobs=0):
        """Creates a new database with `jobs` jobs in it."""
        self.cluster.sql(f"DROP DATABASE IF EXISTS queue_{self.name} WITH (FORCE)")
        self.cluster.sql(f"CREATE DATABASE queue_{self.name}")
        self.run("prepare")
        if jobs:
            self.run("fill", jobs)
            self.cluster.sql("CHECKPOINT")

    def run(self, *words):
        return services.peer(self.program, self.database, *map(str, words))


def throughput(queues, rounds):
    found = {}
    for _ in range(rounds):
        for queue in queues:
            queue.fresh()
            inserted = queue.run("insert", INSERT_BATCH, CONNECTIONS, SECONDS)["per_second"]
            queue.fresh(BACKLOG)
            batched = queue.run("work", BATCH, CONNECTIONS, SECONDS)["per_second"]
            single = queue.run("work", 1, CONNECTIONS, SECONDS)["per_second"]
            queue.fresh()
            waits = queue.run("latency", LATENCIES)["claimed_ms"]
            for what, value in [
                (f"insert, batches of {INSERT_BATCH}, jobs/s", inserted),
                (f"claim and complete, batches of {BATCH}, jobs/s", batched),
                ("claim and complete, one by one, jobs/s", single),
                ("submit to claimed, idle, p50 ms", waits["p50"]),
                ("submit to claimed, idle, p95 ms", waits["p95"]),
            ]:
                found.setdefault(what, {}).setdefault(queue.name, []).append(value)
    for what, values in found.items():
        line(what, {name: statistics.median(of) for name, of in values.items()})


def depth(queues, rounds):
    for queue in queues:
        ratios = []
        for _ in range(max(1, rounds // 2)):
            rates = []
            for jobs in (SMALL_BACKLOG, LARGE_BACKLOG):
                queue.fresh(jobs)
                rates.append(queue.run("churn", BATCH, CONNECTIONS, 2 * SECONDS)["per_second"])
            ratios.append(rates[1] / rates[0])
        print(
            f"  {queue.name}: submit, claim and complete with {LARGE_BACKLOG} jobs waiting at {statistics.median(ratios):.2f}"
            f" of the speed with {SMALL_BACKLOG}"
        )


def snapshot(queues, seconds):
    """Measures the cost of a transaction that holds a snapshot: the last third of the time it is
    held, compared with the same time without it."""
    third = seconds / 3
    for queue in queues:
        queue.fresh(SMALL_BACKLOG)
        before = queue.run("churn", BATCH, CONNECTIONS, third)["per_second"]
        hold = f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class; SELECT pg_sleep({seconds + 5})"
        with subprocess.Popen(["psql", queue.database, "-qAtX", "-c", hold], stdout=subprocess.DEVNULL) as holder:
            time.sleep(1)
            rates = [queue.run("churn", BATCH, CONNECTIONS, third)["per_second"] for _ in range(3)]
            holder.terminate()
        print(
            f"  {queue.name}: with a snapshot held for {seconds} s at {rates[-1] / before:.2f} of the speed before it"
            f" ({before:.0f} jobs/s, then {', '.join(f'{rate:.0f}' for rate in rates)})"
        )


def watches(cluster):
    program = services.BIN / "examples" / "bench_watch"
    for jobs, changes in ((1, 20), (STREAMS, 2)):
        memory, cpu = cluster.resident_mib("scheduler"), cluster.cpu_s("scheduler")
        started = time.monotonic()
        said = services.peer(program, cluster.address, str(STREAMS), str(jobs), str(changes))
        used = cluster.cpu_s("scheduler") - cpu
        delay = said["delay_ms"]
        print(
            f"  {STREAMS} watches of {jobs} job(s): {said['news']} updates, p50 {delay['p50']:.0f} ms,"
            f" p95 {delay['p95']:.0f} ms; scheduler {used:.1f} s of processor time in {time.monotonic() - started:.1f} s,"
            f" {memory:.0f} MiB before and at most {cluster.peak_mib('scheduler'):.0f} MiB"
        )


def line(what, values):
    text = ", ".join(f"{name} {value:.1f}" if value < 100 else f"{name} {value:.0f}" for name, value in values.items())
    ratio = f": {values['ours'] / values['awa']:.2f} x" if "awa" in values else ""
    print(f"  {what}: {text}{ratio}")
