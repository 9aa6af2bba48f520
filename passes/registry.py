"""Names of passes to their classes. Third parties add theirs by the entry-point group below."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from optimize.errors import InputError, nearest
from optimize.passes.base import Pass

GROUP = "tailfit.passes"

_BUILT_IN: dict[str, str] = {
    "fold": "optimize.passes.fold:Fold",
    "fuse": "optimize.passes.fuse:Fuse",
    "session": "optimize.passes.session:Session",
    "equalize": "optimize.passes.equalize:Equalize",
    "smooth": "optimize.passes.smooth:Smooth",
    "fp16": "optimize.passes.fp16:Fp16",
    "bf16": "optimize.passes.bf16:Bf16",
    "shapes": "optimize.passes.shapes:Shapes",
    "int8": "optimize.passes.int8:Int8",
    "student": "optimize.passes.distill:Student",
    "distill": "optimize.passes.distill:Distill",
    "prune": "optimize.passes.prune:Prune",
}


def pass_names() -> list[str]:
    """All passes that chains may name: the built-in ones, then plug-ins by name."""
    return [*_BUILT_IN, *sorted(_plugins())]


def load_pass(name: str) -> type[Pass]:
    """Import the class of a pass.

    Raises:
        InputError: there is no such pass, or a plug-in is broken or takes a built-in's name.
    """
    plugins = _plugins()
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found: type[Pass] = getattr(importlib.import_module(module), attribute)
        return found
    if name not in plugins:
        raise InputError(f"there is no pass {name!r}; {nearest(name, pass_names())}")
    return _load_plugin(plugins[name])


def _plugins() -> dict[str, EntryPoint]:
    return _scanned(entry_points, tuple(sys.path))


@functools.cache
def _scanned(
    scan: Callable[..., Iterable[EntryPoint]], path: tuple[str, ...]
) -> dict[str, EntryPoint]:
    """What is installed on ``path``; reading every distribution's files takes 15 ms."""
    found: dict[str, EntryPoint] = {}
    for entry in scan(group=GROUP):
        if entry.name in _BUILT_IN or entry.name in found:
            raise InputError(f"plug-in {entry.value} takes the name {entry.name}, which is taken")
        found[entry.name] = entry
    return found


def _load_plugin(entry: EntryPoint) -> type[Pass]:
    try:
        loaded = entry.load()
    except Exception as error:
        raise InputError(f"plug-in {entry.value} cannot be imported: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
        raise InputError(f"plug-in {entry.value} is no subclass of optimize.passes.base.Pass")
    return loaded
