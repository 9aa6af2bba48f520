"""The answer in words and figures: kept or not, by what margin, with what certainty."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from optimize.budgets.budget import format_bytes, format_ns, format_share
from optimize.budgets.verdict import floor_texts
from optimize.reports.view import Interval, View, percentile
from optimize.results.choose import NOISE
from optimize.results.report import BudgetReport, LoadReport, Report, VariantReport

State = Literal["good", "bad", "open", "plain"]
STATUS = {
    "kept": "kept",
    "too_slow": "too slow",
    "too_large": "too large",
    "inaccurate": "inaccurate",
    "undecided": "undecided",
    "failed": "failed",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class Headline:
    """The first thing that a reader sees.

    Attributes:
        title: the outcome in a word or two.
        sentence: what it is about, without the name of a variant.
    """

    state: State
    title: str
    sentence: str


@dataclass(frozen=True)
class Fact:
    """One figure beside what it is held against.

    Attributes:
        used: the share of a budget that is used, above 1 if it is missed; None without a budget.
        details: further sentences.
    """

    label: str
    value: str
    state: State
    margin: str
    details: tuple[str, ...] = ()
    used: float | None = None


def headline(view: View) -> Headline:
    """The outcome of the run."""
    report = view.report
    floor = [f"the floor {report.floor.text}"] if report.floor else []
    wanted = _join([*(budget.text for budget in report.budgets), *floor])
    if view.chosen is not None and report.exit_code == 0:
        limits = _join([budget.text for budget in report.budgets])
        held = f"It is within {limits}{sure(report)}" if limits else "No budget was declared"
        words = [_speed(view.chosen), f"{held}{_floor(view, view.chosen)}."]
        return Headline("good", "Kept", " ".join(filter(None, words)))
    if report.infeasible:
        sentence = (
            f"Nothing was built: no variant can meet {wanted}. The model {report.infeasible}."
        )
        return Headline("bad", "Infeasible", sentence)
    if report.exit_code == 3:
        sentence = f"No variant is shown to meet {wanted}{sure(report)}."
        return Headline("open", "Undecided", sentence)
    if report.exit_code == 130:
        return Headline("open", "Interrupted", f"The run ended before a verdict on {wanted}.")
    if report.exit_code == 70:
        return Headline("bad", "Cut short", f"An error ended the run before a verdict on {wanted}.")
    return Headline("bad", "None kept", f"No variant meets {wanted}.")


def sure(report: Report) -> str:
    """With what confidence the budgets hold; a size is what it is."""
    if all(budget.quantity == "size" for budget in report.budgets):
        return ""
    return f" at {format_share(report.settings.confidence)} confidence"


def _floor(view: View, variant: VariantReport) -> str:
    """How the floor was judged: budgets hold with confidence, a floor may hold by estimate."""
    floor, accuracy = view.report.floor, variant.accuracy
    if floor is None or accuracy is None:
        return ""
    strict = view.report.settings.strict_floor
    how = "at the interval’s worse end" if strict else "by point estimate"
    return f"; the floor {floor.text} holds {how} on {accuracy.samples} samples"


def facts(view: View) -> list[Fact]:
    """Every budget, the floor, the speed and the certainty of the variant in focus."""
    focus = view.focus
    if focus is None:
        return []
    found = [fact for b in view.report.budgets if (fact := _budget(focus, b))]
    found += [*_accuracy(view, focus), *_speedup(view, focus)]
    return [*found, *_certainty(view, focus), *_load(view)]


def _certainty(view: View, variant: VariantReport) -> Iterator[Fact]:
    """How sure the verdict is, and on how many calls it rests."""
    runs = variant.latency
    if runs is None:
        return
    calls = f"{runs.samples} calls in {_count(runs.processes, 'process')}"
    busy = runs.samples - runs.clean_samples
    details = [f"{busy} of them while the machine was busy"] if busy else []
    confidence = view.report.settings.confidence
    if variant.status == "kept" and view.report.budgets:
        margin = "that it stays within the budgets"
        yield Fact("certainty", format_share(confidence), "good", margin, (calls, *details))
    elif variant.status == "too_slow":
        # A wrong rejection costs speed, not a promise: docs/decisions/0002-verdict.md.
        error = min(0.05, 5 * (1 - confidence))
        margin = "that it exceeds the budget"
        yield Fact("certainty", format_share(1 - error), "plain", margin, (calls, *details))
    else:
        state: State = "open" if variant.status == "undecided" else "plain"
        yield Fact("evidence", f"{runs.samples} calls", state, calls.partition(" calls ")[2],
                   tuple(details))  # fmt: skip


def _budget(variant: VariantReport, budget: BudgetReport) -> Fact | None:
    have = measured(variant, budget)
    if have is None:
        return None
    show = format_ns if budget.unit == "ns" else format_bytes
    used = have.value / budget.limit
    state = _state(variant, used <= 1, have.high is not None and have.high <= budget.limit)
    if used <= 1:
        margin = f"{_percent(1 - used)} of the budget of {show(budget.limit)} is left"
    else:
        margin = f"{used:.2f} times the budget of {show(budget.limit)}"
    ends = () if budget.unit == "bytes" else (interval_words(have),)
    return Fact(budget.quantity, show(have.value), state, margin, ends, used)


def _state(variant: VariantReport, within: bool, shown: bool) -> State:
    if within:
        return "good" if shown or variant.status == "kept" else "open"
    return "open" if variant.status == "undecided" else "bad"


def measured(variant: VariantReport, budget: BudgetReport) -> Interval | None:
    """What a budget is held against, in the budget's unit; None if it was not measured."""
    if budget.quantity == "size":
        size = variant.size_bytes
        return None if size is None else Interval(size, size, size)
    if variant.latency is None:
        return None
    if budget.quantity == "memory":
        peak = variant.latency.peak_memory_bytes
        return None if peak is None else Interval(peak, peak, peak)
    found = percentile(variant.latency, budget.quantity)
    low, high = (None if end is None else end * 1e6 for end in (found.low, found.high))
    return Interval(found.value * 1e6, low, high)


