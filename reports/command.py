"""The command that repeats a run, in words that mean the same on another machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import PurePath
from typing import Any

from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.request import Request, spec_text

# What is no option of its own name, or says where this machine keeps things.
_SPECIAL = (
    "model",
    "rivals",
    "labels",
    "as_is",
    "reference_only",
    "records",
    "out",
    "budgets",
    "inputs",
    "everything",
    "cpus",
    "cache",
    "runtimes",
    "strategies",
)
_NAMES = {"chains": "chain", "time_limit_s": "time-limit"}


def command(request: Request) -> str:
    """One line for a shell; absolute paths are cut down to the file's name.

    Options at their defaults are left out, so that the line is as a user would write it.
    """
    verb = ["profile"] if request.as_is else ["compare"] if request.everything else []
    words = [
        "optimize",
        *verb,
        *(without_folder(str(path)) for path in (request.model, *request.rivals)),
    ]
    for budget in request.budgets:
        words += ["--budget", str(budget)]
    for item in fields(request):
        if item.name not in _SPECIAL:
            default = item.default if item.default is not MISSING else None
            words += _option(item.name, getattr(request, item.name), default)
    if request.runtimes != (DEFAULT_RUNTIME,):
        words += ["--runtime", ",".join(request.runtimes)]
    if request.strategies:
        words += ["--strategies", ",".join(request.strategies)]
    if request.cpus:
        words += ["--cpus", ",".join(map(str, request.cpus))]
    for spec in request.inputs:
        words += ["--input", spec_text(spec)]
    return shlex.join(words)


def _option(name: str, value: Any, default: Any) -> Iterator[str]:
    if value == default:
        return
    option = "--" + _NAMES.get(name, name).replace("_", "-")
    if value is True:
        yield option
        return
    for one in value if isinstance(value, tuple) else (value,):
        yield option
        if name == "time_limit_s":
            yield "none" if one is None else f"{one:g}s"
        else:
            yield without_folder(str(one))


def without_folder(text: str) -> str:
    """Keep a relative path; of an absolute one, the name alone."""
    return PurePath(text).name if text.startswith(("/", "~")) else text


_ABSOLUTE = re.compile(r"(?<![\w:./~-])(?:~|/[\w.@+-]+)(?:/[\w.@+-]+)+/?")


def without_paths(text: str) -> str:
    """Cut the absolute paths in a sentence down to their last part.

    >>> without_paths("cannot read /home/ann/models/net.onnx: no such file")
    'cannot read net.onnx: no such file'
    """
    return _ABSOLUTE.sub(lambda match: PurePath(match.group()).name, text)
