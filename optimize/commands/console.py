"""What a terminal shows: progress while a run goes on, then a table and the answer in words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from optimize.budgets.budget import format_bytes
from optimize.commands.table import STYLES, fitting
from optimize.errors import EXIT_UNDECIDED
from optimize.reports.view import View
from optimize.reports.words import load_words, sure
from optimize.results.choose import NOISE, frontier
from optimize.results.output import REPORT
from optimize.results.report import Report, Result, VariantReport

if TYPE_CHECKING:
    from optimize.profiling.doctor import Examination

WATCHED = ("cpu_stall_us", "involuntary_switches", "major_faults", "steal_ticks", "throttled")
PLAIN_EVERY_S = 10.0
SHOWN_TRIALS = 5
LIMIT_REACHED = 0.9  # the share of a time limit from which on it is what ended a run


class Bar:
    """A live bar for terminals."""

    def __init__(self, console: Console) -> None:
        """Start to draw."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("start", total=None, text="")
        self._progress.start()

    def stage(self, name: str, total: int) -> None:
        """Show a new stage."""
        self._progress.reset(self._task, description=name, total=total or None, text="")

    def step(self, done: float, text: str) -> None:
        """Show how far it is."""
        self._progress.update(self._task, completed=done, text=text)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(Text(text, style="dim"))

    def close(self) -> None:
        """Erase the bar."""
        self._progress.stop()


class Lines:
    """Plain lines for logs: every stage, and a sign of life every ten seconds."""

    def __init__(self, console: Console, verbose: bool = False) -> None:
        """Print to ``console``; ``verbose`` prints every step."""
        self._console = console
        self._every = 0.0 if verbose else PLAIN_EVERY_S
        self._said = time.monotonic()
        self._stage = ""

    def stage(self, name: str, total: int) -> None:
        """Print the stage."""
        self._stage = name
        self._print(name)

    def step(self, done: float, text: str) -> None:
        """Print the step if it is time."""
        if time.monotonic() - self._said >= self._every:
            self._print(f"{self._stage}: {text}")

    def note(self, text: str) -> None:
        """Print the line."""
        self._print(text)

    def close(self) -> None:
        """Nothing is left to do."""

    def _print(self, text: str) -> None:
        self._said = time.monotonic()
        self._console.print(Text(text), soft_wrap=True)


def show(result: Result, console: Console) -> None:
    """Print the table and the answer."""
    report = result.report
    rows = shown(report)
    console.print(fitting(report, rows, console), soft_wrap=not console.is_terminal)
    more = len(report.variants) - len(rows)
    if more:
        where = f"in {result.folder / REPORT}" if result.folder else "with --json"
        text = f"and {more} trials that are not kept, or no better: {where}"
        console.print(Text(text, style="dim"), soft_wrap=True)
    for variant in rows:
        console.print(
            Text.assemble(
                (f"{variant.chain}: ", "bold"),
                (variant.reason, STYLES[variant.status]),
                _explanation(variant, variant.chain == report.chosen),
            ),
            soft_wrap=True,
        )
    front = frontier(report.variants, View(report).higher_is_better)
    if len(front) > 1:
        points = (
            f"{v.chain} ({v.speedup or 1:.2f}x, {v.accuracy.value:.4f})"
            for v in front
            if v.accuracy
        )
        console.print(Text(f"Frontier, fastest first: {'; '.join(points)}."), soft_wrap=True)
    if words := load_words(report):
        console.print(Text(words), soft_wrap=True)
    if report.stages:
        spent = ", ".join(f"{name} {took:.1f} s" for name, took in report.stages.items())
        console.print(Text(f"Took {report.seconds:.1f} s: {spent}."), soft_wrap=True)
    for note in report.notes:
        console.print(Text(f"Note: {note}."), soft_wrap=True)
    console.print(Text(answer(result)), soft_wrap=True)


def shown(report: Report) -> list[VariantReport]:
    """All rows of the plan; of a search's trials, the chosen one and some of the frontier's."""
    front = frontier(report.variants, View(report).higher_is_better)
    best = [v.chain for v in front if v.trial and v.status == "kept"][:SHOWN_TRIALS]
    return [v for v in report.variants if not v.trial or v.chain in (*best, report.chosen)]