def interval_words(interval: Interval) -> str:
    """The bounds of a latency in nanoseconds."""
    if interval.low is None and interval.high is None:
        return "too few calls for bounds"
    if interval.high is None:
        return f"at least {format_ns(interval.low or 0)}; no upper bound"
    if interval.low is None:
        return f"at most {format_ns(interval.high)}"
    return f"between {format_ns(interval.low)} and {format_ns(interval.high)}"


def _accuracy(view: View, variant: VariantReport) -> Iterator[Fact]:
    accuracy, floor = variant.accuracy, view.report.floor
    if accuracy is None:
        return
    spread = f"between {accuracy.low:.4f} and {accuracy.high:.4f}, {accuracy.samples} samples"
    change = f"{accuracy.change:+.4f} against the source’s {accuracy.source_value:.4f}"
    if floor is None:
        yield Fact(accuracy.metric, f"{accuracy.value:.4f}", "plain", change, (spread,))
        return
    # By the very rule that the verdict was reached by, on the samples that it was reached on.
    judged, promise = accuracy.judged, floor.declared
    room, (value, limit) = judged.room(promise), floor_texts(judged, promise)
    gap = f"{abs(room):.{len(value.partition('.')[2])}f}"
    margin = f"{gap} {'better' if room >= 0 else 'worse'} than the floor {limit}"
    open_ended = judged.meets(promise, strict=True) is None
    wide = room >= 0 and open_ended and not (judged.provisional or judged.few)
    how = "the interval reaches beyond the floor" if wide else ""
    met = judged.meets(promise, view.report.settings.strict_floor)
    state: State = "open" if met is None else "good" if met else "bad"
    details = tuple(filter(None, (spread, change, how)))
    yield Fact(accuracy.metric, value, state, margin, details)


def _speedup(view: View, variant: VariantReport) -> Iterator[Fact]:
    if not variant.speedup:
        return
    ends = ""
    if variant.speedup_low and variant.speedup_high:
        ends = f"between {variant.speedup_low:.2f}x and {variant.speedup_high:.2f}x"
    state: State = "good" if (variant.speedup_low or 0) > 1 + NOISE else "plain"
    margin = "as fast as the source, by medians"
    yield Fact("speed", f"{variant.speedup:.2f}x", state, margin, (ends,) if ends else ())


def _load(view: View) -> Iterator[Fact]:
    load = view.report.load
    if load is None or view.chosen is None:
        return
    details = ("simulated from the timed calls, waiting included; no part of the verdict",)
    margin = f"at random times are answered within {load.budget} by one process"
    yield Fact("load", f"up to {rate_words(load)} calls/s", "plain", margin, details)


def rate_words(load: LoadReport) -> str:
    """A rate with the two digits that a simulation is worth."""
    digits = 1 - math.floor(math.log10(load.calls_per_s))
    return f"{round(load.calls_per_s, digits):,.{max(0, digits)}f}"


def load_words(report: Report) -> str:
    """What the chosen variant bears, in a sentence; empty if that is not known."""
    load = report.load
    if load is None:
        return ""
    return (
        f"Load: one process answers up to about {rate_words(load)} calls/s that come at random "
        f"within {load.budget}, waiting included (it is then busy {load.busy:.0%} of the time; "
        "simulated from the timed calls, no part of the verdict)."
    )


def _speed(variant: VariantReport) -> str:
    if not variant.speedup:
        return ""
    if abs(variant.speedup - 1) <= NOISE:
        return f"No faster than the source ({variant.speedup:.2f}x is within noise)."
    return f"{variant.speedup:.2f}x as fast as the source."


def _percent(share: float) -> str:
    """A share that never reads 100% unless it is all."""
    text = f"{share:.1%}" if share > 0.1 else f"{share * 100:.2g}%"
    return "over 99.9%" if text == "100.0%" and share < 1 else text


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _join(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
