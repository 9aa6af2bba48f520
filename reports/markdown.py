"""``report.md``: the answer, a table and a picture, short enough for a pull-request comment."""

from __future__ import annotations

import re
from collections.abc import Iterator

from optimize.budgets.budget import format_bytes
from optimize.reports.strip import strips
from optimize.reports.view import View, device_words, percentile
from optimize.reports.words import STATUS, Fact, facts, headline
from optimize.results.report import VariantReport

MARKDOWN = "report.md"
SIGNS = {"good": "✅", "bad": "❌", "open": "❔", "plain": ""}
# GitHub cuts comments at 65,536 characters; a reader gives up far earlier.
MOST_ROWS = 12
LONGEST_REASON = 500  # only what a library says is longer
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&@])")


def markdown(view: View, picture: str | None = None) -> str:
    """The report as GitHub and GitLab show it.

    Args:
        view: what to show.
        picture: where the picture of accuracy against latency lies, relative to the text or a URL;
            None draws the latencies in characters, which a comment shows without any file.
    """
    return "\n".join(_lines(view, picture)) + "\n"


def _lines(view: View, picture: str | None) -> Iterator[str]:
    report, head = view.report, headline(view)
    name = f": {_code(view.chosen.chain)}" if view.chosen else ""
    yield f"### {SIGNS[head.state]} {head.title}{name} – {escaped(report.source.name)}"
    yield ""
    yield escaped(head.sentence)
    if report.nearest_miss:
        yield ""
        yield f"**{report.nearest}.** {escaped(report.nearest_miss)}."
    yield ""
    focus = view.focus
    if focus and not view.chosen:
        yield f"Figures of {_code(focus.chain)}:"
        yield ""
    yield from (_fact(fact) for fact in facts(view))
    yield ""
    if picture:
        yield f"![Accuracy against {view.quantity} latency of every variant]({picture})"
    else:
        yield from _drawing(view)
    yield ""
    yield from _table(view)
    yield ""
    yield from _small_print(view)


def _fact(fact: Fact) -> str:
    details = f"; {escaped('; '.join(fact.details))}" if fact.details else ""
    sign = f" {SIGNS[fact.state]}" if SIGNS[fact.state] else ""
    head = f"- **{escaped(fact.label)}** {escaped(fact.value)}{sign}"
    return f"{head} – {escaped(fact.margin)}{details}"


def _drawing(view: View) -> Iterator[str]:
    found = strips(view)
    if found is None:
        return
    width = max(len(row.name) for row in found.rows)
    drawn = max(len(found.axis), *(len(row.drawing) for row in found.rows))
    yield "```text"
    for row in found.rows:
        name = row.name.replace("`", "'")
        yield f"{name:<{width}}  {row.drawing:<{drawn}}  {row.figure:>9}"
    yield f"{'':<{width}}  {found.axis}"
    yield found.title
    yield "```"


def _table(view: View) -> Iterator[str]:
    metric = escaped(view.metric)
    yield f"| variant | status | p50 | p95 | p99 | bounds | speed | {metric} | change | size |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    shown = _most_telling(view)
    yield from (_row(view, variant) for variant in shown)
    left = [v for v in view.report.variants if v not in shown]
    if left:
        yield ""
        yield f"{len(left)} more in report.json."
    reasons = [v for v in shown if v is not view.chosen]
    if reasons:
        yield ""
        yield "<details><summary>Reasons</summary>"
        yield ""
        yield from (f"- {_code(v.chain)}: {escaped(_cut(v.reason))}" for v in reasons)
        yield ""
        yield "</details>"


def _most_telling(view: View) -> list[VariantReport]:
    """The chosen, the source and those that were measured first; in the report's order."""
    order = sorted(
        view.report.variants,
        key=lambda v: (v is not view.chosen, v is not view.source, v.latency is None),
    )[:MOST_ROWS]
    return [v for v in view.report.variants if any(v is one for one in order)]


def _row(view: View, variant: VariantReport) -> str:
    latency, accuracy = variant.latency, variant.accuracy
    name = _code(variant.chain)
    cells = [f"➜ **{name}**" if variant is view.chosen else name, STATUS[variant.status]]
    if latency:
        p99 = percentile(latency, "p99")
        low, high = ("?" if end is None else f"{end:.3g}" for end in (p99.low, p99.high))
        values = (latency.p50_ms, latency.p95_ms, latency.p99_ms)
        cells += [*(f"{value:.4g} ms" for value in values), f"{low} – {high}"]
    else:
        cells += [""] * 4
    cells.append(f"{variant.speedup:.2f}x" if variant.speedup else "")
    cells += [f"{accuracy.value:.4f}", f"{accuracy.change:+.4f}"] if accuracy else ["", ""]
    cells.append(format_bytes(variant.size_bytes) if variant.size_bytes else "")
    return f"| {' | '.join(cells)} |"


def _small_print(view: View) -> Iterator[str]:
    report = view.report
    data = report.data
    yield (
        f"<sub>{escaped(device_words(report.device))}; "
        f"{report.settings.threads} thread{'' if report.settings.threads == 1 else 's'}; "
        f"{data.evaluation_samples} samples of {escaped(data.origin or 'made-up inputs')}; "
        f"{escaped(', '.join(f'{n} {v}' for n, v in report.versions.items()))}</sub>"
    )
    if report.command:
        yield ""
        yield "```console"
        yield f"$ {report.command}".replace("```", "'''")
        yield "```"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is; neither HTML nor mentions come to life."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("\\@", "&#64;")


def _code(text: str) -> str:
    """A name as code, in a table too."""
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return fence + pad + " ".join(text.split()).replace("|", "\\|") + pad + fence
