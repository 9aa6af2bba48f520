"""Cells and sentences that the table, the summary and the test report share."""

from __future__ import annotations

from collections.abc import Iterator

from optimize.budgets.budget import format_bytes
from optimize.gate.check import Checked
from optimize.gate.outcome import Outcome, State

TITLES: dict[State, str] = {
    "passed": "passed",
    "failed": "FAILED",
    "undecided": "UNDECIDED",
    "error": "ERROR",
}
COLUMNS = ("model", "verdict", "variant", "p50", "p99", "metric", "size", "against baseline")


def cells(outcome: Outcome) -> tuple[str, ...]:
    """One row under :data:`COLUMNS`."""
    return (outcome.case.label, TITLES[outcome.state], *_figures(outcome), _against(outcome))


def _figures(outcome: Outcome) -> tuple[str, str, str, str, str]:
    best = outcome.chosen
    if best is None:
        return "", "", "", "", ""
    latency, accuracy = best.latency, best.accuracy
    return (
        best.chain,
        f"{latency.p50_ms:.4g} ms" if latency else "",
        f"{latency.p99_ms:.4g} ms" if latency else "",
        f"{accuracy.metric} {accuracy.value:.4f}" if accuracy else "",
        format_bytes(best.size_bytes) if best.size_bytes else "",
    )


def _against(outcome: Outcome) -> str:
    found = outcome.regression
    if found is None:
        return ""
    words = [f"{ratio.quantity} {ratio.value:.3f}x" for ratio in found.ratios]
    if found.accuracy is not None:
        words.append(f"{found.accuracy.metric} {found.accuracy.change:+.4f}")
    return ", ".join(words)


def reasons(checked: Checked) -> Iterator[str]:
    """Why each case that did not pass did not, a line each."""
    for outcome in checked.outcomes:
        for finding in outcome.findings:
            if finding.state == outcome.state != "passed":
                yield f"{outcome.case.label}, {finding.name}: {finding.detail}"
                break


def answer(checked: Checked) -> str:
    """The outcome of all in a sentence."""
    count = len(checked.outcomes)
    bad = [outcome for outcome in checked.outcomes if outcome.state != "passed"]
    left = f" Not asked for: {', '.join(checked.left_out)}." if checked.left_out else ""
    if not bad:
        return f"Passed: {count} of {count}.{left}"
    groups = []
    for state in ("error", "failed", "undecided"):
        labels = [outcome.case.label for outcome in bad if outcome.state == state]
        if labels:
            groups.append(f"{TITLES[state].lower()}: {', '.join(labels)}")
    return f"Stopped: {count - len(bad)} of {count} passed; {'; '.join(groups)}.{left}"
