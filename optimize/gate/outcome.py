"""What became of each case, in findings: one for the model, one for each promise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from optimize.budgets.budget import format_share
from optimize.budgets.regression import Ratio
from optimize.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_KEPT,
    EXIT_NONE,
    EXIT_UNDECIDED,
    EXIT_USAGE,
)
from optimize.gate.against import Regression
from optimize.gate.cases import Case
from optimize.reports.command import without_paths
from optimize.reports.view import View
from optimize.reports.words import Fact, facts, headline
from optimize.results.report import Report, Result, VariantReport

State = Literal["passed", "failed", "undecided", "error"]
# The worst first. An input that cannot be used comes before all else, because it is for the user
# to mend; what is shown to be missed is worse than what is open.
ORDER = (EXIT_INTERRUPTED, EXIT_USAGE, EXIT_INTERNAL, EXIT_NONE, EXIT_UNDECIDED, EXIT_KEPT)
_EXITS: dict[State, int] = {
    "passed": EXIT_KEPT,
    "failed": EXIT_NONE,
    "undecided": EXIT_UNDECIDED,
    "error": EXIT_USAGE,
}
_STATES: dict[str, State] = {"good": "passed", "bad": "failed", "open": "undecided"}


@dataclass(frozen=True)
class Finding:
    """One promise, and whether it is kept.

    Attributes:
        name: such as ``p99=20ms``; ``kept`` for the model as a whole.
        detail: the figures, or the reason; without this machine's folders.
    """

    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        exit_code: as if it had been run alone.
        report: of its run; None if there was none.
        folder: where its result lies.
        regression: how it compares with its baseline; None if it was not compared.
    """

    case: Case
    findings: tuple[Finding, ...]
    exit_code: int
    report: Report | None = None
    folder: Path | None = None
    regression: Regression | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def state(self) -> State:
        """The worst of its findings."""
        states = [finding.state for finding in self.findings]
        for code in ORDER:
            if found := next((s for s in states if _EXITS[s] == code), None):
                return found
        return "error"  # no finding at all: nothing is shown

    @property
    def chosen(self) -> VariantReport | None:
        """The variant that was kept."""
        report = self.report
        return report.variant(report.chosen) if report and report.chosen else None


def worst(codes: Sequence[int]) -> int:
    """The exit code of several cases; without any nothing is shown, which is no pass."""
    return min(codes, key=ORDER.index, default=EXIT_UNDECIDED)


_LONGER = "measure longer (time_limit), or on a quieter machine"


def of_result(case: Case, result: Result) -> Outcome:
    """What a run has shown."""
    report = result.report
    kept, *promises = (_clean(finding) for finding in _findings(report))
    # The run's own code says more than its finding; no promise may be worse than it.
    code = worst([report.exit_code, *(_EXITS[promise.state] for promise in promises)])
    found = (kept, *promises)
    return Outcome(case, found, code, report, result.folder, seconds=report.seconds)


def refused(case: Case, reason: str, code: int = EXIT_USAGE) -> Outcome:
    """A case that could not be run."""
    return Outcome(case, (_clean(Finding("kept", "error", reason)),), code)


def elsewhere(case: Case) -> Outcome:
    """Budgets of a device that this one is not: not judged, which is no pass."""
    reason = f"not judged here: this is not {case.target}; {case.elsewhere}"
    found = tuple(_clean(Finding(text, "undecided", reason)) for text in case.budgets)
    return Outcome(case, found, EXIT_UNDECIDED)


def with_finding(outcome: Outcome, finding: Finding) -> Outcome:
    """The same with one more finding, which may make it worse."""
    code = worst([outcome.exit_code, _EXITS[finding.state]])
    return replace(outcome, findings=(*outcome.findings, _clean(finding)), exit_code=code)


def with_regression(outcome: Outcome, regression: Regression) -> Outcome:
    """The same with what the comparison with the baseline has shown."""
    outcome = replace(outcome, regression=regression)
    for ratio in regression.ratios:
        state: State = {"held": "passed", "slower": "failed", "open": "undecided"}[ratio.state]  # type: ignore[assignment]  # its values are states
        name = f"{ratio.quantity} against the baseline"
        words = ratio_words(ratio, ended=regression.worse)
        outcome = with_finding(outcome, Finding(name, state, words))
    accuracy = regression.accuracy
    if accuracy is not None:
        words = (
            f"{accuracy.metric} {accuracy.value:.4f}, {accuracy.change:+.4f} (between "
            f"{accuracy.change_low:+.4f} and {accuracy.change_high:+.4f}) "
            f"against the baseline's {accuracy.source_value:.4f}"
        )
        if regression.worse:
            words += f"; shown to be worse by more than {regression.loss:g}"
        state = "failed" if regression.worse else "passed"
        outcome = with_finding(
            outcome, Finding(f"{accuracy.metric} against the baseline", state, words)
        )
    if regression.gap:
        outcome = with_finding(
            outcome, Finding("metric against the baseline", "undecided", regression.gap)
        )
    return outcome


def ratio_words(ratio: Ratio, *, ended: bool = False) -> str:
    """A ratio with its interval, and what it is held against.

    Args:
        ratio: of one percentile.
        ended: whether it was not timed on, since the model had lost its metric.
    """
    ends = "?" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} – {ratio.high:.3f}"
    verdict = {
        "held": f"at most {format_share(ratio.tolerance)} slower is shown",
        "slower": f"shown to be more than {format_share(ratio.tolerance)} slower",
        "open": f"whether it is more than {format_share(ratio.tolerance)} slower is open: "
        + ("not timed on, since the metric is lost" if ended else _LONGER),
    }[ratio.state]
    return f"{ratio.value:.3f}x the baseline's time ({ends}, {ratio.chunks} chunks): {verdict}"


def _findings(report: Report) -> Iterator[Finding]:
    view = View(report)
    head = headline(view)
    states: dict[int, State] = {
        EXIT_KEPT: "passed", EXIT_NONE: "failed", EXIT_UNDECIDED: "undecided",
    }  # fmt: skip
    kept = states.get(report.exit_code, "error")
    miss = f" {report.nearest}: {report.nearest_miss}." if report.nearest_miss else ""
    notes = f" {'; '.join(report.notes)}." if kept == "error" else ""
    name = f"{report.chosen}: " if report.chosen else ""
    yield Finding("kept", kept, f"{name}{head.title}. {head.sentence}{miss}{notes}")
    known = {fact.label: fact for fact in facts(view)}
    for budget in report.budgets:
        yield _promise(budget.text, known.get(budget.quantity), kept)
    if report.floor:
        yield _promise(f"floor {report.floor.text}", known.get(report.floor.metric), kept)


def _promise(text: str, fact: Fact | None, kept: State) -> Finding:
    if fact is None:
        return Finding(text, "undecided", "it was not measured")
    words = "; ".join([f"{fact.value}, {fact.margin}", *fact.details])
    state = _STATES.get(fact.state, "undecided")
    if (state, kept) == ("failed", "undecided"):
        state = "undecided"  # the nearest miss does not keep it, but another variant may
    return Finding(text, state, words)


def _clean(finding: Finding) -> Finding:
    """One line that any log can show, without this machine's folders."""
    text = without_paths(" ".join(finding.detail.split()))
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    return replace(finding, detail=shown)
