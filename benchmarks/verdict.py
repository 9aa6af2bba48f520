"""How often the verdict is wrong, and how many calls it takes: measured beside the target.

Simulated latencies with a known share q over the budget, 10,000 runs a cell, fixed seeds, against
two rules that are in use elsewhere, on the same streams: numpy's raw percentile of a fixed number
of calls, and LoadGen's early-stopping rule (a binomial bound at a fixed number of calls).

    python benchmarks/verdict.py [--runs 10000]
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import bdtr

from optimize.budgets.sequential import TailTest, variance_inflation

TAIL = 0.01
CAP = 5000
LOOK_EVERY = 50  # calls of one block, after which the pipeline looks
Stream = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One row of the table: a process, the judge's settings, and the target."""

    name: str
    make: str
    share: float
    alpha: float
    what: str
    target: Callable[[float], bool]
    shown: str
    cap: int = CAP
    tempered: bool = False
    tail: float = TAIL


@dataclass(frozen=True)
class Part:
    """Some runs of a cell, as a process of its own does them."""

    make: str
    share: float
    alpha: float
    tail: float
    cap: int
    tempered: bool
    runs: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of all runs of a cell."""

    accepted: float
    rejected: float
    undecided: float
    calls: float


CELLS = (
    Cell("iid, q = 1.0%", "iid", 0.01, 0.01, "accepted", lambda x: x <= 0.01, "<= 1%"),
    Cell("iid, q = 1.0%", "iid", 0.01, 0.01, "undecided", lambda x: x >= 0.9, ">= 90%"),
    Cell("iid, q = 2.0%", "iid", 0.02, 0.01, "accepted", lambda x: x <= 0.001, "<= 0.1%"),
    Cell("iid, q = 0.1%", "iid", 0.001, 0.01, "accepted", lambda x: x >= 0.99, ">= 99%"),
    Cell("iid, q = 0.1%", "iid", 0.001, 0.01, "calls", lambda x: x <= 750, "<= 750"),
    Cell("iid, q = 5.0%", "iid", 0.05, 0.01, "rejected", lambda x: x >= 0.99, ">= 99%"),
    Cell("iid, q = 5.0%", "iid", 0.05, 0.01, "calls", lambda x: x <= 110, "<= 110"),
    Cell("AR(1) phi .6, q = 1.0%", "ar6", 0.01, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True),
    Cell("AR(1) phi .9, q = 1.0%", "ar9", 0.01, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True),
    Cell("same, p99 = 8 p90", "ar9x2", 0.01, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True),
    Cell("same, p99 = 67 p90", "ar9x4", 0.01, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True),
    Cell("p95, phi .6, q = 5.0%", "ar6", 0.05, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True, 0.05),
    Cell("p95, phi .9, q = 5.0%", "ar9", 0.05, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True, 0.05),
    Cell("same, limit = 4 p90", "ar9x4", 0.05, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True, 0.05),
    Cell("p90, phi .9, q = 10%", "ar9", 0.1, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True, 0.1),
    Cell("p50, phi .9, q = 50%", "ar9", 0.5, 0.05, "accepted", lambda x: x <= 0.05, "<= 5%",
         4000, True, 0.5),
    Cell("good, 3% noisy time", "noisy", 0.002, 0.01, "rejected", lambda x: x <= 0.02, "<= 2%"),
)  # fmt: skip


def main() -> None:
    """Simulate every cell and print measured beside target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    runs = parser.parse_args().runs
    done: dict[tuple[str, float], tuple[Outcome, str]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for cell in CELLS:
            if (cell.name, cell.alpha) not in done:
                parts = list(pool.map(_part, _shares(cell, runs)))
                done[cell.name, cell.alpha] = _merge(parts), _rivals(cell, runs)
    print(f"{'process':24} {'alpha':>5}  {'measure':10} {'measured':>9} {'target':>8}  ok")
    failures = 0
    for cell in CELLS:
        outcome, rivals = done[cell.name, cell.alpha]
        value = float(getattr(outcome, cell.what))
        shown = f"{value:.0f}" if cell.what == "calls" else f"{value:.2%}"
        met = cell.target(value)
        failures += not met
        print(f"{cell.name:24} {cell.alpha:5}  {cell.what:10} {shown:>9} {cell.shown:>8}  "
              f"{'yes' if met else 'NO'}   {rivals if cell.what != 'calls' else ''}")  # fmt: skip
    print(f"{runs} runs a cell; {failures} targets missed")


def _shares(cell: Cell, runs: int) -> Iterable[Part]:
    size = max(32, runs // 16)  # each part works out the boundaries anew
    for number, start in enumerate(range(0, runs, size)):
        count = min(size, runs - start)
        yield Part(
            cell.make, cell.share, cell.alpha, cell.tail, cell.cap, cell.tempered, count, number
        )


def _part(job: Part) -> tuple[Outcome, int]:
    rng = np.random.default_rng([job.seed, 7])
    test = TailTest(job.tail, job.alpha, 0.05)
    decide = _decide_tempered if job.tempered else _decide
    if job.make == "noisy":
        decide = _decide_noisy
    bounds = _boundaries(test, job.cap)
    streams = (_stream(job.make, job.share, job.cap, rng) for _ in range(job.runs))
    results = [decide(test, stream, bounds) for stream in streams]
    verdicts = np.array([verdict for verdict, _ in results])
    accepted, rejected = np.mean(verdicts == "accept"), np.mean(verdicts == "reject")
    calls = float(np.mean([n for _, n in results]))
    return Outcome(
        float(accepted), float(rejected), float(1 - accepted - rejected), calls
    ), job.runs


def _merge(parts: list[tuple[Outcome, int]]) -> Outcome:
    weights = [runs for _, runs in parts]
    names = ("accepted", "rejected", "undecided", "calls")
    return Outcome(
        *(float(np.average([getattr(o, name) for o, _ in parts], weights=weights))
          for name in names)
    )  # fmt: skip


def _stream(make: str, share: float, cap: int, rng: np.random.Generator) -> Stream:
    """Latencies whose budget is 1: the share ``share`` of calls exceeds it."""
    if make == "iid":
        return np.where(rng.random(cap) < share, 2.0, 0.5)
    if make == "noisy":  # a good model; for 3% of the time somebody else takes the core
        noisy = np.repeat(rng.random(cap // LOOK_EVERY) < 0.03, LOOK_EVERY)
        return np.where((rng.random(cap) < share) | (noisy & (rng.random(cap) < 0.8)), 2.0, 0.5) + (
            10.0 * noisy
        )
    phi, spread = {"ar6": (0.6, 1), "ar9": (0.9, 1), "ar9x2": (0.9, 2), "ar9x4": (0.9, 4)}[make]
    steps = rng.standard_normal(cap) * math.sqrt(1 - phi * phi)
    first = phi * rng.standard_normal()
    latent = lfilter([1.0], [1.0, -phi], steps, zi=[first])[0]
    scaled: Stream = np.exp(spread * (latent - NormalDist().inv_cdf(1 - share)))
    return scaled


def _boundaries(test: TailTest, cap: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each number of calls the most exceedances that accept, and the fewest that reject."""
    accept, reject = np.full(cap + 1, -1), np.full(cap + 1, cap + 1)
    most, fewest = -1, 1
    for calls in range(1, cap + 1):
        while test.accepts(calls, most + 1):
            most += 1
        while not test.rejects(calls, min(fewest, calls)) and fewest <= calls:
            fewest += 1
        accept[calls], reject[calls] = most, fewest
    return accept, reject


def _decide(test: TailTest, stream: Stream, bounds: Any) -> tuple[str, int]:
    """Look after every call, as the theory allows."""
    over = np.cumsum(stream > 1.0)
    accept, reject = bounds
    calls = np.arange(1, over.size + 1)
    hits = np.flatnonzero((over <= accept[calls]) | (over >= reject[calls]))
    if hits.size == 0:
        return "undecided", over.size
    first = int(hits[0])
    return ("accept" if over[first] <= accept[first + 1] else "reject"), first + 1


def _decide_tempered(test: TailTest, stream: Stream, _: Any) -> tuple[str, int]:
    """Look after every block, with the evidence tempered by the variance inflation."""
    over = np.cumsum(stream > 1.0)
    scaled = (stream * 1e6).astype(np.int64)
    for calls in range(LOOK_EVERY, stream.size + 1, LOOK_EVERY):
        count = int(over[calls - 1])
        if not (test.accepts(calls, count) or test.rejects(calls, count)):
            continue
        if test.accepts(calls, count, variance_inflation(scaled[:calls], test.tail, 1e6)):
            return "accept", calls
        if test.rejects(calls, count, variance_inflation(scaled[:calls], test.tail)):
            return "reject", calls
    return "undecided", stream.size


def _decide_noisy(test: TailTest, stream: Stream, _: Any) -> tuple[str, int]:
    """Accept on all calls, reject only on those of blocks whose canary was quiet."""
    noisy = stream > 5.0
    over = np.where(noisy, stream - 10.0, stream) > 1.0
    all_over, clean_over = np.cumsum(over), np.cumsum(over & ~noisy)
    clean = np.cumsum(~noisy)
    for calls in range(LOOK_EVERY, stream.size + 1, LOOK_EVERY):
        if test.accepts(calls, int(all_over[calls - 1])):
            return "accept", calls
        if test.rejects(int(clean[calls - 1]), int(clean_over[calls - 1])):
            return "reject", calls
    return "undecided", stream.size


def _rivals(cell: Cell, runs: int) -> str:
    """What other rules do on the same kind of streams, by their share of acceptances."""
    rng = np.random.default_rng(11)
    raw = {100: 0, 1000: 0}
    loadgen = 0
    runs = min(runs, 2000)
    enough = next(n for n in range(1, 2000) if bdtr(0, n, cell.tail) <= 0.01)
    for _ in range(runs):
        stream = _stream(cell.make, cell.share, cell.cap, rng)
        for n in raw:
            raw[n] += bool(np.percentile(stream[:n], 100 * (1 - cell.tail)) <= 1.0)
        n = max(1024, enough)  # LoadGen's own floor, its binomial at 99%
        loadgen += bool(bdtr(int(np.count_nonzero(stream[:n] > 1.0)), n, cell.tail) <= 0.01)
    return (
        f"accepted by the raw percentile n=100 {raw[100] / runs:.1%}, "
        f"n=1000 {raw[1000] / runs:.1%}, "
        f"LoadGen's rule n=1024 {loadgen / runs:.1%}"
    )


if __name__ == "__main__":
    main()
