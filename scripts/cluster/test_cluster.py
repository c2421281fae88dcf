"""Tests a cluster of docker-compose.yml from outside, as users and operators see it. See
test-cluster.sh."""

import argparse
import filecmp
import shutil
import signal
import subprocess
import sys
import time

from cluster import ROOT, Cluster, Failed, docker, inspect, standalone, wait_for

# A few seconds of training, with states frequent enough for every fault.
RECIPE = """
name = "cluster"
recipe = "full-data"
seed = 7

[corpus]
sources = ["file:corpus.txt"]
validation_fraction = 0.1
tokenizer = { train = { vocab_size = 400 } }

[reference.architecture]
family = "gpt2"
n_layers = 3
d_model = 32
n_heads = 2
max_positions = 64

[reference.training]
block_size = 32
micro_batch = 8
steps = 1000
lr_max = 1e-2
warmup_steps = 5
evaluate_every_steps = 50
checkpoint_every_steps = 25

[target]
start_layers = 1
grow_by = 1

[training]
block_size = 32
micro_batch = 8
steps = 30
# So low that a candidate cannot catch up with the reference: growth must happen.
lr_max = 1e-7
evaluate_every_steps = 10
checkpoint_every_steps = 10

[[controls]]
name = "random initialisation, same depth"
"""
# Upper bound for a run.
RUN_LIMIT_S = 900
DEMO_LIMIT_S = 3600
# From a kill until another worker has the job: a lease of 5 s, a sweep and a poll of 1 s, plus the
# delays of a busy machine.
TAKEOVER_LIMIT_S = 20
# The files of a model that do not name the run that made it.
MODEL_FILES = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


def check(what, good, found=""):
    if not good:
        raise Failed(f"{what}: {found}")
    print(f"ok    {what}", flush=True)


def write_inputs(cluster):
    text = "".join((ROOT / name).read_text() for name in ["LICENSE", "docs/performance.md", "proto/inheritune/v1/job.proto"])
    (cluster.data / "corpus.txt").write_text(text)
    recipe = cluster.data / "recipe.toml"
    recipe.write_text(RECIPE)
    return recipe


def check_containers(cluster):
    """Checks which users the containers run as, what they may write to, and who can reach them."""
    roots, writable, open_ports, published = [], [], [], 0
    for container in cluster.containers():
        found = inspect(container)
        name = found["Name"]
        if not found["State"]["Running"]:
            continue
        for line in docker("top", container, "-eo", "uid,pid,args").splitlines()[1:]:
            if line.split()[0] == "0":
                roots.append(f"{name}: {line}")
        if not found["HostConfig"]["ReadonlyRootfs"]:
            writable.append(name)
        bindings = [b for ports in found["NetworkSettings"]["Ports"].values() for b in ports or []]
        published += len(bindings)
        open_ports += [f"{name}: {b}" for b in bindings if b["HostIp"] != "127.0.0.1"]
    check("no process of any container runs as root", not roots, roots)
    check("every root file system is read-only", not writable, writable)
    check(f"all {published} published ports are on loopback", published > 0 and not open_ports, open_ports)


def finish(client, limit_s):
    """Waits for a client that watches a run."""
    try:
        text, _ = client.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        client.kill()
        text, _ = client.communicate()
        raise Failed(f"the run did not end in {limit_s} s:\n{text}") from None
    if client.returncode != 0:
        raise Failed(f"the run ended with {client.returncode}:\n{text}")


def check_same(what, model, expected):
    different = [name for name in MODEL_FILES if not filecmp.cmp(model / name, expected / name, shallow=False)]
    check(f"{what}: the model equals the standalone process's, byte for byte", not different, different)


def run_undisturbed(cluster, recipe, expected):
    began = time.monotonic()
    model = cluster.work / "undisturbed"
    finish(cluster.inheritune("run", "create", recipe, "--watch", "--export", model), RUN_LIMIT_S)
    check_same(f"a run on two trainers and two evaluators ({time.monotonic() - began:.0f} s)", model, expected)


def training(cluster, past_percent=0.0):
    """Returns job and worker of the reference's training, once it has passed this percentage."""
    query = f"""SELECT job_id, worker_id FROM ops.jobs WHERE kind = 'train' AND status = 'RUNNING'
        AND progress_percentage >= {past_percent} AND lease_until > now() ORDER BY created_at DESC LIMIT 1"""
    return cluster.sql(query).split("|") if cluster.sql(query) else None


