"""A sequential test of "at most a share q0 of the calls exceeds the limit".

With q = P(latency > limit), q0 = 0.01 for a p99, n calls and k of them over the limit, the test
martingale is a mixture of likelihood ratios of Bernoulli(q_j) against Bernoulli(q0):

    E(n, k) = sum_j w_j (q_j / q0)^k ((1 - q_j) / (1 - q0))^(n - k)

With every q_j below q0 it is a supermartingale under q >= q0, with every q_j above q0 under
q <= q0, so by Ville's inequality P(E ever reaches 1/alpha) <= alpha: it may be looked at after
every call. See docs/decisions/0002-verdict.md and Ramdas et al., "Game-theoretic statistics and
safe anytime-valid inference" (2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Decision = Literal["accept", "reject", "undecided"]

# Alternatives as multiples of q0, and their weights. Half the weight on "never exceeds" lets a
# variant with head room pass after about 500 calls; the others keep power close to the limit.
_BELOW = ((0.0, 0.5), (0.1, 0.2), (0.2, 0.1), (0.4, 0.1), (0.6, 0.1))
_ABOVE = (1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)


# Below half of the limit, a call is far from exceeding it.
FAR = 2.0
# Slow is what exceeds the quantile that ten times the tail does, the median at most; five times if
# the calls are far from a p99's limit. Percentiles beyond the p99 count as the p99, for few of some
# hundred calls exceed quantiles of their own.
USUAL_TAILS, FAR_TAILS, P99_TAIL = 10, 5, 0.01
# A p90 or a p50 could be decided on so few calls that strong drift looks like luck. On less than so
# many independent ones, drift counts as strong.
P95_TAIL, RELIABLE = 0.05, 150
_SMALLEST_BATCH = 4


@dataclass(frozen=True)
class TailTest:
    """The test of one latency budget.

    Attributes:
        tail: q0, the share of calls that may exceed the limit; in (0, 1).
        alpha: bound on the probability to accept although q >= q0.
        beta: bound on the probability to reject although q <= q0.
    """

    tail: float
    alpha: float
    beta: float

    def log_accept(self, calls: int, over: int) -> float:
        """Natural logarithm of the evidence that q < q0."""
        return _log_mixture(self.tail, [(m * self.tail, w) for m, w in _BELOW], calls, over)

    def log_reject(self, calls: int, over: int) -> float:
        """Natural logarithm of the evidence that q > q0."""
        shares = sorted({min(1.0, m * self.tail) for m in _ABOVE})
        return _log_mixture(self.tail, [(q, 1 / len(shares)) for q in shares], calls, over)

    def accepts(self, calls: int, over: int, inflation: float = 1.0) -> bool:
        """Whether the evidence that q < q0 reaches 1/alpha.

        ``inflation`` (>= 1) is the variance inflation of autocorrelated calls; it tempers the
        evidence, ln E / inflation.
        """
        return self.log_accept(calls, over) / inflation >= -math.log(self.alpha)

    def rejects(self, calls: int, over: int, inflation: float = 1.0) -> bool:
        """Whether the evidence that q > q0 reaches 1/beta; ``inflation`` as in :meth:`accepts`."""
        return self.log_reject(calls, over) / inflation >= -math.log(self.beta)

    def calls_to_accept(self, calls: int, over: int, inflation: float = 1.0) -> int | None:
        """How many further calls would accept if exceedances went on at the rate seen so far.

        None if that rate is so close to q0, or above it, that a million would not.
        """
        rate = over / calls if calls else 0.0
        low, high = 0, 1_000_000
        if not self._accepts_at(calls, over, high, rate, inflation):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._accepts_at(calls, over, middle, rate, inflation):
                high = middle
            else:
                low = middle
        return high

    def _accepts_at(self, calls: int, over: int, more: int, rate: float, inflation: float) -> bool:
        return self.accepts(calls + more, over + round(rate * more), inflation)


def variance_inflation(
    samples: NDArray[np.int64], tail: float, limit: float | None = None
) -> float:
    """Variance inflation of the indicator "a slow call", which evidence is divided by.

    The mean of autocorrelated calls varies more than that of independent ones; the ratio is taken
    over batches of sqrt(n) calls. Slow is what exceeds the samples' own p90 (for a p99; the median
    for a p95, whose verdict takes so few calls that a slow spell hardly shows in their p90).
    Where even that is far below ``limit``, drift among fast calls says little about exceeding it:
    slow is then what exceeds half of the limit, and the inflation at the p95 (for a p99) counts up
    to the true one at the budgeted percentile of an AR(1) process with phi = .9. For a p90 or a p50
    it counts as at least that one where it was seen on few calls. See
    docs/decisions/0002-verdict.md.

    Args:
        samples: latencies in the order in which they were measured, shape (n,).
        tail: the share of calls that may exceed the budget; in (0, 1).
        limit: the budget in the samples' unit; None to ask for the inflation as if it were near.

    Returns:
        At least 1.
    """
    if math.isqrt(samples.size) < _SMALLEST_BATCH:
        return 1.0
    tail = max(tail, P99_TAIL)
    inflation = _drift(samples, tail, limit)
    if tail > P95_TAIL and samples.size < RELIABLE * inflation:
        return max(inflation, far_inflation(tail))
    return inflation


def _drift(samples: NDArray[np.int64], tail: float, limit: float | None) -> float:
    usual = _quantile(samples, USUAL_TAILS * tail)
    inflation = _batch_inflation(samples > usual)
    if limit is None or usual >= limit / FAR:
        return inflation
    if tail == P99_TAIL:
        inflation = min(inflation, _batch_inflation(samples > _quantile(samples, FAR_TAILS * tail)))
    return max(_batch_inflation(samples > limit / FAR), min(inflation, far_inflation(tail)))


def far_inflation(tail: float) -> float:
    """What strong drift counts for: at most, among calls far below the limit.

    The variance inflation of "exceeds the quantile 1 - tail" in an AR(1) process with phi = .9: 5.9
    for a p99, 8.6 for a p95, 10.1 for a p90. Percentiles beyond the p99 count as the p99.
    """
    return 5.9 * math.pow(max(1.0, tail / P99_TAIL), 0.235)


def _quantile(samples: NDArray[np.int64], above: float) -> float:
    """What the share ``above`` of the samples exceeds, at least their median."""
    return float(np.quantile(samples, 1 - min(0.5, above)))


def _batch_inflation(slow: NDArray[np.bool_]) -> float:
    size = math.isqrt(slow.size)
    variance = float(slow.var())
    if variance == 0:
        return 1.0
    means = slow[: size * (slow.size // size)].reshape(-1, size).mean(axis=1)
    return max(1.0, size * float(means.var(ddof=1)) / variance)


def _log_mixture(
    null: float, alternatives: list[tuple[float, float]], calls: int, over: int
) -> float:
    terms = [
        math.log(weight) + _times(over, q, null) + _times(calls - over, 1 - q, 1 - null)
        for q, weight in alternatives
    ]
    peak = max(terms)
    if peak == -math.inf:
        return -math.inf
    return peak + math.log(sum(math.exp(term - peak) for term in terms))


def _times(count: int, share: float, null: float) -> float:
    if count == 0:
        return 0.0  # 0 * log 0 is 0 here: an outcome that did not occur weighs nothing
    return count * math.log(share / null) if share > 0 else -math.inf
