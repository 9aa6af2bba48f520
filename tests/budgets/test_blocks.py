"""Blocks: what is clean, and which are paired."""

from __future__ import annotations

import numpy as np

from optimize.budgets.profile import Block, Profile, paired_ratio


def profile(*blocks: list[int]) -> Profile:
    return Profile(tuple(Block(np.array(b, np.int64), started_ns=i) for i, b in enumerate(blocks)))


def test_disturbed_blocks_are_not_clean() -> None:
    quiet, loud = Block(np.array([1, 2])), Block(np.array([9]), disturbance="noise")
    both = Profile((quiet, loud))
    assert both.samples_ns.tolist() == [1, 2, 9]
    assert both.clean_ns.tolist() == [1, 2]


def test_ratios_pair_blocks_that_ran_at_the_same_time() -> None:
    # The machine halves its speed midway: the ratio stays 2 all along.
    reference = profile(*[[200, 200]] * 20, *[[400, 400]] * 20)
    other = profile(*[[100, 100]] * 20, *[[200, 200]] * 20)
    ratio, low, high = paired_ratio(reference, other, 0.99)
    assert (ratio, low, high) == (2.0, 2.0, 2.0)
    assert paired_ratio(reference, Profile(()), 0.99) == (None, None, None)
