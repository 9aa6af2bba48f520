"""A plot in plain characters, for terminals and for comments that show no pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from optimize.reports.shapes import log_range
from optimize.reports.view import Interval, View, percentile

DOT, LINE, LIMIT, UNKNOWN = "●", "─", "┊", "›"


@dataclass(frozen=True)
class Strip:
    """One variant: its name, its line of characters, and its figure.

    Attributes:
        index: its row in the report.
    """

    index: int
    name: str
    drawing: str
    figure: str


@dataclass(frozen=True)
class Strips:
    """All measured variants, slowest last, on one logarithmic axis of ``width`` characters."""

    title: str
    rows: tuple[Strip, ...]
    axis: str


def strips(view: View, width: int = 48, most: int = 20) -> Strips | None:
    """Intervals of the judged percentile beside the budget.

    Args:
        view: what to show.
        width: of the drawing, in characters.
        most: variants to show; the fastest come first, and the chosen and the source always.

    Returns:
        None if nothing was measured.
    """
    measured = [
        (i, v, percentile(v.latency, view.quantity))
        for i, v in enumerate(view.report.variants)
        if v.latency
    ]
    if not measured:
        return None
    measured.sort(key=lambda item: item[2].value)
    ends = [e for *_, ms in measured for e in (ms.value, ms.low, ms.high)]
    low, high = log_range([*ends, view.limit_ms])

    def place(ms: float) -> int:
        share = math.log(ms / low) / math.log(high / low)
        return min(width - 1, max(0, round(share * (width - 1))))

    limit = None if view.limit_ms is None else place(view.limit_ms)
    rows = tuple(
        Strip(i, v.chain, _drawing(ms, place, limit, width), f"{ms.value:.4g} ms")
        for i, v, ms in measured
    )
    told = [v is view.chosen or v is view.source for _, v, _ in measured]
    shown = [row for n, row in enumerate(rows) if n < most or told[n]]
    legend = f"{DOT} {view.quantity} and its bounds, logarithmic"
    if view.limit_ms is not None:
        legend += f"; {LIMIT} budget {view.limit_ms:g} ms"
    if len(shown) < len(rows):
        legend += f"; {len(rows) - len(shown)} slower ones are left out"
    ends_text = f"{low:.3g} ms", f"{high:.3g} ms"
    axis = ends_text[0] + ends_text[1].rjust(width - len(ends_text[0]))
    return Strips(legend, tuple(shown), axis)


def _drawing(ms: Interval, place: Callable[[float], int], limit: int | None, width: int) -> str:
    cells = [" "] * width
    first = place(ms.value if ms.low is None else ms.low)
    last = width - 1 if ms.high is None else place(ms.high)
    cells[first : last + 1] = LINE * (last - first + 1)
    if ms.high is None:
        cells[-1] = UNKNOWN
    if limit is not None:
        cells[limit] = LIMIT
    cells[place(ms.value)] = DOT
    return "".join(cells).rstrip()
