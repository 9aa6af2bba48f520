"""Pictures that were drawn before, of the same figures: drawing them takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from optimize.errors import InputError
from optimize.reports.page import NEEDS
from optimize.reports.view import View
from optimize.results.report import Report, VariantReport

Pictures = Mapping[str, bytes]


class Shelf(Protocol):
    """Where files lie from one run to the next."""

    def files(self, parts: Mapping[str, Any]) -> dict[str, bytes] | None:
        """What was kept under ``parts``; None if nothing was."""

    def keep_files(self, parts: Mapping[str, Any], files: Pictures, what: str) -> None:
        """Keep files by name; ``what`` says in words what they are."""


def remembered(
    view: View, draw: Callable[[View], dict[str, bytes]], shelf: Shelf | None
) -> dict[str, bytes]:
    """The pictures of a report: those on the shelf if they show the same, else drawn and kept.

    Raises:
        InputError: the extra ``report`` is not installed.
    """
    if shelf is None:
        return draw(view)
    parts = {"pictures": _shown(view), "by": _drawn_by()}
    found = shelf.files(parts)
    if found is None:
        found = draw(view)
        shelf.keep_files(parts, found, "pictures of a report")
    return found


def _shown(view: View) -> str:
    """A digest of all that the pictures may show: the report without what each run does anew."""
    digest = hashlib.sha256(_lasting(view.report).to_json().encode())
    for chain, timings in view.timings.items():
        digest.update(chain.encode() + timings.ns.tobytes())
    return digest.hexdigest()


def _lasting(report: Report) -> Report:
    rows = tuple(map(_lasting_row, report.variants))
    return replace(report, variants=rows, notes=(), seconds=0.0, stages={}, command=None)


def _lasting_row(row: VariantReport) -> VariantReport:
    steps = tuple(replace(step, seconds=0.0) for step in row.steps)
    return replace(row, notes=(), steps=steps, build_s=0.0, profile_s=0.0, recalled=False)


def _drawn_by() -> list[str]:
    """The code that draws."""
    try:
        library = version("matplotlib")
    except PackageNotFoundError as error:
        raise InputError(NEEDS) from error
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))]
    return [library, hashlib.sha256(b"".join(code)).hexdigest()]
