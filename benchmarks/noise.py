"""Verdicts beside a real disturbance: a burner on the last core for 3% and for 30% of the time.

Each call takes 2 ms by the clock, whatever the processor's speed, so that the truth is known. It
is judged against a budget that it is 20% under (must never be called too slow) and one that it is
20% over (must never be kept), on the same samples.

    python benchmarks/noise.py [--runs 20]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.overhead import model
from optimize.budgets.budget import Budget
from optimize.budgets.verdict import Requirement, weigh
from optimize.models.data import Dataset
from optimize.profiling.measure import Contender, Limits, open_worker, time_in_turns, warm_up
from optimize.targets.base import Job
from optimize.targets.inputs import write_inputs
from optimize.targets.local import LocalTarget

CALL_NS = 2_000_000
SPIN = """
import time

def spin(outputs):
    until = time.perf_counter_ns() + 1_990_000
    while time.perf_counter_ns() < until:
        pass
"""
BURN = """
import os, sys, time
os.sched_setaffinity(0, {os.cpu_count() - 1})
share = float(sys.argv[1])
while True:
    until = time.monotonic() + share * 0.5
    while time.monotonic() < until:
        pass
    time.sleep((1 - share) * 0.5)
"""
UNDER = Budget("p99", int(CALL_NS / 0.8))
OVER = Budget("p99", int(CALL_NS / 1.2))


def main() -> None:
    """Judge with and without the burner and count the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    wrong = 0
    for share in (0.0, 0.03, 0.3):
        burner = None
        if share:
            burner = subprocess.Popen([sys.executable, "-c", BURN, str(share)])
        try:
            decisions = [judge(seed) for seed in range(runs)]
            counts = [Counter(column) for column in zip(*decisions, strict=True)]
        finally:
            if burner:
                burner.kill()
                burner.wait()
        wrong += counts[0]["reject"] + counts[1]["accept"]
        print(f"burner {share:4.0%}: 20% under {dict(counts[0])}, 20% over {dict(counts[1])}")
    print(f"{wrong} wrong verdicts, target 0")


def judge(seed: int) -> tuple[str, str]:
    """Time one variant and judge the same samples against both budgets."""
    target, limits = LocalTarget(), Limits(max_samples=3000, min_seconds=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spin.py").write_text(SPIN)
        x = np.zeros((1, 4), np.float32)
        inputs = write_inputs(Dataset("bench", {"x": [x] * 8}), folder / "inputs")
        job = Job(model(folder, 4), inputs, folder / "job", post=f"{folder / 'spin.py'}:spin")
        contender = Contender("spin", job)
        try:
            open_worker(target, contender, limits)
            warm_up(contender, limits)
            rng = np.random.default_rng(seed)
            for budget in (UNDER, OVER):
                requirement = Requirement((budget,), None)
                time_in_turns([contender], requirement, 8, limits, rng, lambda _: None)
        finally:
            contender.close()
    base = Requirement((), None)
    return tuple(
        weigh(contender.profile, replace(base, budgets=(budget,)))[0].decision
        for budget in (UNDER, OVER)
    )  # type: ignore[return-value]  # two budgets, two decisions


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", ".")
    main()
