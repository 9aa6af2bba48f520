"""What a user may type for a budget or a floor, and what he reads if it is wrong."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimize.budgets.budget import Budget, Floor
from optimize.errors import InputError

UNITS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "kB": 1_000,
    "MB": 1_000_000,
    "GB": 1_000_000_000,
}
TIMES = ("p50", "p90", "p95", "p99", "p99.9")
whole_budgets = st.one_of(
    st.tuples(
        st.sampled_from(TIMES), st.integers(1, 10**6), st.sampled_from(["ns", "us", "ms", "s"])
    ),
    st.tuples(
        st.sampled_from(["size", "memory"]),
        st.integers(1, 10**6),
        st.sampled_from(["kB", "MB", "GB"]),
    ),
)
texts = st.one_of(
    st.text(max_size=30),
    st.from_regex(
        r"(p99|p50|size|drop|top1)<?=-?[\d.]{1,6}(e-?\d{1,9})?(ms|s|kB|%|)", fullmatch=True
    ),
)


@settings(deadline=None)
@given(whole_budgets, st.sampled_from(["=", "<=", " = ", " <= "]), st.sampled_from(["", " "]))
def test_a_limit_is_its_number_times_its_unit(
    given_as: tuple[str, int, str], sign: str, gap: str
) -> None:
    name, number, unit = given_as
    budget = Budget.parse(f"{name}{sign}{number}{gap}{unit}")
    assert (budget.quantity, budget.limit) == (name, number * UNITS[unit])


@settings(deadline=None)
@given(whole_budgets)
def test_at_most_is_what_a_budget_means_anyway(given_as: tuple[str, int, str]) -> None:
    name, number, unit = given_as
    assert Budget.parse(f"{name}<={number}{unit}") == Budget.parse(f"{name}={number}{unit}")


@pytest.mark.parametrize(
    ("quantity", "tail"),
    [
        ("p50", 0.5),
        ("p90", 0.1),
        ("p95", 0.05),
        ("p99", 0.01),
        ("p99.9", 0.001),
        ("size", None),
        ("memory", None),
    ],
)
def test_the_tail_is_the_share_that_may_exceed(quantity: str, tail: float | None) -> None:
    unit = "ms" if quantity.startswith("p") else "MB"
    assert Budget.parse(f"{quantity}=1{unit}").tail == tail


@settings(deadline=None)
@given(texts)
@example("p99=1e999999ms")
@example("p99=1e99999999999999999999ms")
@example("p99=²ms")
def test_any_text_is_a_budget_or_one_sentence(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except InputError as error:
        assert text in str(error) or repr(text) in str(error)
        return
    assert Budget.parse(str(budget)) == budget
    assert budget.amount(budget.limit)  # reports and reasons show it


@settings(deadline=None)
@given(texts)
def test_any_text_is_a_floor_or_one_sentence(text: str) -> None:
    try:
        floor = Floor.parse(text)
    except InputError as error:
        assert text in str(error) or repr(text) in str(error)
        return
    assert Floor.parse(str(floor)) == floor


@pytest.mark.parametrize("text", ["p99=1e999ms", "size=1e999GB", "p99=1e999999ms"])
def test_a_limit_beyond_all_measure_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("p99=20", "ns, us, ms, s"),
        ("size=5XB", "kB, MB, GB"),
        ("size=20mb", "kB, MB, GB"),
        ("memory=4ms", "kB, MB, GB"),
        ("p99=5min", "ns, us, ms, s"),
        ("latency=20ms", "p50, p90, p95, p99, p99.9, size and memory"),
        ("P99=20ms", "p50, p90, p95, p99, p99.9, size and memory"),
        ("p99>=20ms", "p99=20ms"),
        ("p99:20ms", "p99=20ms"),
        ("p99=20ms,p50=3ms", "no unit"),
        ("p99=infms", "p99=20ms"),
        ("p99=NaN5ms", "not positive"),
        ("p99=-20ms", "not positive"),
        ("p99=-0ms", "not positive"),
        ("size=0MB", "not positive"),
        ("p99=--5ms", "not a number"),
        ("p99=.ms", "not a number"),
    ],
)
def test_a_bad_budget_is_told_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)) as raised:
        Budget.parse(text)
    assert "\n" not in str(raised.value)


def test_the_least_size_that_is_named_is_the_least_that_is_taken() -> None:
    assert Budget.parse("size=0.5kB").limit == 500
    with pytest.raises(InputError) as raised:
        Budget.parse("size=0.0004kB")
    assert "1 kB" not in str(raised.value)


@pytest.mark.parametrize("percent", ["0.1%", "0.5%", "0.7%", "1%", "1.1%", "2.5%", "14%", "29%"])
def test_a_relative_drop_is_shown_as_it_was_typed(percent: str) -> None:
    assert str(Floor.parse(f"drop={percent}")) == f"drop={percent}"


@settings(deadline=None)
@given(st.integers(0, 9_999))
def test_a_relative_drop_keeps_its_value(hundredths: int) -> None:
    floor = Floor.parse(f"drop={hundredths / 100}%")
    assert floor.kind == "relative"
    assert floor.value == pytest.approx(hundredths / 10_000)
    assert Floor.parse(str(floor)) == floor


@settings(deadline=None)
@given(st.floats(0, 1e6), st.sampled_from(["drop", "mae", "my_metric"]))
def test_floors_round_trip(value: float, name: str) -> None:
    floor = Floor.parse(f"{name}={value!r}")
    assert floor.value == value
    assert floor.metric == (None if name == "drop" else name)
    assert Floor.parse(str(floor)) == floor


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("top1", "top1=0.90"),
        ("top1=", "top1=0.90"),
        ("top1=high", "not a number"),
        ("top1=0.9%%", "top1=0.90"),
        ("top1=nan", "not finite"),
        ("top1=1e999", "not finite"),
        ("top1=99", "top1=90%"),
        ("drop=-1%", "negative"),
        ("drop=-0.01", "negative"),
        ("p99=20ms", "not a number"),
    ],
)
def test_a_bad_floor_is_told_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(hint)) as raised:
        Floor.parse(text)
    assert "\n" not in str(raised.value)
