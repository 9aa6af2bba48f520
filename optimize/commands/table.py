"""The table of a terminal: a row a variant, as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from optimize.budgets.budget import format_bytes, format_share
from optimize.results.latency import LatencyReport
from optimize.results.report import AccuracyReport, Report, VariantReport

STYLES = {
    "kept": "green",
    "too_slow": "yellow",
    "too_large": "yellow",
    "inaccurate": "yellow",
    "undecided": "magenta",
    "failed": "red",
    "skipped": "dim",
}
# What goes first where the screen is narrow. What is left tells variants apart.
LEAST_WANTED = ("interval", "bounds", "p95", "change", "size", "n", "p50", "accuracy")
# Of a chain's name; the rest of it goes on below.
NARROWEST = 24
PARTIAL = "≈"  # before what a part of the samples shows


def fitting(report: Report, rows: Sequence[VariantReport], console: Console) -> Table:
    """The rows with as many columns as the screen has room for: no figure is ever cut."""
    boundless = console.options.update_width(10**6)
    for count in range(len(LEAST_WANTED) + 1):
        table = _table(report, rows, LEAST_WANTED[:count])
        names = table.columns[0]
        names.max_width = NARROWEST  # as narrow as they may become
        needed = Measurement.get(console, boundless, table).minimum
        names.max_width = None
        if needed <= console.width:
            break
    return table


def _table(report: Report, rows: Sequence[VariantReport], without: Collection[str]) -> Table:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for column, title in _titles(report).items():
        if column == "variant":
            table.add_column(title, overflow="fold")
        elif column not in without:
            table.add_column(title, justify="left" if column == "status" else "right", no_wrap=True)
    whole = max((v.accuracy.samples for v in report.variants if v.accuracy), default=0)
    for variant in rows:
        chosen = variant.chain == report.chosen
        cells = dict(zip(_titles(report), _cells(variant, chosen, whole), strict=True))
        table.add_row(
            *(cell for column, cell in cells.items() if column not in without),
            style="bold" if chosen else None,
        )
    return table


def _titles(report: Report) -> dict[str, str]:
    """Every column and what stands above it."""
    return {
        "variant": "variant",
        "status": "status",
        "p50": "p50 ms",
        "p95": "p95 ms",
        "p99": "p99 ms",
        "bounds": f"{format_share(report.settings.confidence)} bounds",
        "n": "n",
        "speed": "speed",
        "accuracy": next((v.accuracy.metric for v in report.variants if v.accuracy), "accuracy"),
        "interval": "interval",
        "change": "change",
        "size": "size",
    }


def _cells(variant: VariantReport, chosen: bool, whole: int) -> Iterator[Text]:
    yield Text(("➜ " if chosen else "  ") + variant.chain)
    yield Text(variant.status, style=STYLES[variant.status])
    yield from map(Text, _latency(variant.latency))
    yield Text(f"{variant.speedup:.2f}x" if variant.speedup else "")
    yield from map(Text, _accuracy(variant.accuracy, whole))
    yield Text(format_bytes(variant.size_bytes) if variant.size_bytes else "")


def _latency(latency: LatencyReport | None) -> list[str]:
    if latency is None:
        return [""] * 5
    bounds = [
        f"{b:.3g}" if b is not None else "?" for b in (latency.p99_lower_ms, latency.p99_upper_ms)
    ]
    values = (latency.p50_ms, latency.p95_ms, latency.p99_ms)
    return [*(f"{v:.4g}" for v in values), " – ".join(bounds), str(latency.samples)]


def _accuracy(accuracy: AccuracyReport | None, whole: int) -> list[str]:
    if accuracy is None:
        return [""] * 3
    mark = PARTIAL if accuracy.samples < whole else ""
    return [
        f"{mark}{accuracy.value:.4f}",
        f"{accuracy.low:.4f} – {accuracy.high:.4f}",
        f"{mark}{accuracy.change:+.4f}",
    ]
