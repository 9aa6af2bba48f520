"""What follows from a report: front, floor, focus, axes; against definitions spelled out here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import (
    infeasible,
    many,
    none_kept,
    one,
    profile,
    undecided,
    unmeasured,
    variant,
    view,
)

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.budget import Budget, Floor
from optimize.reports.shapes import log_range, log_ticks, tail_curve, tail_height, thinned
from optimize.reports.view import View
from optimize.reports.words import facts, headline
from optimize.results.report import AccuracyReport, BudgetReport, FloorReport

coordinate = st.integers(1, 6)


def placed(places: list[tuple[int, int]], metric: str) -> View:
    """Variants at whole numbers of p99 (milliseconds) and accuracy."""
    made = profile(1.0, 100)
    rows = []
    for number, (ms, value) in enumerate(places):
        row = variant(f"v{number}", "kept", "", made, float(value))
        assert row.latency
        assert row.accuracy
        latency = replace(row.latency, p99_ms=float(ms))
        # As earlier versions wrote it: the metric's name says which way is up.
        accuracy = replace(row.accuracy, metric=metric, higher_is_better=None)
        rows.append((replace(row, latency=latency, accuracy=accuracy), made))
    return view(rows, None, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=8), st.booleans())
def test_the_front_holds_what_nothing_beats(places: list[tuple[int, int]], error: bool) -> None:
    found = placed(places, "mae" if error else "top1").points()
    for point, (ms, value) in zip(found, places, strict=True):
        beaten = any(
            o_ms <= ms and (o <= value if error else o >= value) and (o_ms, o) != (ms, value)
            for o_ms, o in places
        )
        assert point.on_front is not beaten


def test_failed_variants_are_never_on_the_front() -> None:
    shown = many()
    assert all(p.variant.status != "failed" for p in shown.points() if p.on_front)
    assert any(p.variant.status == "failed" for p in shown.points())


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [("top1=0.9", "top1", 0.9), ("drop=0.01", "top1", 0.9233), ("drop=1%", "top1", 0.923967),
     ("drop=0.01", "mae", 0.9433), ("drop=1%", "rmse", 0.942633)],
)  # fmt: skip
def test_the_floor_is_a_value_of_the_metric(text: str, metric: str, limit: float) -> None:
    shown = placed([(1, 1)], metric)
    report = replace(shown.report, floor=FloorReport.of(Floor.parse(text), metric))
    assert View(report).floor == pytest.approx(limit)


def with_accuracy(shown: View, *rows: AccuracyReport) -> View:
    """The same with these accuracies in its first rows."""
    variants = [replace(v, accuracy=a) for v, a in zip(shown.report.variants, rows, strict=False)]
    return View(replace(shown.report, variants=(*variants, *shown.report.variants[len(rows) :])))


def test_a_row_is_held_against_the_floor_of_its_own_samples() -> None:
    source = Accuracy("top1", 0.90, 0.88, 0.92, 500, 0.90, 0.0, -0.01, 0.01)
    part = Accuracy("top1", 0.91, 0.85, 0.95, 100, 0.95, -0.04, -0.09, -0.02)
    shown = with_accuracy(none_kept(), *map(AccuracyReport.of, (source, part)))
    (found,) = [fact for fact in facts(shown) if fact.label == "top1"]
    assert (found.state, found.margin) == ("bad", "0.0300 worse than the floor 0.9400")


def test_an_error_of_the_users_own_goes_the_way_that_it_was_judged() -> None:
    own = Accuracy("mae", 0.92, 0.9, 0.94, 500, 0.93, -0.01, -0.02, 0.01)
    shown = with_accuracy(one(), AccuracyReport.of(own))
    assert shown.higher_is_better
    assert shown.floor == pytest.approx(0.92)


def test_the_percentile_with_a_budget_is_plotted() -> None:
    shown = one()
    for texts, quantity, limit in (
        (["p95=3ms", "size=1MB"], "p95", 3.0), (["p50=2ms", "p99=9ms"], "p99", 9.0),
        (["size=1MB"], "p99", None),
    ):  # fmt: skip
        budgets = tuple(BudgetReport.of(Budget.parse(t)) for t in texts)
        found = View(replace(shown.report, budgets=budgets))
        assert (found.quantity, found.limit_ms) == (quantity, limit)


def test_the_page_is_about_the_chosen_or_the_nearest_miss() -> None:
    for made, chain in ((many(), "fold,fuse,int8{mode=static}"), (none_kept(), "fold,fuse"), (undecided(), "fold,fuse")):  # fmt: skip
        assert made.focus is not None
        assert made.focus.chain == chain
    assert unmeasured().focus is None
    assert facts(unmeasured()) == []


@pytest.mark.parametrize(
    ("made", "state", "title"),
    [(one, "good", "Kept"), (none_kept, "bad", "None kept"), (undecided, "open", "Undecided"),
     (unmeasured, "open", "Interrupted"), (infeasible, "bad", "Infeasible")],
)  # fmt: skip
def test_headlines(made: object, state: str, title: str) -> None:
    found = headline(made())  # type: ignore[operator]
    assert (found.state, found.title) == (state, title)
    if title == "Kept":
        # Only the budgets are promised with confidence; the floor holds by an estimate.
        assert "within p99=20ms and size=400kB at 99% confidence;" in found.sentence
        assert "the floor drop=0.01 holds by point estimate on 2744 samples" in found.sentence
    else:
        assert "p99=20ms, size=400kB and the floor drop=0.01" in found.sentence


def test_an_undecided_figure_is_never_shown_as_good() -> None:
    states = {fact.label: fact.state for fact in facts(undecided())}
    assert states["p99"] == "open"
    assert {fact.label: fact.state for fact in facts(none_kept())}["p99"] == "bad"


def test_stages_begin_with_the_source() -> None:
    found = many().stages()
    assert [stage.name for stage in found] == ["source", "fold", "fuse", "int8{mode=static}"]
    assert found[0].p99_ms == many().report.variants[0].latency.p99_ms  # type: ignore[union-attr]
    assert one().stages() == ()


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=400))
def test_a_curve_rises_through_samples_and_keeps_the_tail(values: list[float]) -> None:
    ms, share = tail_curve(np.array(values))
    assert set(ms) <= set(values)
    assert (np.diff(ms) >= 0).all()
    assert (np.diff(share) > 0).all()
    ordered = sorted(values)
    tail = min(len(values), 30)
    assert ms[-tail:].tolist() == ordered[-tail:]
    for value, part in zip(ms, share, strict=True):
        assert ordered[round(part * len(values) - 0.5)] == value
    assert np.isfinite(tail_height(share)).all()


def test_thinning_keeps_the_slowest_calls() -> None:
    timings = many().timings["fold,fuse,int8{mode=static}"]
    places = thinned(timings, 200)
    assert places.size <= 200
    assert (np.diff(places) > 0).all()
    assert set(np.argsort(timings.ns)[-15:]) <= set(places.tolist())


@settings(deadline=None)
@given(st.floats(1e-4, 1e4), st.floats(1.001, 1e6))
def test_axes_have_round_ticks_inside(low: float, factor: float) -> None:
    left, right = log_range([low, low * factor, None, 0.0])
    assert left < low <= low * factor < right
    ticks = log_ticks(left, right)
    assert 2 <= len(ticks) <= 12
    assert all(left <= tick <= right * 1.0000001 for tick in ticks)
    assert ticks == sorted(set(ticks))
