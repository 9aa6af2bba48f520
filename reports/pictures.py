"""The two main plots as PNG and SVG, for slides and comments; matplotlib needs no browser."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.errors import InputError
from optimize.reports import shapes
from optimize.reports.page import NEEDS
from optimize.reports.view import Point, View, percentile
from optimize.reports.words import STATUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRADEOFF, DISTRIBUTION = "accuracy-latency", "latency-distribution"
FORMATS = ("png", "svg")
SIZE_INCHES, DPI = (9.6, 5.4), 150
INK, SOFT, LIMIT, FEASIBLE = "#16202b", "#55616e", "#a63d00", "#dff3ec"
# Colours that stay apart without colour vision (Okabe and Ito), each with a sign of its own.
STYLES: dict[str, tuple[str, str]] = {
    "kept": ("o", "#0072b2"),
    "too_slow": (">", "#d55e00"),
    "too_large": ("s", "#b98000"),
    "inaccurate": ("v", "#b0457f"),
    "undecided": ("D", "#66458f"),
    "failed": ("X", "#8c1d1d"),
}
LABEL = 44


def load() -> None:
    """Import what draws, if it is installed, which takes a second."""
    # It tells of a font cache that it cannot write, which costs a second and concerns nobody.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.CRITICAL)
    with contextlib.suppress(ImportError):
        import matplotlib.figure  # noqa: F401


def pictures(view: View) -> dict[str, bytes]:
    """The files by name; those that have nothing to show are left out.

    Raises:
        InputError: matplotlib is not installed.
    """
    load()
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(NEEDS) from error
    drawn: dict[str, bytes] = {}
    # Neither a user's own style file nor the name of a variant may change what is drawn.
    with mpl.rc_context():
        mpl.rcdefaults()
        for name, value in _STYLE.items():
            mpl.rcParams[name] = value  # type: ignore[index]  # typed as a union of literals
        for name, draw in ((TRADEOFF, _tradeoff), (DISTRIBUTION, _distribution)):
            figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
            if draw(view, figure.subplots()):
                figure.draw_without_rendering()
                figure.set_layout_engine("none")  # laid out once for all formats
                drawn |= {f"{name}.{kind}": _saved(figure, kind) for kind in FORMATS}
    return drawn


_STYLE: dict[str, Any] = {
    "backend": "agg",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.parse_math": False,
    "svg.hashsalt": "tailfit",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def _saved(figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, metadata=metadata)
    return stream.getvalue()


def _tradeoff(view: View, axes: Axes) -> bool:
    points = view.points()
    if not points:
        return False
    ends = [e for p in points for e in (p.latency.value, p.latency.low, p.latency.high)]
    spread = [e for p in points for e in (p.accuracy.value, p.accuracy.low, p.accuracy.high)]
    low, high = shapes.log_range([*ends, view.limit_ms])
    bottom, top = shapes.linear_range([*spread, view.floor])
    if not view.higher_is_better:
        bottom, top = top, bottom
    _log_axis(axes, low, high, f"{view.quantity} latency, ms")
    axes.set_ylim(bottom, top)
    axes.set_ylabel(view.metric + ("" if view.higher_is_better else " (less is better)"))
    _limits(view, axes, (low, high), (bottom, top))
    front = sorted((p for p in points if p.on_front), key=lambda p: p.latency.value)
    axes.step(
        [p.latency.value for p in front], [p.accuracy.value for p in front], where="post",
        color="#00684f", linestyle=":", linewidth=1.8, label="Pareto front",
    )  # fmt: skip
    for status, (marker, colour) in STYLES.items():
        own = [p for p in points if p.variant.status == status]
        if own:
            _points(axes, own, marker, colour, STATUS[status], high * 10)
    for point in points:
        role = "chosen" if point.variant is view.chosen else "source"
        if point.variant is view.chosen or point.variant is view.source:
            _call_out(axes, point, role, math.sqrt(low * high))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=7, fontsize=10)
    return True


def _points(
    axes: Axes, points: list[Point], marker: str, colour: str, label: str, beyond: float
) -> None:
    x = np.array([p.latency.value for p in points])
    y = np.array([p.accuracy.value for p in points])
    left = np.array([p.latency.low or p.latency.value for p in points])
    right = np.array([p.latency.high or beyond for p in points])
    down = np.array([p.accuracy.low for p in points], float)
    up = np.array([p.accuracy.high for p in points], float)
    axes.errorbar(
        x, y, xerr=np.clip([x - left, right - x], 0, None),
        yerr=np.clip([y - down, up - y], 0, None), fmt=marker, color=colour, markersize=8,
        markeredgecolor=INK, markeredgewidth=0.6, elinewidth=1, capsize=2,
        ecolor=(colour, 0.45), label=label,
    )  # fmt: skip


def _call_out(axes: Axes, point: Point, role: str, middle: float) -> None:
    right = point.latency.value > middle
    if role == "chosen":
        place = [point.latency.value], [point.accuracy.value]
        axes.plot(*place, "o", markersize=14, markerfacecolor="none", markeredgecolor=INK)
    name = point.variant.chain
    text = role if name == "source" else f"{role}: {name[:LABEL]}{'…' * (len(name) > LABEL)}"
    axes.annotate(
        text, (point.latency.value, point.accuracy.value), textcoords="offset points",
        xytext=(-24 if right else 24, -34 if role == "chosen" else 30),
        ha="right" if right else "left", va="top" if role == "chosen" else "bottom", color=INK,
        fontweight="bold" if role == "chosen" else "normal", fontsize=10.5,
        arrowprops={
            "arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkB": 5,
            "relpos": (1 if right else 0, 0.5),
        },
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def _limits(view: View, axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    limit, floor = view.limit_ms, view.floor
    if limit is not None or floor is not None:
        right, bottom = x[1] if limit is None else limit, y[0] if floor is None else floor
        axes.fill_between([x[0], right], bottom, y[1], color=FEASIBLE, zorder=0)
    line: dict[str, Any] = {"color": LIMIT, "linestyle": "--", "linewidth": 1.5}
    text: dict[str, Any] = {"color": LIMIT, "fontsize": 10}
    if limit is not None:
        axes.axvline(limit, **line)
        axes.annotate(
            f"budget {limit:g} ms", (limit, 1), xycoords=("data", "axes fraction"),
            xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", **text,
        )  # fmt: skip
    if floor is not None:
        axes.axhline(floor, **line)
        axes.annotate(
            f"floor {floor:.4g}", (0, floor), xycoords=("axes fraction", "data"),
            xytext=(4, -3), textcoords="offset points", ha="left", va="top", **text,
        )  # fmt: skip


def _distribution(view: View, axes: Axes) -> bool:
    pair = {v.chain: v for v in (view.source, view.focus) if v and v.chain in view.timings}
    if not pair:
        return False
    limits = [b for b in view.report.budgets if b.unit == "ns"]
    curves = {name: shapes.tail_curve(view.timings[name].ns / 1e6) for name in pair}
    everything = [float(value) for ms, _ in curves.values() for value in ms]
    low, high = shapes.log_range([*everything, *(b.limit / 1e6 for b in limits)])
    low /= (high / low) ** 0.1  # the figures of the fastest stand to its left
    _log_axis(axes, low, high, "latency of a call, ms")
    for name, (ms, share) in curves.items():
        variant = pair[name]
        own = variant is view.focus
        colour, style = ("#0072b2", "-") if own else (SOFT, "--")
        label = f"{name[:LABEL]}{'…' * (len(name) > LABEL)}"
        axes.plot(ms, shapes.tail_height(share), style, color=colour, linewidth=2, label=label)
        assert variant.latency is not None  # what has timings has a summary of them
        for quantity, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            value = percentile(variant.latency, quantity).value
            height = float(shapes.tail_height(part))
            axes.plot([value], [height], "o", color=colour, markersize=6)
            axes.annotate(
                f"{quantity} {value:.3g}", (value, height), textcoords="offset points",
                xytext=(-8, 0) if own else (8, 0), ha="right" if own else "left", va="center",
                fontsize=9.5, color=INK,
            )  # fmt: skip
    for budget in limits:
        ms_limit = budget.limit / 1e6
        axes.axvline(ms_limit, color=LIMIT, linestyle="--", linewidth=1.5)
        axes.annotate(
            budget.text, (ms_limit, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
            textcoords="offset points", ha="center", va="bottom", color=LIMIT, fontsize=10,
        )  # fmt: skip
    axes.set_yticks([float(shapes.tail_height(s)) for s in shapes.PERCENTS])
    axes.set_yticklabels(list(shapes.PERCENTS.values()))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of calls at or below")
    axes.grid(color="#e9edf1")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=10)
    return True


def _log_axis(axes: Axes, low: float, high: float, label: str) -> None:
    ticks = shapes.log_ticks(low, high)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label)
    axes.grid(color="#e9edf1")
