"""Shapes that are inputs of a node: a constant, or pieces of which some are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimize.passes.pruning.graph import Array, Shapes

_COPIES = (0, -1)  # entries of a target that follow from the input


def entries(
    name: str, constants: Mapping[str, Array], producers: Mapping[str, Any], shapes: Shapes
) -> list[int | None] | None:
    """The entries of a shape, None for those that are computed.

    None altogether if it is neither constant nor put together from pieces.
    """
    if name in constants:
        return [int(value) for value in constants[name]]
    node = producers.get(name)
    if node is None or node.op_type != "Concat":
        return None
    found: list[int | None] = []
    for piece in node.input:
        values = constants.get(piece)
        found += [None] * shapes[piece][0] if values is None else [int(value) for value in values]
    return found


def replaced(
    name: str, lengths: Sequence[int | None], constants: Mapping[str, Array],
    producers: Mapping[str, Any], shapes: Shapes,
) -> tuple[str | Array, ...] | None:  # fmt: skip
    """Pieces of a shape with new lengths; None if nothing changes.

    Args:
        name: the shape's name.
        lengths: the new length of each axis, None for those that stay.
        constants: initializers by name.
        producers: nodes by the names of their outputs.
        shapes: of all tensors.
    """
    given = entries(name, constants, producers, shapes) or []
    wanted = [
        value if length is None or value in _COPIES else length
        for value, length in zip(given, lengths, strict=True)
    ]
    if wanted == given:
        return None
    pieces: list[str | Array] = []
    for piece in [name] if name in constants else producers[name].input:
        part, wanted = wanted[: shapes[piece][0]], wanted[shapes[piece][0] :]
        pieces.append(np.array(part, np.int64) if piece in constants else piece)
    return tuple(pieces)
