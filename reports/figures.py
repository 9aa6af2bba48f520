"""The page's interactive plots, as plotly.js takes them.

Colours are names of the page's style sheet such as ``@kept``, or ``@kept/0.5`` for half of it; the
page puts in what the light or the dark theme says. Names of variants are escaped: plotly.js reads
a little HTML in its texts.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np

from optimize.reports import shapes
from optimize.reports.samples import Timings
from optimize.reports.view import Interval, Point, View, percentile
from optimize.reports.words import STATUS
from optimize.results.report import VariantReport

Trace = dict[str, Any]
Figure = dict[str, Any]
# Every status has a sign of its own: nothing is told by colour alone.
SYMBOLS = {
    "kept": "circle",
    "too_slow": "triangle-right",
    "too_large": "square",
    "inaccurate": "triangle-down",
    "undecided": "diamond",
    "failed": "x",
    "skipped": "circle-open",
}
DASHES = ("solid", "dash", "dot", "dashdot")
SERIES = 6
# All variants together: a page of 60 stays small, and a page of one is not coarse.
MOST_POINTS, POINTS_EACH, FINE_CURVES = 20_000, 1_200, 60
WIDTH = 64


def tradeoff(view: View) -> Figure | None:
    """Accuracy against latency, with budget, floor, feasible region and Pareto front.

    Returns:
        None if no variant has both.
    """
    points = view.points()
    if not points:
        return None
    limit, floor = view.limit_ms, view.floor
    ends = [end for p in points for end in (p.latency.value, p.latency.low, p.latency.high)]
    low, high = shapes.log_range([*ends, limit])
    spread = [e for p in points for e in (p.accuracy.value, p.accuracy.low, p.accuracy.high)]
    bottom, top = shapes.linear_range([*spread, floor])
    traces = [*_front(view, points), *_by_status(view, points, high)]
    y: dict[str, Any] = {"title": {"text": _escaped(view.metric)}, "range": [bottom, top]}
    if not view.higher_is_better:
        y["range"] = [top, bottom]
        y["title"]["text"] += " (less is better)"
    layout = {
        "xaxis": _log_axis(low, high, f"{view.quantity} latency, ms"),
        "yaxis": y,
        "hovermode": "closest",
        "shapes": list(_limits(limit, floor, (low, high), y["range"])),
        "annotations": list(_labels(view, points, limit, floor, (low, high), y["range"])),
    }
    return {"data": traces, "layout": layout}


def _front(view: View, points: tuple[Point, ...]) -> Iterator[Trace]:
    front = sorted((p for p in points if p.on_front), key=lambda p: p.latency.value)
    yield {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [p.latency.value for p in front],
        "y": [p.accuracy.value for p in front],
        "line": {"color": "@front", "width": 2, "dash": "dot", "shape": "hv"},
        "hoverinfo": "skip",
    }


def _by_status(view: View, points: tuple[Point, ...], edge: float) -> Iterator[Trace]:
    for status, symbol in SYMBOLS.items():
        own = [p for p in points if p.variant.status == status]
        if not own:
            continue
        chosen = [p.variant is view.chosen for p in own]
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": STATUS[status],
            "x": [p.latency.value for p in own],
            "y": [p.accuracy.value for p in own],
            "error_x": _bars([p.latency for p in own], f"@{status}/0.5", edge * 10),
            "error_y": _bars([p.accuracy for p in own], f"@{status}/0.5", math.inf),
            "marker": {
                "symbol": symbol,
                "opacity": 1,
                "size": [17 if c else 12 for c in chosen],
                "color": f"@{status}",
                "line": {"color": "@ink", "width": [2.5 if c else 0.8 for c in chosen]},
            },
            "hoverinfo": "text",
            "hovertext": [_hover(view, p) for p in own],
            "customdata": [p.index for p in own],
        }


def _bars(intervals: list[Interval], colour: str, beyond: float) -> Trace:
    """Error bars; an end that is unknown lies beyond the edge of the plot."""

    def reach(value: float, end: float | None, unknown: float) -> float:
        return abs((unknown if end is None else end) - value)

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(i.value, i.high, beyond) for i in intervals],
        "arrayminus": [reach(i.value, i.low, i.value * 1e-3) for i in intervals],
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def _hover(view: View, point: Point) -> str:
    variant, ms, found = point.variant, point.latency, point.accuracy
    role = "chosen: " if variant is view.chosen else "source: " if variant is view.source else ""
    high = "?" if ms.high is None else f"{ms.high:.4g}"
    low = "?" if ms.low is None else f"{ms.low:.4g}"
    lines = [
        f"<b>{_wrapped(role + variant.chain)}</b>",
        f"{STATUS[variant.status]}: {_wrapped(variant.reason)}",
        f"{view.quantity} {ms.value:.4g} ms ({low} – {high})",
        f"{_escaped(view.metric)} {found.value:.4f} ({found.low:.4f} – {found.high:.4f})",
    ]
    return "<br>".join(lines)


def _limits(
    limit: float | None, floor: float | None, x: tuple[float, float], y: list[float]
) -> Iterator[Trace]:
    """The feasible region and the two lines that bound it; ``y`` runs from worse to better."""
    if limit is not None or floor is not None:
        yield {
            "type": "rect",
            "layer": "below",
            "x0": x[0] / 100,
            "x1": x[1] * 100 if limit is None else limit,
            "y0": y[0] - 100 * (y[1] - y[0]) if floor is None else floor,
            "y1": y[1] + 100 * (y[1] - y[0]),
            "fillcolor": "@feasible",
            "line": {"width": 0},
        }
    line = {"color": "@limit", "width": 2, "dash": "dash"}
    if limit is not None:
        where = {"yref": "paper", "y0": 0, "y1": 1, "x0": limit, "x1": limit}
        yield {"type": "line", "line": line, **where}
    if floor is not None:
        where = {"xref": "paper", "x0": 0, "x1": 1, "y0": floor, "y1": floor}
        yield {"type": "line", "line": line, **where}


def _labels(
    view: View,
    points: tuple[Point, ...],
    limit: float | None,
    floor: float | None,
    x: tuple[float, float],
    y: list[float],
) -> Iterator[Trace]:
    plain = {"showarrow": False, "font": {"color": "@limit", "size": 12}}
    if limit is not None:
        yield {
            **plain, "text": f"budget {limit:g} ms", "x": math.log10(limit), "yref": "paper",
            "y": 1, "yanchor": "bottom", "xanchor": _side(limit, x),
        }  # fmt: skip
    if floor is not None:
        yield {
            **plain, "text": f"floor {floor:.4g}", "xref": "paper", "x": 0, "y": floor,
            "xanchor": "left", "yanchor": "top",
        }  # fmt: skip
    miss = view.focus if view.chosen is None and view.report.nearest_miss else None
    named = {"chosen": view.chosen, "nearest miss": miss, "source": view.source}
    for name, variant in named.items():
        for point in points:
            if point.variant is variant and (name != "source" or variant is not view.focus):
                right = point.latency.value > math.sqrt(x[0] * x[1])
                yield {
                    "text": f"<b>{name}</b>",
                    "x": math.log10(point.latency.value),
                    "y": point.accuracy.value,
                    "ax": -38 if right else 38,
                    "ay": -38 if name == "source" else 40,
                    "arrowcolor": "@ink",
                    "arrowwidth": 1,
                    "arrowhead": 0,
                    "standoff": 9,
                    "font": {"color": "@ink", "size": 13},
                    "bgcolor": "@panel",
                }


def distribution(view: View) -> Figure | None:
    """Empirical distributions on a logarithmic axis, their heights stretched towards the tail.

    Returns:
        None if no variant was timed.
    """
    measured = _measured(view)
    if not measured:
        return None
    traces: list[Trace] = []
    coarse = 1 + len(measured) // FINE_CURVES
    for index, variant in measured:
        traces += _curve(view, index, variant, coarse)
    values = [value for trace in traces for value in trace["x"]]
    limits = [b for b in view.report.budgets if b.unit == "ns"]
    low, high = shapes.log_range([*values, *(b.limit / 1e6 for b in limits)])
    low /= (high / low) ** 0.1  # the figures of the fastest stand to its left
    most = max(max(trace["y"]) for trace in traces)
    heights = {float(shapes.tail_height(s)): text for s, text in shapes.PERCENTS.items()}
    layout = {
        "xaxis": _log_axis(low, high, "latency of a call, ms"),
        "yaxis": {
            "title": {"text": "share of calls at or below"},
            "range": [0, most * 1.06],
            "tickvals": list(heights),
            "ticktext": list(heights.values()),
        },
        "hovermode": "closest",
        "shapes": [
            {
                "type": "line", "x0": b.limit / 1e6, "x1": b.limit / 1e6, "yref": "paper", "y0": 0,
                "y1": 1, "line": {"color": "@limit", "width": 2, "dash": "dash"},
            }
            for b in limits
        ],
        "annotations": [
            {
                "text": _escaped(b.text), "x": math.log10(b.limit / 1e6), "yref": "paper", "y": 1,
                "yanchor": "bottom", "xanchor": _side(b.limit / 1e6, (low, high)),
                "showarrow": False, "font": {"color": "@limit", "size": 12},
            }
            for b in limits
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _curve(view: View, index: int, variant: VariantReport, coarse: int) -> Iterator[Trace]:
    assert variant.latency is not None  # only measured variants come here
    style = _style(view, index, variant)
    timings = view.timings.get(variant.chain)
    marks = {q: percentile(variant.latency, q).value for q in ("p50", "p95", "p99")}
    shares = (0.5, 0.95, 0.99)
    if timings is not None and timings.ns.size:
        ms, share = shapes.tail_curve(timings.ns / 1e6, coarse)
        yield {
            **style, "mode": "lines", "x": _short(ms), "y": _short(shapes.tail_height(share)),
            "text": [f"{s:.4g}%" for s in share * 100],
            "hovertemplate": "%{text} of calls within %{x:.4g} ms",
        }  # fmt: skip
    else:
        # Without single timings, the report's percentiles are what there is.
        known = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
        ms = np.array([percentile(variant.latency, q).value for q in known])
        heights = shapes.tail_height(np.array(list(known.values())))
        yield {**style, "mode": "lines", "x": _short(ms), "y": _short(heights)}
    yield {
        **style,
        "mode": "markers+text",
        "showlegend": False,
        "x": _short(np.array(list(marks.values()))),
        "y": _short(shapes.tail_height(np.array(shares))),
        # No-break spaces keep the text off its dot.
        "text": [f"\u00a0{q} {ms:.3g}\u00a0" for q, ms in marks.items()],
        "textposition": "middle left" if variant is view.chosen else "middle right",
        "textfont": {"size": 11, "color": "@ink"},
        "marker": {"size": 8, "symbol": "circle", "color": style["line"]["color"]},
        "hovertemplate": "%{text} ms",
    }


def over_time(view: View) -> Figure | None:
    """Every call as it was made, with the medians of its blocks: drift and noise.

    Returns:
        None without single timings.
    """
    measured = [(i, v) for i, v in _measured(view) if v.chain in view.timings]
    if not measured:
        return None
    most = min(POINTS_EACH, max(50, MOST_POINTS // len(measured)))
    traces: list[Trace] = []
    for index, variant in measured:
        traces += _series(view, index, variant, view.timings[variant.chain], most)
    limits = [b.limit / 1e6 for b in view.report.budgets if b.unit == "ns"]
    shown = [value for trace in traces for value in trace["y"]]
    low, high = shapes.log_range([*shown, *limits])
    layout = {
        "xaxis": {"title": {"text": "seconds since the first timed call"}, "rangemode": "tozero"},
        "yaxis": _log_axis(low, high, "latency of a call, ms"),
        "hovermode": "closest",
        "shapes": [
            {
                "type": "line", "y0": limit, "y1": limit, "xref": "paper", "x0": 0, "x1": 1,
                "line": {"color": "@limit", "width": 2, "dash": "dash"},
            }
            for limit in limits
        ],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _series(
    view: View, index: int, variant: VariantReport, timings: Timings, most: int
) -> Iterator[Trace]:
    places = shapes.thinned(timings, most)
    busy = timings.disturbed[places]
    style = _style(view, index, variant)
    kinds = ((places[~busy], "circle", ""), (places[busy], "x", ", the machine was disturbed"))
    for own, symbol, aside in kinds:
        if own.size:
            yield {
                **style,
                "mode": "markers",
                "showlegend": False,
                "x": _short(timings.at_s[own]),
                "y": _short(timings.ns[own] / 1e6),
                "marker": {
                    "size": 5, "opacity": 0.5, "color": style["line"]["color"], "symbol": symbol,
                },
                "hovertemplate": f"%{{y:.4g}} ms at %{{x:.4g}} s{aside}",
            }  # fmt: skip
    at, medians = shapes.block_medians(timings)
    every = 1 + at.size // most
    yield {
        **style,
        "mode": "lines",
        "x": _short(at[::every]),
        "y": _short(medians[::every]),
        "hovertemplate": "median of its block: %{y:.4g} ms",
    }


def _measured(view: View) -> list[tuple[int, VariantReport]]:
    return [(i, v) for i, v in enumerate(view.report.variants) if v.latency]


def _style(view: View, index: int, variant: VariantReport) -> Trace:
    """What all traces of a variant have in common; the page shows and hides them by ``meta``."""
    colour, dash, width = f"@series{index % SERIES}", DASHES[index // SERIES % len(DASHES)], 2.0
    if variant is view.focus:
        colour, dash, width = "@chosen", "solid", 3.0
    elif variant is view.source:
        colour, dash = "@source", "dash"
    return {
        "type": "scatter",
        "name": _wrapped(variant.chain, 40),
        "meta": index,
        "visible": variant in (view.focus, view.source),
        "legendgroup": str(index),
        "line": {"color": colour, "width": width, "dash": dash},
    }


def _side(ms: float, x: tuple[float, float]) -> str:
    """Where a text is anchored so that it stays within the plot."""
    return "right" if ms > math.sqrt(x[0] * x[1]) else "left"


def _log_axis(low: float, high: float, title: str) -> Trace:
    ticks = shapes.log_ticks(low, high)
    return {
        "type": "log",
        "title": {"text": title},
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def _short(values: Any) -> list[float]:
    """Four digits are what a plot can show, and keep the page small."""
    return [float(f"{value:.4g}") for value in values]


def _escaped(text: str) -> str:
    # "%{" would begin one of plotly's own templates.
    return html.escape(text, quote=False).replace("%{", "&#37;{")


def _wrapped(text: str, width: int = WIDTH) -> str:
    return "<br>".join(map(_escaped, textwrap.wrap(text, width) or [""]))
