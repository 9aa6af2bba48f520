"""Budgets and floors as text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.budgets.budget import PERCENTILES, Budget, Floor
from optimize.errors import InputError

budgets = st.builds(
    Budget, st.sampled_from([*PERCENTILES, "size", "memory"]), st.integers(1, 10**15)
)


@given(budgets)
def test_text_round_trips(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("p99=20ms", 20_000_000),
        ("p99<=20ms", 20_000_000),
        (" p99 = 20 ms ", 20_000_000),
        ("p99.9=1.5s", 1_500_000_000),
        ("p50=250us", 250_000),
        ("p90=7ns", 7),
        ("size=25MB", 25_000_000),
        ("size=1.5kB", 1_500),
        ("memory=2GB", 2_000_000_000),
        ("p95=1e-3s", 1_000_000),
    ],
)
def test_units(text: str, limit: int) -> None:
    assert Budget.parse(text).limit == limit


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("p99=20", "has no unit"),
        ("p99=20MB", "ns, us, ms, s"),
        ("size=20ms", "kB, MB, GB"),
        ("p99=-1ms", "not positive"),
        ("p99=0ms", "not positive"),
        ("p98=1ms", "p99"),
        ("p99", "p99=20ms"),
        ("", "p99=20ms"),
        ("p99=1.2.3ms", "not a number"),
        ("p99=0.1ns", "smallest limit"),
        ("p99=nanms", "form"),
    ],
)
def test_bad_budgets_say_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "floor"),
    [
        ("top1=0.9", Floor("absolute", 0.9, "top1")),
        ("top1=90%", Floor("absolute", 0.9, "top1")),
        ("drop=0.01", Floor("drop", 0.01)),
        ("drop=1%", Floor("relative", 0.01)),
        ("drop=0", Floor("drop", 0.0)),
    ],
)
def test_floors(text: str, floor: Floor) -> None:
    assert Floor.parse(text) == floor
    assert Floor.parse(str(floor)) == floor


@pytest.mark.parametrize("text", ["top1", "drop=-1", "top1=abc", "=0.9", "top1=inf", "drop=nan"])
def test_bad_floors(text: str) -> None:
    with pytest.raises(InputError, match="floor"):
        Floor.parse(text)
