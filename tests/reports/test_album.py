"""Pictures are drawn once for the same figures, and anew for others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_reports import many, profile

from optimize.cache.records import Records
from optimize.cache.store import Store
from optimize.reports import samples
from optimize.reports.album import remembered
from optimize.reports.view import View
from optimize.results.report import Report

pytest.importorskip("matplotlib", reason="the extra report is not installed")


class Draws:
    """Draws nothing, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, view: View) -> dict[str, bytes]:
        self.times += 1
        return {"a.png": bytes([0, 255, self.times]), "a.svg": b"<svg/>"}


def view(report: Report, ms: float = 14.0) -> View:
    return View(report, samples.unpack(samples.pack({"source": profile(ms, 400)})))


def records(folder: Path) -> Records:
    """As a new process opens them."""
    return Records(Store(folder), {"device": "here"})


def test_the_same_figures_are_drawn_once(tmp_path: Path) -> None:
    draw, report = Draws(), many(3).report
    first = remembered(view(report), draw, records(tmp_path))
    rows = tuple(replace(row, recalled=True, profile_s=9.0) for row in report.variants)
    later = replace(report, seconds=0.1, stages={"build": 1.0}, notes=("anew",), variants=rows)
    assert remembered(view(later), draw, records(tmp_path)) == first
    assert draw.times == 1


@pytest.mark.parametrize("what", ["status", "timings", "chosen"])
def test_other_figures_are_drawn_anew(what: str, tmp_path: Path) -> None:
    draw, report = Draws(), many(3).report
    remembered(view(report), draw, records(tmp_path))
    rows = (*report.variants[:-1], replace(report.variants[-1], status="undecided"))
    other = {
        "status": view(replace(report, variants=rows)),
        "timings": view(report, 15.0),
        "chosen": view(replace(report, chosen=None)),
    }[what]
    remembered(other, draw, records(tmp_path))
    assert draw.times == 2


def test_without_a_cache_they_are_drawn() -> None:
    draw = Draws()
    assert remembered(view(many(3).report), draw, None)["a.svg"] == b"<svg/>"
    remembered(view(many(3).report), draw, None)
    assert draw.times == 2