def run_with_faults(cluster, recipe, expected):
    model = cluster.work / "faults"
    client = cluster.inheritune("run", "create", recipe, "--watch", "--export", model)
    try:
        job, worker = wait_for(lambda: training(cluster, 10), 120, "a training at 10 %")
        kill_trainer(cluster, job, worker)
        wait_for(lambda: training(cluster, 35), 120, "a training at 35 %")
        kill_postgres(cluster)
        wait_for(lambda: training(cluster, 60), 120, "a training at 60 %")
        stop_trainers(cluster, job)
        finish(client, RUN_LIMIT_S)
    finally:
        client.kill()
    check_same("a run through all of these faults", model, expected)
    ended = cluster.sql(f"SELECT string_agg(ended, ', ' ORDER BY attempt) FROM ops.job_attempts WHERE job_id = '{job}'")
    print(f"      attempts of that training: {ended}")


def kill_trainer(cluster, job, worker):
    container = cluster.worker_container("trainer", worker)
    docker("kill", "-s", "KILL", container)
    began = time.monotonic()

    def taken():
        return cluster.sql(f"SELECT worker_id FROM ops.jobs WHERE job_id = '{job}' AND status = 'RUNNING' AND worker_id <> '{worker}'")

    other = wait_for(taken, TAKEOVER_LIMIT_S, "another trainer with the job")
    took = time.monotonic() - began
    survivor = cluster.worker_container("trainer", other)
    check(f"a trainer was killed in the middle: the other one had its job {took:.1f} s later", survivor != container)

    def resumed():
        return [line["step"] for line in cluster.log(survivor) if line.get("message") == "resuming from a training state"]

    steps = wait_for(resumed, 30, "a training state to resume from")
    check(f"it resumed from step {steps[-1]}", steps[-1] > 0, steps)
    docker("start", container)


def kill_postgres(cluster):
    container, = cluster.containers("postgres")
    docker("kill", "-s", "KILL", container)
    time.sleep(3)
    docker("start", container)
    wait_for(lambda: training(cluster), 60, "the training after the database's restart")
    restarts = {}
    for service in ["scheduler", "slicer", "trainer", "evaluator"]:
        for other in cluster.containers(service):
            found = inspect(other)
            if found["RestartCount"] or not found["State"]["Running"]:
                restarts[found["Name"]] = found["State"]
    check("Postgres was killed and restarted: no service exited", not restarts, restarts)


def stop_trainers(cluster, job):
    held = cluster.worker_container("trainer", cluster.sql(f"SELECT worker_id FROM ops.jobs WHERE job_id = '{job}'"))
    cluster.compose("stop", "trainer")
    codes = [inspect(container)["State"]["ExitCode"] for container in cluster.containers("trainer")]
    check("`stop trainer`: all of them exit with 0", codes == [0] * len(codes), codes)
    log = [line.get("message", "") for line in cluster.log(held)]
    stopping = max((i for i, message in enumerate(log) if message.startswith("stopping")), default=len(log))
    said = log[stopping:]
    check("the one with the job saved, and released it", "training state saved" in said and "job released" in said, log[-8:])
    queued = cluster.sql(f"SELECT status FROM ops.jobs WHERE job_id = '{job}'")
    check("the job waits for another worker", queued == "QUEUED", queued)
    cluster.compose("start", "trainer")


def check_roles(cluster):
    runs = cluster.sql("SELECT count(*) FROM ops.runs WHERE status = 'SUCCEEDED'")
    check("role dashboard reads schema ops", int(runs) >= 2, runs)
    for role, query, told in [
        ("dashboard", "SELECT count(*) FROM runs", "permission denied"),
        ("dashboard", "BEGIN READ WRITE; CREATE TABLE ops.x ()", "permission denied"),
        ("dashboard", "SELECT pg_sleep(10)", "statement timeout"),
        ("service", "CREATE TABLE x ()", "permission denied"),
        ("service", "DROP TABLE runs", "must be owner"),
    ]:
        try:
            problem = f"it is allowed: {cluster.sql(query, role)}"
        except Failed as failed:
            problem = str(failed)
        check(f"role {role} is denied: {query}", told in problem, problem)


