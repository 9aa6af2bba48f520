"""The table that a terminal or a log shows after all runs."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimize.gate.check import Checked
from optimize.gate.outcome import State
from optimize.gate.words import COLUMNS, answer, cells

_STYLES: dict[State, str] = {
    "passed": "green",
    "failed": "red",
    "undecided": "magenta",
    "error": "red",
}


def show(checked: Checked, console: Console) -> None:
    """Print a row for every case, then what did not pass, then the answer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    used = [any(row) for row in zip(*map(cells, checked.outcomes), strict=True)]
    for name, wanted in zip(COLUMNS, used, strict=True):
        if wanted:
            table.add_column(name, overflow="fold")
    for outcome in checked.outcomes:
        row = [Text(cell) for cell, wanted in zip(cells(outcome), used, strict=True) if wanted]
        row[1].stylize(_STYLES[outcome.state])
        table.add_row(*row)
    console.print(table, soft_wrap=not console.is_terminal)
    for outcome in checked.outcomes:
        for finding in outcome.findings:
            if finding.state != "passed":
                lead = f"{outcome.case.label}, {finding.name}: "
                text = Text.assemble((lead, "bold"), (finding.detail, _STYLES[finding.state]))
                console.print(text, soft_wrap=True)
        for note in outcome.report.notes if outcome.report else ():
            console.print(Text(f"{outcome.case.label}: {note}", style="dim"), soft_wrap=True)
        if outcome.folder is not None:
            console.print(
                Text(f"{outcome.case.label}: written to {outcome.folder}"), soft_wrap=True
            )
    console.print(Text(answer(checked)), soft_wrap=True)
