"""Measures training steps on a busy machine, and on a processor without bf16 instructions.

The steps are the library's own (crates/lm/examples/steps.rs), on two threads that wait as in a job.
The peers are the same steps on the idle machine, and the same steps in fp32. They run alternately;
figures are medians over the rounds.
"""

import os
import re
import statistics
import subprocess
import sys
import time

BUSY = [sys.executable, "-c", "while True: pass"]
# Shapes of crates/lm/examples/steps.rs and the steps per run.
STEPS = {"tiny": 100, "middle": 20, "14m": 4}
WITHOUT_BF16 = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def bench(program, rounds):
    for mode in ("train", "score"):
        for shape in STEPS:
            times = {"idle": [], "busy": [], "own sessions": []}
            for _ in range(rounds):
                for condition, found in times.items():
                    with Busy(condition):
                        found.append(step(program, mode, shape, "fp32"))
            idle, busy, apart = (statistics.median(found) for found in times.values())
            print(
                f"  {mode} {shape}, 2 threads, {rounds} rounds: {idle:.1f} ms; with two busy processes {busy / idle:.2f} x, "
                f"each in its own session {apart / idle:.2f} x", flush=True,
            )
    times = {"fp32": [], "bf16-mixed": []}
    for _ in range(rounds):
        for precision, found in times.items():
            found.append(step(program, "train", "14m", precision, WITHOUT_BF16))
    fp32, bf16 = (statistics.median(found) for found in times.values())
    print(f"  train 14m as with AVX2 only, {rounds} rounds: bf16-mixed {fp32 / bf16:.2f} x the speed of fp32", flush=True)


class Busy:
    """Two processes that compute all the time, unless the machine should be idle."""

    def __init__(self, condition):
        self.count = 0 if condition == "idle" else 2
        self.apart = condition == "own sessions"

    def __enter__(self):
        self.processes = [subprocess.Popen(BUSY, start_new_session=self.apart) for _ in range(self.count)]
        time.sleep(0.5 * bool(self.processes))

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()


def step(program, mode, shape, precision, environment=None):
    """Returns the median milliseconds per step."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"} | (environment or {})
    arguments = [program, mode, shape, precision, "2", str(STEPS[shape])]
    output = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout
    return float(re.match(r"([\d.]+) ms", output).group(1))
