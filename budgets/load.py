"""How many requests one process bears: what waiting adds to the timed calls.

A budget is judged on calls that follow each other, as a client that waits for its answer makes
them. Where requests come at random, some meet a process that is busy, and wait.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ARRIVALS = 100_000
HALVINGS = 20  # of the interval of rates: to a millionth of the rate that keeps a process busy
# The nearer to always, the more a host that slows down by some percent breaks: with requests that
# really came at random, nine tenths of a rate of 95% held in none to two of three tries.
MOST_BUSY = 0.8


def highest_rate(
    service_ns: NDArray[np.int64], share: float, limit_ns: float, seed: int = 0
) -> float | None:
    """The highest rate of requests at which so many of them are answered in time.

    Poisson arrivals, one process, one request at a time, first come first served, no time to
    start. Simulated: the requests take what the calls took, in the order in which they were
    timed, so that slow spells stay together; the waiting is Lindley's recursion (D. V. Lindley,
    The theory of queues with a single server, 1952).

    Args:
        service_ns: the timed calls in order, nanoseconds, shape (calls,).
        share: of the requests that must be answered within the limit, such as 0.99.
        limit_ns: from a request's arrival to its answer, nanoseconds.
        seed: of the arrivals.

    Returns:
        Requests a second, such that the process is not busy for more than ``MOST_BUSY`` of the
        time; None if there are no calls, or too many take too long by themselves.
    """
    if service_ns.size == 0 or _percentile(service_ns, share) > limit_ns:
        return None
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(size=ARRIVALS)
    service = np.resize(service_ns, ARRIVALS).astype(np.float64)
    low, high = 0.0, MOST_BUSY  # the share of time in which the process is busy
    for _ in range(HALVINGS):
        busy = (low + high) / 2
        answered = service + waiting(service, gaps * service.mean() / busy)
        low, high = (busy, high) if _percentile(answered, share) <= limit_ns else (low, busy)
    return low * 1e9 / float(service.mean()) or None


def waiting(service: NDArray[np.float64], gaps: NDArray[np.float64]) -> NDArray[np.float64]:
    """How long each request waits: Lindley's recursion, written without a loop.

    Args:
        service: time that each request takes, shape (requests,).
        gaps: time between each request and the one before it, in the same unit and shape.
    """
    steps = np.concatenate([[0.0], service[:-1] - gaps[1:]])
    walk = np.cumsum(steps)
    found: NDArray[np.float64] = walk - np.minimum.accumulate(walk)
    return found


def _percentile(values: NDArray[np.float64] | NDArray[np.int64], share: float) -> float:
    """Nearest rank, as budgets are held against."""
    rank = max(0, math.ceil(share * values.size - 1e-9) - 1)
    return float(np.partition(values, rank)[rank])
