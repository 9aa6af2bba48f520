"""How soon a verdict falls: seconds of wall time, start of the process included.

Targets: a call of 5 ms judged against three times that within 10 s, against a third of that
within 3 s. The call spins by the clock, so that the truth does not depend on the processor.

    python -m benchmarks.decide [--runs 5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.overhead import model, verdict
from optimize.budgets.budget import Budget
from optimize.budgets.verdict import Requirement, weigh
from optimize.models.data import Dataset
from optimize.profiling.measure import Contender, Limits, open_worker, time_in_turns, warm_up
from optimize.targets.base import Job
from optimize.targets.inputs import write_inputs
from optimize.targets.local import LocalTarget

CALL_NS = 5_000_000
SPIN = f"""
import time

def spin(outputs):
    until = time.perf_counter_ns() + {CALL_NS}
    while time.perf_counter_ns() < until:
        pass
"""


def main() -> None:
    """Judge a few times each and print the slowest beside its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    for factor, wanted, most in ((3.0, "accept", 10.0), (1 / 3, "reject", 3.0)):
        budget = Budget("p99", int(CALL_NS * factor))
        results = [judge(budget, seed) for seed in range(runs)]
        seconds = max(s for s, _, _ in results)
        right = all(decision == wanted for _, decision, _ in results)
        calls = max(n for _, _, n in results)
        text = f"budget {factor:.2f}x: {wanted} in {seconds:.1f} s at most, {calls} calls"
        verdict(text, right and seconds <= most, f"{most:.0f} s")


def judge(budget: Budget, seed: int) -> tuple[float, str, int]:
    """Start a worker, warm up, time until decided."""
    target, limits = LocalTarget(), Limits()
    requirement = Requirement((budget,), None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spin.py").write_text(SPIN)
        x = np.zeros((1, 4), np.float32)
        inputs = write_inputs(Dataset("bench", {"x": [x] * 8}), folder / "inputs")
        job = Job(model(folder, 4), inputs, folder / "job", post=f"{folder / 'spin.py'}:spin")
        contender = Contender("spin", job)
        start = time.monotonic()
        try:
            open_worker(target, contender, limits)
            warm_up(contender, limits)
            rng = np.random.default_rng(seed)
            time_in_turns([contender], requirement, 8, limits, rng, lambda _: None)
        finally:
            contender.close()
        seconds = time.monotonic() - start
    decision = weigh(contender.profile, requirement)[0].decision
    return seconds, decision, int(contender.profile.samples_ns.size)


if __name__ == "__main__":
    main()
