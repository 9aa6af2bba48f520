"""How far outputs are apart, against plain double-precision arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from optimize.models.run import Difference, difference


def apart(mine: Any, theirs: Any) -> Difference:
    return difference([{"y": np.asarray(mine)}], [{"y": np.asarray(theirs)}])


def test_equal_outputs_are_equal() -> None:
    values = [1.0, -np.inf, np.nan, 0.0]
    assert str(apart(values, values)) == "equal"
    assert str(apart(["a", "b"], ["a", "b"])) == "equal"


def test_the_largest_gap_is_relative_to_the_largest_magnitude() -> None:
    result = apart([1.0, -3.0, 8.5], [1.0, -3.5, 8.0])
    assert result.absolute == pytest.approx(0.5)
    assert result.relative == pytest.approx(0.5 / 8)
    assert result.output == "y"


def test_small_types_do_not_wrap_around() -> None:
    result = apart(np.array([0], np.uint8), np.array([255], np.uint8))
    assert (result.absolute, result.relative) == (255, 1)
    large = apart(np.array([60000], np.float16), np.array([-60000], np.float16))
    assert large.absolute == pytest.approx(120000, rel=1e-3)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ([np.nan, 1.0], [0.0, 1.0]),
        ([0.0, 1.0], [np.nan, 1.0]),
        ([np.inf], [1.0]),
        ([np.inf], [-np.inf]),
        ([1.0, 2.0], [1.0]),
        ([[1.0]], [1.0]),
        (["a"], ["b"]),
        ([1e-30], [0.0]),
    ],
)
def test_what_cannot_be_compared_is_infinitely_far(mine: Any, theirs: Any) -> None:
    assert math.isinf(apart(mine, theirs).relative)


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min, -1e4])
def test_a_mask_makes_no_difference_small(mask: float) -> None:
    rng = np.random.default_rng(0)
    mine, theirs = rng.standard_normal((2, 8)).astype(np.float32)
    mine[5:] = theirs[5:] = mask
    assert difference([{"y": mine}], [{"y": theirs}]).relative > 0.1


def test_a_missing_output_is_infinitely_far() -> None:
    result = difference([{"a": np.ones(2)}], [{"a": np.ones(2), "b": np.ones(2)}])
    assert math.isinf(result.relative)


def test_the_worst_of_all_outputs_and_samples_counts() -> None:
    want = [{"a": np.array([10.0]), "b": np.array([1.0])}] * 2
    got = [
        {"a": np.array([10.5]), "b": np.array([1.0])},
        {"a": np.array([10.0]), "b": np.array([0.75])},
    ]
    result = difference(got, want)
    assert result.output == "b"
    assert result.relative == pytest.approx(0.25)
    assert result.absolute == pytest.approx(0.5)