def check_secrets(cluster):
    logged = cluster.everything_logged()
    values = {path.name: path.read_text().strip() for path in cluster.secrets.glob("*_password")}
    values["bearer_token"] = (cluster.secrets / "bearer_token").read_text().strip()
    for line in (cluster.secrets / "s3-server.env").read_text().splitlines():
        name, value = line.split("=", 1)
        if name.endswith(("SECRET_KEY", "SECRET", "TOKEN")):
            values[name] = value
    leaked = [name for name, value in values.items() if value in logged]
    check(f"none of {len(values)} secrets is in {len(logged.splitlines())} lines of logs", not leaked, leaked)


def check_prometheus(cluster):
    cluster.compose("up", "-d", "--no-build", "prometheus")
    container, = cluster.containers("prometheus")
    services = ["scheduler", "slicer", "trainer", "evaluator"]
    wanted = sum(len(cluster.containers(service)) for service in services)
    request = f"GET /api/v1/query?query=sum(inheritune_build_info) HTTP/1.0\\r\\n\\r\\n"
    ask = f"exec 3<>/dev/tcp/127.0.0.1/9090 && printf '{request}' >&3 && cat <&3"

    def scraped():
        reply = docker("exec", container, "bash", "-c", ask)
        return f'"{wanted}"]' in reply

    wait_for(scraped, 90, f"{wanted} scraped services")
    check(f"Prometheus has found all {wanted} services", True)


def check_tls(cluster):
    cluster.init("--tls")
    cluster.up("--force-recreate")
    finish(cluster.inheritune("run", "list"), 30)
    check("with TLS and a bearer token: the call succeeds", True)
    with_token = cluster.client
    cluster.client = with_token[:4]
    refused = cluster.inheritune("run", "list")
    text, _ = refused.communicate(timeout=30)
    check("a call without the token is rejected", refused.returncode != 0 and "token" in text.lower(), text)
    cluster.client = ["--server", with_token[1].replace("https:", "http:")]
    refused = cluster.inheritune("run", "list")
    text, _ = refused.communicate(timeout=30)
    check("a call without TLS is rejected", refused.returncode != 0, text)
    cluster.client = with_token


def demo(cluster):
    """Runs the recipe of `make demo`, as in the README."""
    place = cluster.data / "demo"
    place.mkdir()
    corpus = ROOT / "demo/corpus.jsonl"
    if not corpus.exists():
        subprocess.run(["sh", "scripts/demo/fetch-demo-corpus.sh", corpus], cwd=ROOT, check=True)
    shutil.copy(corpus, place)
    # The folder that the recipe's relative paths refer to.
    recipe = cluster.data / "demo-full-data.toml"
    shutil.copy(ROOT / "deploy/recipes/demo-full-data.toml", recipe)
    began = time.monotonic()
    finish(cluster.inheritune("run", "create", recipe, "--watch", "--export", cluster.work / "demo"), DEMO_LIMIT_S)
    took = time.monotonic() - began
    standalone(cluster.programs, cluster.work / "demo-standalone", recipe, cluster.work / "demo-expected")
    check_same(f"the demo's run ({took:.0f} s)", cluster.work / "demo", cluster.work / "demo-expected")


def checks(cluster, with_demo):
    recipe = write_inputs(cluster)
    expected = cluster.work / "expected"
    standalone(cluster.programs, cluster.work / "standalone", recipe, expected)
    cluster.init()
    took = cluster.up()
    check(f"every service is ready {took:.0f} s after `up`", True)
    check_containers(cluster)
    run_undisturbed(cluster, recipe, expected)
    run_with_faults(cluster, recipe, expected)
    check_roles(cluster)
    if with_demo:
        demo(cluster)
    check_prometheus(cluster)
    check_secrets(cluster)
    check_tls(cluster)
    check_secrets(cluster)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", required=True)
    parser.add_argument("--demo", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with Cluster(options.programs, {"trainer": 2, "evaluator": 2}) as cluster:
        try:
            checks(cluster, options.demo)
        except Failed as failed:
            print(f"FAIL  {failed}", flush=True)
            if cluster.client:
                print("\n".join(cluster.everything_logged().splitlines()[-80:]), file=sys.stderr)
            return 1
    print("test-cluster: all checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
