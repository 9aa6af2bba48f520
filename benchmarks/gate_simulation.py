"""How often the regression gate errs, in worlds whose truth is known.

Calls of two models of which one is slower by a known factor, timed in turns as the gate does it:
on a quiet machine, on one whose speed changes by a factor of 1.7 in spells, with bursts on 2% of
the calls, and with a tenth of the chunks six times as slow. Tolerance 10%, confidence 99%.

Targets: beyond the tolerance at most 1% let by, within it at most 1% stopped, and 1% and 30% slower
always decided.

    python -m benchmarks.gate_simulation [--runs 400]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.regression import CHUNK_CALLS, MOST_CHUNKS, decided, is_look, ratios

WORLDS = ("quiet", "drift", "bursts", "stalls")
FACTORS = (1.0, 1.01, 1.05, 1.1, 1.15, 1.3)
CALL_NS, SPREAD = 1e6, 0.06
SPELL, CHANGE = 1.7, 0.15
Array = NDArray[np.float64]


def main() -> None:
    """Print one line for every world and factor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    runs = parser.parse_args().runs
    for kind in WORLDS:
        for factor in FACTORS:
            rng = np.random.default_rng(1)
            found = [_run(kind, factor, rng) for _ in range(runs)]
            shares = [sum(state == s for state, _ in found) / runs for s in ("slower", "held")]
            chunks = np.median([count for _, count in found])
            print(
                f"{kind:6} {factor:.2f}x: stopped {shares[0]:6.2%}, let by {shares[1]:6.2%}, "
                f"undecided {1 - sum(shares):6.2%}, chunks (median) {chunks:.0f}",
                flush=True,
            )


def _run(kind: str, factor: float, rng: np.random.Generator) -> tuple[str, int]:
    """One comparison: its outcome, and after how many chunks."""
    baseline, model = np.empty((0, CHUNK_CALLS)), np.empty((0, CHUNK_CALLS))
    speed = 1.0
    while True:
        more = max(12, len(baseline))
        calls, speed = _calls(kind, more, speed, rng)
        baseline = np.concatenate([baseline, calls[:, 0]])
        model = np.concatenate([model, factor * calls[:, 1]])
        assert is_look(len(baseline))
        found = ratios(baseline.astype(np.int64), model.astype(np.int64), 0.1, 0.99)
        if decided(found) or len(baseline) >= MOST_CHUNKS:
            states = [ratio.state for ratio in found]
            state = "slower" if "slower" in states else "held" if decided(found) else "open"
            return state, len(baseline)


def _calls(kind: str, chunks: int, speed: float, rng: np.random.Generator) -> tuple[Array, float]:
    """Calls of two equal models, shape (chunks, 2, calls), and the machine's speed after them."""
    shape = (chunks, 2, CHUNK_CALLS)
    calls = CALL_NS * np.exp(SPREAD * rng.standard_normal(shape))
    if kind == "bursts":
        calls += (rng.random(shape) < 0.02) * rng.exponential(5 * CALL_NS, shape)
    if kind == "stalls":
        hit = rng.random((chunks, 2, 1)) < 0.1
        calls *= np.where(hit & (rng.random(shape) < 0.5), 6.0, 1.0)
    if kind == "drift":
        speeds = np.empty((chunks, 2, 2))  # of both halves of a chunk, in the order of time
        for index in np.ndindex(speeds.shape):
            speed = SPELL / speed if rng.random() < CHANGE else speed
            speeds[index] = speed
        swapped = rng.random((chunks, 2)) < 0.5  # which model comes first is drawn for each half
        turns = np.where(swapped[..., None], speeds[..., ::-1], speeds)
        calls *= np.repeat(turns.swapaxes(1, 2), CHUNK_CALLS // 2, axis=2)
    return calls, speed


if __name__ == "__main__":
    main()
