"""``report.html``: one file that needs nothing else, neither a server nor a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimize.budgets.budget import format_bytes, format_ns
from optimize.errors import InputError
from optimize.reports import figures, view
from optimize.reports.view import Stage, View
from optimize.reports.words import STATUS, facts, headline
from optimize.results.latency import LatencyReport
from optimize.results.report import VariantReport

PAGE = "report.html"
ASSETS = Path(__file__).parent / "assets"
NEEDS = (
    "report.html and the pictures need plotly, jinja2 and matplotlib, which are not all installed: "
    "pip install 'tailfit[report]'"
)
PARTS = {
    "pre": "pre-processing",
    "input_transfer": "input transfer",
    "compute": "compute",
    "output_transfer": "output transfer",
    "post": "post-processing",
    "rest": "rest",
}


def page(shown: View) -> str:
    """The whole page as HTML.

    Raises:
        InputError: plotly or jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError(NEEDS) from error
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": format_bytes, "ms": _ms, "short": _short_digest}
    template = environment.get_template("page.html.jinja")
    return template.render(
        # The three are our own or plotly's, and hold nothing of the user's.
        style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        plotly=Markup(get_plotlyjs()),
        **_content(shown),
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _content(shown: View) -> dict[str, Any]:
    report, focus = shown.report, shown.focus
    plots = {
        "tradeoff": figures.tradeoff(shown),
        "distribution": figures.distribution(shown),
        "time": figures.over_time(shown),
    }
    return {
        "report": report,
        "view": shown,
        "focus": focus,
        "headline": headline(shown),
        "facts": facts(shown),
        "status": STATUS,
        "figures": plots,
        "rows": [Row.of(shown, index, v) for index, v in enumerate(report.variants)],
        "waterfall": list(bars(shown.stages())),
        "parts": _parts(shown),
        "explained": [v for v in report.variants if v.explanation],
        "timed": [v for v in report.variants if v.latency and (v is shown.source or v is focus)],
        "stored": {v.chain: len(shown.timings[v.chain].ns) for v in report.variants
                   if v.chain in shown.timings},
    }  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        number: what it is sorted by; None if it was not measured.
        small: what stands below the text, smaller.
    """

    heading: str
    text: str = ""
    number: float | None = None
    small: str = ""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    index: int
    variant: VariantReport
    chosen: bool
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, shown: View, index: int, variant: VariantReport) -> Row:
        """Lay out a variant."""
        return cls(index, variant, variant is shown.chosen, tuple(_cells(shown, variant)))


def _cells(shown: View, variant: VariantReport) -> Iterator[Cell]:
    """Every column after variant and status."""
    latency, accuracy = variant.latency, variant.accuracy
    for quantity in ("p50", "p95", "p99"):
        heading = f"{quantity} ms"
        if latency is None:
            yield Cell(heading)
            continue
        ms = view.percentile(latency, quantity)
        ends = f"{_digits(ms.low)} – {_digits(ms.high)}" if quantity == "p99" else ""
        yield Cell(heading, f"{ms.value:.4g}", ms.value, ends)
    yield Cell("calls", str(latency.samples), latency.samples) if latency else Cell("calls")
    ratio = variant.speedup
    yield Cell("speed", f"{ratio:.2f}x", ratio) if ratio else Cell("speed")
    if accuracy is None:
        yield from (Cell(shown.metric), Cell("change"))
    else:
        ends = f"{accuracy.low:.4f} – {accuracy.high:.4f}"
        yield Cell(shown.metric, f"{accuracy.value:.4f}", accuracy.value, ends)
        yield Cell("change", f"{accuracy.change:+.4f}", accuracy.change)
    size = variant.size_bytes
    yield Cell("size", format_bytes(size), size) if size else Cell("size")
    if any(v.bound_ms for v in shown.report.variants):
        bound = variant.bound_ms
        times = latency.p50_ms / bound if latency and bound else None
        least = f"at least {_ms(bound)}" if bound else ""
        yield Cell("p50 / bound", f"{times:.2f}x" if times else "", times, least)


@dataclass(frozen=True)
class WaterfallBar:
    """A stage as a bar between the latency before and after it, in percent of the widest.

    Attributes:
        change: of the p99 against the stage before, as a factor; None for the first.
    """

    stage: Stage
    left: float
    width: float
    slower: bool
    change: float | None


def bars(stages: tuple[Stage, ...]) -> Iterator[WaterfallBar]:
    """The waterfall of the p99; the source and the last stage stand on the ground."""
    widest = max((stage.p99_ms or 0.0 for stage in stages), default=0.0) or 1.0
    before: float | None = None
    for stage in stages:
        now = stage.p99_ms
        low, high = (0.0, now or 0.0) if before is None or now is None else sorted((before, now))
        change = now / before if now and before else None
        yield WaterfallBar(
            stage,
            100 * low / widest,
            100 * (high - low) / widest,
            slower=bool(change and change > 1),
            change=change,
        )
        before = now if now is not None else before


def _parts(shown: View) -> list[tuple[str, list[tuple[VariantReport, float, float]]]]:
    """Median of each part of a call in milliseconds and percent, source against focus."""
    pair = [v for v in (shown.source, shown.focus) if v and v.latency]
    pair = pair[:1] if len(pair) == 2 and pair[0] is pair[1] else pair
    widest = max((_part(v.latency, name) for v in pair for name in PARTS), default=0.0) or 1.0
    found = []
    for name, label in PARTS.items():
        medians = [(v, _part(v.latency, name)) for v in pair]
        if any(ms > 0 for _, ms in medians):
            found.append((label, [(v, ms, 100 * ms / widest) for v, ms in medians]))
    return found


def _part(latency: LatencyReport | None, name: str) -> float:
    part = latency.parts.get(name) if latency else None
    return max(0.0, part.p50_ms) if part else 0.0


def _digits(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _ms(value: float | None) -> str:
    return "" if value is None else format_ns(value * 1e6)


def _short_digest(digest: str | None) -> str:
    return f"{digest[:12]}…" if digest and len(digest) > 13 else digest or ""
