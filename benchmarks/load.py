"""The load that a result's report tells, held against requests that really come at random.

The kept model is served in this process by onnxruntime alone: requests come at Poisson times, are
answered one after the other, and each takes from the time at which it was due to its answer. At
nine tenths of the rate that was simulated the budget should hold; above it, it should not.

    python -m benchmarks.load RESULT --data DATA.npz [--seconds 20]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from optimize.budgets.budget import PERCENTILES, Budget

SHARES = (0.5, 0.9, 1.0, 1.1)  # of the simulated rate
SEEDS = 3


def session_of(folder: Path, threads: int) -> onnxruntime.InferenceSession:
    """The kept model as ``serve.py`` loads it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers)


def responses(
    session: onnxruntime.InferenceSession,
    feeds: list[dict[str, NDArray[np.generic]]],
    due_s: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Seconds from each request's due time to its answer, shape (requests,)."""
    begun = time.perf_counter()
    found = np.empty(due_s.size)
    for number, due in enumerate(due_s):
        while (ahead := begun + due - time.perf_counter()) > 0:
            if ahead > 2e-3:
                time.sleep(ahead - 2e-3)
        session.run(None, feeds[number % len(feeds)])
        found[number] = time.perf_counter() - begun - due
    return found


def main() -> None:
    """Print a line for each rate."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    report = json.loads((given.result / "report.json").read_text())
    load, budget = report["load"], Budget.parse(report["load"]["budget"])
    session = session_of(given.result, report["settings"]["threads"])
    names = [item.name for item in session.get_inputs()]
    with np.load(given.data) as stored:
        arrays = [stored[name] for name in (names if names[0] in stored else stored.files[:1])]
    feeds = [{n: a[i : i + 1] for n, a in zip(names, arrays, strict=True)} for i in range(256)]
    responses(session, feeds, np.zeros(200))  # warm up
    print(f"{budget}: {load['calls_per_s']:.4g} calls/s simulated")
    for share in SHARES:
        rate, tails = share * load["calls_per_s"], []
        for seed in range(SEEDS):
            gaps = np.random.default_rng(seed).exponential(
                1 / rate, round(rate * given.seconds / SEEDS)
            )
            found = responses(session, feeds, np.cumsum(gaps))
            tails.append(float(np.quantile(found, PERCENTILES[budget.quantity])) * 1e9)
        shown = ", ".join(f"{tail / 1e6:.3g}" for tail in tails)
        held = sum(tail <= budget.limit for tail in tails)
        print(
            f"{share:.1f}x, {rate:.4g}/s: {budget.quantity} {shown} ms, holds in {held} of {SEEDS}"
        )


if __name__ == "__main__":
    main()
