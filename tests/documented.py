"""The commands that README.md and docs/*.md show, and what of their shown output must hold.

Shown output is compared line by line without what may differ from run to run: figures, names of
chains, blanks, and ``…``. A line marked ``# not run by the tests: REASON`` is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cpu import SUMS_IN_32_BITS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = tuple(
    sorted(
        (f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
        # It installs a plug-in, which may change all that was kept: it comes last.
        key=lambda page: (page == "docs/extending.md", page),
    )
)
MARKER = re.compile(r"# not run by the tests: (\w.+)$")
FENCE = re.compile(r"^```(console|bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A command of a page, and the output that the page shows of it."""

    page: str
    command: str
    shown: tuple[str, ...] = ()
    interpreter: str = "bash"

    @property
    def marked(self) -> bool:
        """Whether the page says that it is not run."""
        return MARKER.search(self.command) is not None


def steps_of(page: str) -> Iterator[Step]:
    """The commands of a page in order."""
    for language, body in FENCE.findall((REPOSITORY / page).read_text()):
        if language == "console":
            yield from _console(page, body)
        else:
            yield Step(page, body, interpreter="python" if language == "python" else "bash")


def _console(page: str, body: str) -> Iterator[Step]:
    step: Step | None = None
    for line in body.splitlines():
        if line.startswith("$ "):
            if step:
                yield step
            step = Step(page, line.removeprefix("$ "))
        elif step and step.command.endswith("\\"):
            step = replace(step, command=f"{step.command}\n{line}")
        else:
            assert step, f"{page}: a console block begins with {line!r}, not with a command"
            step = replace(step, shown=(*step.shown, line))
    if step:
        yield step


NAMES = "source fold fuse session equalize smooth fp16 bf16 shapes int8 student distill prune strip"
PASS = rf"\b(?:{NAMES.replace(' ', '|')})\b(?:{{[^{{}}]*}})?"
NUMBER = r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?"
UNIT = r" ?(?:%|(?:ns|us|ms|s|kB|MB|GB|x)\b)"
# What may differ between two right runs, and what stands for it.
VARYING = (
    (re.compile(rf"{PASS}(?:,{PASS})*(?:@\w+)?"), "CHAIN"),
    (re.compile(f"{NUMBER}(?:{UNIT})?"), "N"),
    (re.compile(r"(?<!\S)\?(?!\S)"), "N"),
    (re.compile(r"(?:N as fast as|no faster than) the CHAIN(?: \([^)]*\))?"), "SPEED"),
    # Which of the slower ones hold the budget before they are shown to be slower is a race.
    (re.compile(r"(?<=^ {2}CHAIN)\s+(?:kept|skipped)(?= +N)"), " kept"),
    (
        re.compile(r"not timed to the end: .*?(?=Not faster|$)|by screening, .*?(?=Not faster|$)"),
        "… ",
    ),
    (re.compile(r"➜"), ""),
)
if not SUMS_IN_32_BITS:
    # The pages were written on a CPU that computes in 8 bits; another has other reasons.
    VARYING = ((re.compile(r"\s*(?:Limited by|Not faster): .*$"), ""), *VARYING)


def stable(line: str) -> str:
    """A line without what may differ."""
    for pattern, name in VARYING:
        line = pattern.sub(name, line)
    return " ".join(line.split())


def missing(shown: tuple[str, ...], output: str) -> list[str]:
    """The shown lines that do not occur in an output."""
    lines = [stable(line) for line in output.splitlines()]
    return [
        line
        for line in shown
        if line != "…"
        and not any(
            re.fullmatch(".*".join(map(re.escape, stable(line).split("…"))), given)
            for given in lines
        )
    ]
