"""What GitHub Actions shows: a summary of the job, and annotations at the declarations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from optimize.gate.check import Checked
from optimize.gate.config import Fault
from optimize.gate.outcome import Outcome, State
from optimize.gate.words import COLUMNS, answer, cells
from optimize.reports.markdown import escaped

_SIGNS: dict[State, str] = {"passed": "✅", "failed": "❌", "undecided": "❔", "error": "⛔"}


def summary(checked: Checked) -> str:
    """All outcomes as GitHub-flavoured Markdown."""
    return "\n".join(_lines(checked)) + "\n"


def _lines(checked: Checked) -> Iterator[str]:
    sign = _SIGNS["passed" if checked.exit_code == 0 else "failed"]
    yield f"### {sign} optimize check: {escaped(answer(checked))}"
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for outcome in checked.outcomes:
        row = [escaped(cell) for cell in cells(outcome)]
        row[1] = f"{_SIGNS[outcome.state]} {row[1]}"
        yield f"| {' | '.join(row)} |"
    for outcome in checked.outcomes:
        yield ""
        yield from _findings(outcome)


def _findings(outcome: Outcome) -> Iterator[str]:
    shown = " open" if outcome.state != "passed" else ""
    yield f"<details{shown}><summary>{escape(outcome.case.label)}</summary>"
    yield ""
    for finding in outcome.findings:
        sign = _SIGNS[finding.state]
        yield f"- {sign} **{escaped(finding.name)}** {escaped(finding.detail)}"
    yield ""
    yield "</details>"


def errors(checked: Checked, file: Path) -> Iterator[str]:
    """An error at the declaration of every model that did not pass.

    What is open because something else has failed is none of its own.
    """
    for outcome in checked.outcomes:
        told = {"failed", "error"} | ({"undecided"} & {outcome.state})
        for finding in outcome.findings:
            if finding.state in told:
                title = f"{outcome.case.label}: {finding.name}"
                yield annotation(file, outcome.case.line, title, finding.detail)


def faults(found: Sequence[Fault]) -> Iterator[str]:
    """An error at every mistake in the file."""
    for fault in found:
        yield annotation(fault.file, fault.line, "optimize.toml", fault.sentence)


def annotation(file: Path, line: int, title: str, text: str) -> str:
    """One workflow command, escaped as GitHub's toolkit does it."""
    seen = os.path.relpath(file)  # from the checkout, where a job runs
    place = f"file={_property(seen)},line={line},title={_property(title)}"
    return f"::error {place}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
