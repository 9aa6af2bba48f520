"""Latencies beside the source's at the same moment: a machine's mood cancels out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optimize.budgets.profile import Block, Profile, paired_ratio, relative_samples
from optimize.results.latency import RelativeReport


def profile(speeds: list[float], ns: float, offset: int, seed: int) -> Profile:
    """One block a second, each as slow as the machine is then."""
    rng = np.random.default_rng(seed)
    blocks = []
    for second, speed in enumerate(speeds):
        samples = ns * speed * rng.uniform(0.9, 1.1, 40)
        started = 10**18 + second * 10**9 + offset
        blocks.append(Block(samples.astype(np.int64), 0, started))
    return Profile(tuple(blocks))


moods = st.lists(st.floats(0.5, 20), min_size=3, max_size=8)


@given(moods, moods)
def test_two_moments_of_a_drifting_machine_give_the_same_figures(
    first: list[float], second: list[float]
) -> None:
    source = profile([*first, *second], 1e6, 0, 0)
    early = profile(first, 5e5, 10**7, 1)
    late = profile(second, 5e5, 10**7 + len(first) * 10**9, 2)
    for other in (early, late):
        samples = relative_samples(source, other)
        assert samples.shape == other.samples_ns.shape
        # Both spread by a tenth, and a median of forty by less.
        assert 0.5 * 0.9 / 1.1 <= samples.min() <= samples.max() <= 0.5 * 1.1 / 0.9
        ratio, _, _ = paired_ratio(source, other, 0.99)
        assert ratio is not None
        assert abs(ratio * np.median(samples) - 1) < 0.1


@given(st.permutations(range(6)), st.integers(0, 2**20))
def test_the_nearest_block_is_found_whatever_their_order(order: list[int], shift: int) -> None:
    source = profile([1, 2, 3, 4, 5, 6], 1e6, 0, 0)
    shuffled = Profile(tuple(source.blocks[i] for i in order))
    other = profile([1, 2, 3, 4, 5, 6], 1e6, shift, 1)
    assert np.array_equal(relative_samples(shuffled, other), relative_samples(source, other))


def test_nothing_timed_is_no_figure() -> None:
    some = profile([1, 1], 1e6, 0, 0)
    assert relative_samples(Profile(()), some).size == 0
    assert RelativeReport.of(some, Profile(()), 0.99) is None
