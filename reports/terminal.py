"""The compact plot that ``optimize report`` prints below its table."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from optimize.reports.strip import strips
from optimize.reports.view import View


def plot(view: View, width: int = 48) -> Table | Text:
    """The judged percentile of every variant beside the budget, as something rich prints."""
    found = strips(view, width)
    if found is None:
        return Text("Nothing was timed.")
    table = Table(box=None, pad_edge=False, show_header=False, caption=Text(found.title))
    table.caption_justify = "left"
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    chosen = view.report.chosen
    for row in found.rows:
        mark = "➜ " if row.name == chosen else "  "
        style = "bold" if row.name == chosen else ""
        table.add_row(Text(mark + row.name), Text(row.drawing), Text(row.figure), style=style)
    table.add_row(Text(""), Text(found.axis, style="dim"), Text(""))
    return table
