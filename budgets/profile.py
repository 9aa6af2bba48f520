"""Latency samples of one variant, and the percentiles and bounds that they support."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Block:
    """Calls that were timed in one go, in one process.

    Attributes:
        samples_ns: end-to-end latency of each call in order, int64, shape (calls,), nanoseconds.
        process: which of the variant's processes ran them, from 0.
        started_ns: when the block began, nanoseconds since 1970.
        disturbance: what disturbed the machine meanwhile; None for a clean block.
        parts_ns: what each call's time was spent on, by name, each of shape (calls,); empty where
            a call is compute alone.
    """

    samples_ns: NDArray[np.int64]
    process: int = 0
    started_ns: int = 0
    disturbance: str | None = None
    parts_ns: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Profile:
    """All that was measured of one variant's latency.

    Attributes:
        blocks: the timed calls, in the order in which they ran.
        load_ns: time to create the session.
        first_call_ns: time of the first call of all.
        warmup_calls: calls thrown away before the first block.
        steady: whether the warm-up's steadiness rule was met.
        peak_bytes: most memory that any of its processes held; None where it cannot be told.
    """

    blocks: tuple[Block, ...]
    load_ns: int = 0
    first_call_ns: int = 0
    warmup_calls: int = 0
    steady: bool = True
    peak_bytes: int | None = None
    samples_ns: NDArray[np.int64] = field(init=False, repr=False)
    clean_ns: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples_ns", _joined(self.blocks))
        clean = tuple(block for block in self.blocks if block.disturbance is None)
        object.__setattr__(self, "clean_ns", _joined(clean))

    def percentile_ns(self, share: float) -> float:
        """The nearest-rank percentile: the smallest sample with ``share`` of all at or below it.

        Raises:
            ValueError: there are no samples.
        """
        if self.samples_ns.size == 0:
            raise ValueError("no samples, hence no percentile")
        ordered = np.sort(self.samples_ns)
        # The guard absorbs rounding such as 0.95 * 100 = 95.00000000000001.
        return float(ordered[max(0, math.ceil(share * ordered.size - 1e-9) - 1)])

    @property
    def computed_ns(self) -> float:
        """The median of what is computed in a call, without what comes before and after it."""
        computed = [block.parts_ns.get("compute", block.samples_ns) for block in self.blocks]
        return float(np.median(np.concatenate(computed)))


def _joined(blocks: tuple[Block, ...]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *(block.samples_ns for block in blocks)])


def percentile_bounds(
    samples_ns: NDArray[np.int64] | NDArray[np.float64], share: float, confidence: float
) -> tuple[float | None, float | None]:
    """One-sided lower and upper bounds of a percentile, each at ``confidence``.

    They are order statistics chosen by the exact binomial distribution: with F the share of calls
    at or below the true percentile, the r-th smallest sample is a lower bound if
    P(Bin(n, share) <= r - 1) <= 1 - confidence, and the (k+1)-th largest an upper bound if
    P(Bin(n, 1 - share) <= k) <= 1 - confidence (David & Nagaraja, Order Statistics, 7.1).

    Args:
        samples_ns: independent samples, shape (n,).
        share: the percentile as a share, 0.99 for p99.
        confidence: of each bound, in (0.5, 1).

    Returns:
        The bounds in the samples' unit; None where n is too small for one.
    """
    from scipy.special import bdtr

    ordered = np.sort(samples_ns)
    n = ordered.size
    if n == 0:
        return None, None
    counts = np.arange(n)
    below = int(np.count_nonzero(bdtr(counts, n, share) <= 1 - confidence))
    over = int(np.count_nonzero(bdtr(counts, n, 1 - share) <= 1 - confidence))
    lower = float(ordered[below - 1]) if below else None
    upper = float(ordered[n - over]) if over else None
    return lower, upper


def relative_samples(reference: Profile, other: Profile) -> NDArray[np.float64]:
    """Every latency of ``other`` as a multiple of what a call of ``reference`` took at the time.

    That is the median of the reference's block that began nearest to the sample's own block, so
    that profiles which were timed at different moments can be compared on a machine whose speed
    drifts: both are in units of the same reference.

    Returns:
        Shape (calls of ``other``,); empty if either has no samples.
    """
    if not reference.blocks or not other.blocks:
        return np.empty(0)
    medians = [float(np.median(reference.blocks[i].samples_ns)) for i in _nearest(reference, other)]
    blocks = zip(other.blocks, medians, strict=True)
    return np.concatenate([block.samples_ns / median for block, median in blocks])


def _nearest(reference: Profile, other: Profile) -> list[int]:
    """For each block of ``other`` the number of the reference's that began nearest to it."""
    order = np.argsort([block.started_ns for block in reference.blocks], kind="stable")
    begun = np.array([block.started_ns for block in reference.blocks], np.int64)[order]
    started = np.array([block.started_ns for block in other.blocks], np.int64)
    after = np.clip(np.searchsorted(begun, started), 0, begun.size - 1)
    before = np.clip(after - 1, 0, None)
    closer = np.where(started - begun[before] <= np.abs(begun[after] - started), before, after)
    return [int(i) for i in order[closer]]


def paired_ratio(
    reference: Profile, other: Profile, confidence: float
) -> tuple[float | None, float | None, float | None]:
    """How many times as fast ``other`` is as ``reference``, both timed block by block in turns.

    Each block of ``other`` is paired with the block of ``reference`` that began nearest to it, so
    that drift hits both alike; the result is the median of the ratios of their medians, with its
    two-sided interval (order statistics).

    Returns:
        The ratio, its lower and its upper end; None without samples or with too few blocks.
    """
    if not reference.blocks or not other.blocks:
        return None, None, None
    nearest = _nearest(reference, other)
    ratios = np.array(
        [
            np.median(reference.blocks[i].samples_ns) / np.median(block.samples_ns)
            for i, block in zip(nearest, other.blocks, strict=True)
        ]
    )
    return float(np.median(ratios)), *percentile_bounds(ratios, 0.5, (1 + confidence) / 2)
