"""The regression gate's statistics, against exact distributions and worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from optimize.budgets.regression import (
    FIRST_LOOK,
    JUDGED,
    LOOKS,
    MOST_CHUNKS,
    Loss,
    Ratio,
    chunk_calls,
    decided,
    is_look,
    parse_loss,
    parse_tolerance,
    ratios,
)
from optimize.errors import InputError


def world(factor: float, chunks: int, seed: int, calls: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Two models of which one is slower by ``factor``, on a machine that drifts and stalls."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.2, (chunks, 1)), axis=0)
    speed = np.exp(np.sin(drift))  # between a third and three times the usual; both share it
    draw = np.exp(0.06 * rng.standard_normal((2, chunks, calls)))
    stalled = np.where(rng.random((2, chunks, 1)) < 0.05, 8.0, 1.0)
    base, other = 1e6 * speed * draw * stalled
    return base.astype(np.int64), (factor * other).astype(np.int64)


def outcome(factor: float, seed: int) -> str:
    base, other = world(factor, MOST_CHUNKS, seed)
    found: tuple[Ratio, ...] = ()
    for count in (n for n in range(MOST_CHUNKS + 1) if is_look(n)):
        found = ratios(base[:count], other[:count], 0.1, 0.99)
        if decided(found):
            break
    return (
        "stopped"
        if any(r.state == "slower" for r in found)
        else "passed"
        if decided(found)
        else "open"
    )


@pytest.mark.parametrize(
    ("factor", "wanted"), [(1.0, "passed"), (1.01, "passed"), (1.3, "stopped")]
)
def test_what_is_far_from_the_tolerance_is_always_decided(factor: float, wanted: str) -> None:
    assert {outcome(factor, seed) for seed in range(25)} == {wanted}


def test_what_lies_on_the_tolerance_is_hardly_ever_decided() -> None:
    found = [outcome(1.1, seed) for seed in range(40)]
    # 99% over all looks; 3 of 40 has a probability of 0.1% if each errs in 1%.
    assert sum(state != "open" for state in found) < 3


def test_the_interval_is_that_of_a_sign_test_over_all_looks() -> None:
    rng = np.random.default_rng(0)
    base = np.full((48, 1), 10**6)
    other = (1e6 * np.exp(rng.normal(0, 0.3, (48, 1)))).astype(np.int64)
    found = ratios(base, other, 0.1, 0.99)[0]
    each = 0.01 / (LOOKS * len(JUDGED))
    rank = int(binom.ppf(each, 48, 0.5))  # the largest r with P(Bin <= r - 1) <= each
    ordered = np.sort(other[:, 0] / 1e6)
    assert binom.cdf(rank - 1, 48, 0.5) <= each < binom.cdf(rank, 48, 0.5)
    assert found.low == pytest.approx(ordered[rank - 1], abs=1e-6)
    assert found.high == pytest.approx(ordered[48 - rank], abs=1e-6)
    assert found.value == pytest.approx(np.median(ordered))


@given(st.integers(1, FIRST_LOOK - 1))
def test_too_few_chunks_decide_nothing(count: int) -> None:
    base, other = world(3.0, count, 0)
    assert not decided(ratios(base, other, 0.1, 0.99)) or count >= 11


def test_a_tail_alone_that_got_worse_is_stopped() -> None:
    base, _ = world(1.0, 96, 3)
    other = base.copy()
    other[:, ::33] *= 2  # 3 calls of 100 take twice as long
    states = {r.quantity: r.state for r in ratios(base, other, 0.1, 0.99)}
    assert states == {"p50": "held", "p99": "slower"}


@pytest.mark.parametrize(
    ("call_ms", "calls"), [(0.01, 100), (5, 100), (20, 50), (60, 20), (5000, 20)]
)
def test_a_chunk_is_a_hundred_calls_or_a_second(call_ms: float, calls: int) -> None:
    assert abs(chunk_calls(call_ms * 1e6) - calls) <= 0


def test_tolerances_are_read() -> None:
    assert parse_tolerance("10%") == pytest.approx(0.1)
    assert parse_loss("none") is None
    assert parse_loss("1%") == Loss(0.01, True)
    assert Loss(0.01, True).of(-0.5) == pytest.approx(0.005)
    assert Loss(0.02).of(0.5) == 0.02


@pytest.mark.parametrize("text", ["0.1", "0%", "-5%", "ten", "2000%"])
def test_strange_tolerances_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="write for example 10%"):
        parse_tolerance(text)
