"""The report's files in a result folder: what a run writes, and what is drawn again later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from optimize.budgets.profile import Profile
from optimize.errors import InputError, first_cause
from optimize.models.model import FILE_NAME
from optimize.reports import samples
from optimize.reports.album import Shelf, remembered
from optimize.reports.command import without_paths
from optimize.reports.markdown import MARKDOWN, markdown
from optimize.reports.page import PAGE, page
from optimize.reports.pictures import TRADEOFF, pictures
from optimize.reports.samples import SAMPLES
from optimize.reports.view import View
from optimize.results.output import REPORT, check_evidence
from optimize.results.report import Report, Result

T = TypeVar("T")


def for_run(
    report: Report,
    profiles: Mapping[str, Profile],
    quick: bool = False,
    shelf: Shelf | None = None,
) -> tuple[dict[str, bytes], str | None]:
    """What a run writes beside its report.

    A report that cannot be drawn never costs a run its result.

    Args:
        report: of the run.
        profiles: what was measured, by chain.
        quick: leave out what takes seconds, for a user who wants to leave.
        shelf: where pictures lie that need not be drawn again; None for nowhere.

    Returns:
        The files by name, and why some are missing in words; None if none is.
    """
    packed = samples.pack({without_paths(name): found for name, found in profiles.items()})
    view = View(shareable(report), samples.unpack(packed))
    found = {SAMPLES: packed, MARKDOWN: markdown(view).encode()}
    if quick:
        return found, None
    try:
        return found | drawn(view, shelf), None
    except InputError:
        return found, None  # the extra is not installed: a choice, not a fault
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  see above
        return found, f"report.html could not be drawn: {first_cause(error)}"


def drawn(view: View, shelf: Shelf | None = None) -> dict[str, bytes]:
    """Everything that is drawn, by file name; see :func:`for_run`.

    Raises:
        InputError: the extra ``report`` is not installed.
    """
    html = page(view).encode()
    images = remembered(view, pictures, shelf)
    name = f"{TRADEOFF}.png"
    text = markdown(view, name if name in images else None).encode()
    return {PAGE: html, MARKDOWN: text, **images}


def read(folder: Path) -> View:
    """The report and the timings of a result folder.

    Raises:
        InputError: the folder holds no report, or one that was changed since.
    """
    file = folder / REPORT
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise InputError(
            f"{folder} holds no {REPORT} of a result; name a folder that optimize has written"
        ) from None
    check_evidence(folder, [REPORT, SAMPLES])
    return View(shareable(Report.from_json(text)), samples.read(folder / SAMPLES))


def result(folder: Path) -> Result:
    """A result folder as the run returned it.

    Raises:
        InputError: see :func:`read`.
    """
    model = folder / FILE_NAME
    return Result(read(folder).report, folder, model if model.is_file() else None)


def shareable(value: T) -> T:
    """The same, with absolute paths in its texts cut down to the names of the files."""
    if isinstance(value, str):
        return without_paths(value)  # type: ignore[return-value]  # a str for a str
    if isinstance(value, tuple):
        return tuple(map(shareable, value))  # type: ignore[return-value]  # likewise
    if is_dataclass(value) and not isinstance(value, type):
        changes: dict[str, Any] = {f.name: shareable(getattr(value, f.name)) for f in fields(value)}
        return replace(value, **changes)
    return value