def _explanation(variant: VariantReport, chosen: bool) -> str:
    """What limits the chosen one, and why others are not faster or lost accuracy."""
    if not variant.explanation:
        return ""
    slow = variant.speedup is not None and variant.speedup < 1 + NOISE
    if chosen or slow:
        lead = "Limited by" if chosen and not slow else "Not faster"
        return f". {lead}: {variant.explanation[0]}"
    last = variant.explanation[-1]
    return f". {last[:1].upper()}{last[1:]}" if variant.status == "inaccurate" else ""


def show_examination(examination: Examination, console: Console) -> None:
    """Print what the doctor found."""
    device = examination.device
    memory = format_bytes(device.memory_bytes) if device.memory_bytes else "unknown"
    step, cost = examination.timer_ns
    low, high = examination.ratio_low, examination.ratio_high
    disturbed = examination.disturbed
    lines = [
        ("device", f"{device.cpu} ({device.architecture}), {device.os}, {memory} of memory"),
        ("cores", f"{device.granted_cores} granted of {device.cores}"),
        ("instructions", " ".join(device.isa) or "unknown"),
        ("providers", ", ".join(examination.providers)),
        ("clock", f"steps of {step:.0f} ns, {cost:.0f} ns a reading"),
        ("fixed work", f"its p99 is {examination.canary_spread:.2f}x its median"),
        ("disturbed", "unknown" if disturbed is None else f"{disturbed:.0%} of the blocks"),
        *(("", f"{count}x {reason}") for reason, count in examination.reasons),
    ]
    missing = sorted(set(WATCHED) - set(examination.watched))
    lines.append(("watched", ", ".join(examination.watched)))
    if missing:
        lines.append(("not watched", f"{', '.join(missing)}: this platform does not tell"))
    if examination.ratio is not None:
        bounds = f", between {low:.3f}x and {high:.3f}x" if low and high else ""
        lines.append(("same model twice", f"{examination.ratio:.3f}x{bounds} (99%)"))
        if low and high:
            width = max(high - 1, 1 - low, 0)
            lines.append(("resolution", f"a speed-up below {1 + width:.3f}x cannot be told here"))
    lines.append(("a p99 verdict", "takes 497 calls without one over the limit, at 99%"))
    lines += [("advice", text) for text in examination.advice]
    for name, text in lines:
        console.print(Text.assemble((f"{name:17}", "bold"), text), soft_wrap=True)


def answer(result: Result) -> str:
    """The outcome in one or two sentences."""
    report = result.report
    limits = ", ".join(budget.text for budget in report.budgets)
    floor = f"floor {report.floor.text}" if report.floor else ""
    wanted = " and ".join(filter(None, (limits, floor)))
    if report.chosen is not None and report.exit_code == 0:
        best = report.variant(report.chosen)
        written = f" Written to {result.model}" if result.model else ""
        ratio = _ratio(best.speedup) if best.speedup else ""
        held = f", within {limits}{sure(report)}"
        return (
            f"Kept: {best.chain}{ratio}{held if limits else ', without a budget'}"
            f"{_accuracy_words(best, report)}.{written}"
        )
    if report.infeasible:
        report_at = f" Report in {result.folder}" if result.folder else ""
        return (
            f"None kept, nothing built: {limits} cannot be met. {_capital(report.infeasible)}; "
            f"--force goes on.{report_at}"
        )
    undecided = report.exit_code == EXIT_UNDECIDED
    miss = f" {report.nearest}: {report.nearest_miss}." if report.nearest_miss else ""
    limit = report.settings.time_limit_s
    if undecided and limit is not None and report.seconds >= LIMIT_REACHED * limit:
        miss += f" The time limit of {limit:g} s was reached; --time-limit gives more."
    what = {
        3: "Undecided: there is not enough evidence that a variant meets",
        70: "An internal error ended the run before a verdict on",
        130: "Interrupted before a verdict on",
    }.get(report.exit_code, "None kept: no variant meets")
    report_at = f" Report in {result.folder}" if result.folder else ""
    return f"{what} {wanted}.{miss}{report_at}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _accuracy_words(best: VariantReport, report: Report) -> str:
    """Say how the floor was judged, and whether the interval reaches below it."""
    if best.accuracy is None or report.floor is None:
        return ""
    how = "the interval's worse end" if report.settings.strict_floor else "point estimate"
    return f"; floor {report.floor.text} holds by {how} on {_samples(best.accuracy.samples)}"


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"


def _ratio(speedup: float) -> str:
    if abs(speedup - 1) <= NOISE:
        return f", no faster than the source ({speedup:.2f}x is within noise)"
    return f", {speedup:.2f}x as fast as the source"
