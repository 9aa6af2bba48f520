"""The outcomes where a build system looks for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import made_reports
import pytest

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.regression import Ratio
from optimize.gate import github
from optimize.gate.against import Regression
from optimize.gate.cases import Case
from optimize.gate.check import Checked
from optimize.gate.config import Fault
from optimize.gate.junit import junit
from optimize.gate.outcome import (
    Finding,
    Outcome,
    elsewhere,
    of_result,
    refused,
    with_finding,
    with_regression,
    worst,
)
from optimize.gate.table import show
from optimize.gate.words import answer, reasons
from optimize.results.report import AccuracyReport, Result

if TYPE_CHECKING:
    from collections.abc import Iterator

CASE = Case("net", None, 3, ("p99=20ms",))
NASTY = 'no "model" <b>here</b> & \x00\x1b[31m in /home/ann/secret/net.onnx'


def passed(label: str = "good") -> Outcome:
    return Outcome(Case(label, None, 1, ()), (Finding("kept", "passed", "fine"),), 0)


def regression(low: float, high: float, change: tuple[float, float]) -> Regression:
    ratio = Ratio("p99", (low + high) / 2, low, high, 48, 0.1)
    metric = Accuracy("top1", 0.9, 0.88, 0.92, 100, 0.91, -0.01, *change)
    return Regression("digest", (ratio,), metric, 0.0, None, 4800)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((), 3),
        ((0,), 0),
        ((0, 3), 3),
        ((3, 1, 0), 1),
        ((1, 70), 70),
        ((70, 2, 1), 2),
        ((2, 130), 130),
    ],
)
def test_the_worst_outcome_decides(codes: tuple[int, ...], code: int) -> None:
    assert worst(codes) == code


def test_a_budget_of_another_device_is_no_pass() -> None:
    away = elsewhere(Case("net", "prod", 3, ("p99=20ms",), "cpu is X, not Y"))
    assert (away.exit_code, away.state, away.case.label) == (3, "undecided", "net@prod")
    assert "not judged here" in away.findings[0].detail
    assert Checked((passed(), away)).exit_code == 3


@pytest.mark.parametrize(
    ("low", "high", "change", "code", "states"),
    [
        (0.98, 1.05, (-0.03, 0.01), 0, ["passed", "passed"]),
        (1.2, 1.4, (-0.03, 0.01), 1, ["failed", "passed"]),
        (1.0, 1.2, (-0.03, 0.01), 3, ["undecided", "passed"]),
        (0.98, 1.05, (-0.03, -0.001), 1, ["passed", "failed"]),
    ],
)
def test_a_regression_is_a_finding(
    low: float, high: float, change: tuple[float, float], code: int, states: list[str]
) -> None:
    outcome = with_regression(passed(), regression(low, high, change))
    assert outcome.exit_code == code
    assert [finding.state for finding in outcome.findings[1:]] == states


@pytest.mark.parametrize(
    ("name", "state", "code"),
    [("one", "passed", 0), ("many", "passed", 0), ("none_kept", "failed", 1),
     ("undecided", "undecided", 3)],
)  # fmt: skip
def test_every_promise_of_a_report_is_a_finding(name: str, state: str, code: int) -> None:
    report = getattr(made_reports, name)().report
    outcome = of_result(CASE, Result(report, None, None))
    names = [finding.name for finding in outcome.findings]
    floor = [f"floor {report.floor.text}"] if report.floor else []
    assert names == ["kept", *(budget.text for budget in report.budgets), *floor]
    assert outcome.findings[0].state == state
    assert (outcome.state, outcome.exit_code) == (state, code)


def test_a_floor_that_is_met_to_the_last_digit_is_no_failure() -> None:
    exact = Accuracy("top1", 0.12, 0.07, 0.17, 100, 0.13, 0.12 - 0.13, -0.03, 0.03)
    report = made_reports.one().report
    row = replace(report.variants[0], accuracy=AccuracyReport.of(exact))
    outcome = of_result(CASE, Result(replace(report, variants=(row,)), None, None))
    assert {finding.state for finding in outcome.findings} == {"passed"}
    assert outcome.findings[-1].detail.startswith("0.1200, 0.0000 better than the floor 0.1200")


@pytest.mark.parametrize(
    ("name", "state", "code"), [("one", "failed", 1), ("undecided", "undecided", 3)]
)
def test_the_exit_code_is_as_bad_as_the_findings(name: str, state: str, code: int) -> None:
    lost = Accuracy("top1", 0.90, 0.88, 0.92, 100, 0.93, -0.03, -0.05, -0.02)
    report = getattr(made_reports, name)().report
    rows = tuple(replace(row, accuracy=AccuracyReport.of(lost)) for row in report.variants)
    outcome = of_result(CASE, Result(replace(report, variants=rows), None, None))
    assert (outcome.findings[-1].state, outcome.state, outcome.exit_code) == (state, state, code)


def elements(text: bytes, name: str) -> Iterator[ElementTree.Element]:
    return ElementTree.fromstring(text).iter(name)


def test_junit_counts_what_did_not_pass_and_survives_any_text() -> None:
    outcomes = (
        passed(),
        refused(CASE, NASTY),
        with_regression(passed("slow"), regression(1.2, 1.4, (-0.03, 0.01))),
        elsewhere(Case("away", "prod", 3, ("p99=20ms",), "another")),
    )
    text = junit(Checked(outcomes))
    root = ElementTree.fromstring(text)
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("6", "2", "1")
    assert [suite.get("name") for suite in root] == ["good", "net", "slow", "away@prod"]
    (error,) = elements(text, "error")
    assert 'no "model" <b>here</b> & ' in (error.text or "")
    assert "/home" not in text.decode()
    assert len(list(elements(text, "failure"))) == 2
    assert len(list(elements(text, "testcase"))) == 6


def test_a_summary_shows_every_case_and_brings_no_markup_to_life() -> None:
    away = elsewhere(Case("a|b", "prod", 3, ("p99=20ms",), "@team <script>"))
    text = github.summary(Checked((passed(), away, refused(CASE, NASTY)), ("other",)))
    assert "1 of 3 passed; error: net; undecided: a\\|b&#64;prod. Not asked for: other" in text
    assert "<script>" not in text
    assert "<b>" not in text
    assert "<summary>a|b@prod</summary>" in text
    assert "\x1b" not in text
    assert "/home" not in text
    assert text.count("<details open>") == 2
    assert text.count("<details>") == 1


def test_annotations_point_to_the_declaration_and_are_escaped() -> None:
    outcome = with_finding(refused(CASE, "50% of,\nit"), Finding("p99=20ms", "failed", "slow"))
    lines = list(github.errors(Checked((passed(), outcome)), Path("ci/optimize.toml")))
    assert lines == [
        "::error file=ci/optimize.toml,line=3,title=net%3A kept::50%25 of, it",
        "::error file=ci/optimize.toml,line=3,title=net%3A p99=20ms::slow",
    ]
    (fault,) = github.faults([Fault(Path("optimize.toml"), 7, "a: b,\nc")])
    assert fault == "::error file=optimize.toml,line=7,title=optimize.toml::a: b,%0Ac"


def test_what_is_open_behind_a_failure_is_no_annotation_and_a_reason_is_one_line() -> None:
    outcome = refused(CASE, "cannot be met")
    outcome = with_finding(outcome, Finding("p99=20ms", "undecided", "it was not measured"))
    checked = Checked((passed(), outcome, elsewhere(Case("away", "prod", 3, ("p99=20ms",), "x"))))
    titles = [line.partition("title=")[2] for line in github.errors(checked, Path("o.toml"))]
    assert [title.partition("::")[0] for title in titles] == [
        "net%3A kept", "away@prod%3A p99=20ms",
    ]  # fmt: skip
    assert list(reasons(checked)) == [
        "net, kept: cannot be met",
        "away@prod, p99=20ms: not judged here: this is not prod; x",
    ]


def test_the_table_is_plain_outside_of_a_terminal() -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    away = elsewhere(Case("away", "prod", 3, ("p99=20ms",), "another"))
    checked = Checked((passed(), away))
    show(checked, Console(file=stream, width=200, highlight=False))
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "away@prod, p99=20ms: not judged here" in text
    assert text.rstrip().endswith(answer(checked))
    assert answer(checked) == "Stopped: 1 of 2 passed; undecided: away@prod."
