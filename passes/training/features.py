"""Hidden features: which modules of teacher and student to compare, and what they give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optimize.errors import InputError, nearest
from optimize.passes.training.outputs import named_outputs


@contextmanager
def recorded(module: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Fill a dict with the first tensor that each named module returns, at every call.

    Raises:
        InputError: there is no module of that name.
    """
    parts = dict(module.named_modules())
    values: dict[str, Any] = {}
    handles = []
    for name in names:
        if name not in parts:
            raise InputError(f"distill: no module {name!r}; {nearest(name, parts)}")
        handles.append(parts[name].register_forward_hook(_keep(values, name)))
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def _keep(values: dict[str, Any], name: str) -> Any:
    def hook(_module: Any, _args: Any, result: Any) -> None:
        tensors = list(named_outputs(result).values())
        if tensors and tensors[0].is_floating_point():
            values[name] = tensors[0]

    return hook


def pairs_of(
    teacher: Any, student: Any, args: tuple[Any, ...], layers: Sequence[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Pairs (teacher's module, student's module) whose outputs have equal shapes.

    Args:
        teacher: a module.
        student: a module that takes the same inputs.
        args: inputs to run both on.
        layers: names that both have, or ``teacher's=student's``; empty to match automatically:
            the blocks (items of a ``ModuleList`` or ``Sequential``) of equal name and shape, or,
            where there is none, for each shape the last module that gives it.

    Raises:
        InputError: nothing matches, or named modules have outputs of different shapes.
    """
    if layers:
        named = [tuple(layer.partition("=")[::2]) for layer in layers]
        pairs = [(first, second or first) for first, second in named]
    else:
        pairs = []
    mine = _shapes(student, args, [pair[1] for pair in pairs] or _names(student))
    theirs = _shapes(teacher, args, [pair[0] for pair in pairs] or _names(teacher))
    for first, second in pairs:
        if theirs.get(first) != mine.get(second):
            raise InputError(
                f"distill: {first} gives {theirs.get(first)} in the teacher, "
                f"{second} gives {mine.get(second)} in the student"
            )
    if pairs:
        return tuple(pairs)
    blocks = _blocks(student)
    same = [(n, n) for n in theirs if n in blocks and theirs[n] == mine.get(n)]
    if not same:
        last = {shape: name for name, shape in mine.items() if len(shape) > 1}
        latest = {shape: name for name, shape in theirs.items()}
        same = [(name, last[shape]) for shape, name in latest.items() if shape in last]
    if not same:
        raise InputError("distill: no hidden features of teacher and student have equal shapes")
    return tuple(same)


def _names(module: Any) -> list[str]:
    return [name for name, _ in module.named_modules() if name]


def _blocks(module: Any) -> set[str]:
    import torch

    return {
        f"{name}.{child}" if name else child
        for name, part in module.named_modules()
        if isinstance(part, (torch.nn.ModuleList, torch.nn.Sequential))
        for child, _ in part.named_children()
    }


def _shapes(module: Any, args: tuple[Any, ...], names: Sequence[str]) -> dict[str, Any]:
    """Shapes of the modules' outputs in the order of execution."""
    import torch

    module.eval()
    with torch.no_grad(), recorded(module, names) as values:
        module(*args)
    return {name: tuple(value.shape) for name, value in values.items()}
