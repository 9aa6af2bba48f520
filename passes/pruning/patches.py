"""What a convolution sees at some of its output positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from optimize.models.nodes import attribute
from optimize.passes.pruning.graph import Array


def cut_out(node: Any, kernel: tuple[int, ...], values: Array, places: Array) -> Array:
    """Patches of a Conv's input, shape (positions, channels * kernel size).

    Args:
        node: the Conv, with explicit pads.
        kernel: lengths of its kernel.
        values: its input, shape (n, channels, *spatial).
        places: flat positions in the output's (n, *spatial).
    """
    rank = len(kernel)
    pads = attribute(node, "pads") or [0] * (2 * rank)
    strides = attribute(node, "strides") or [1] * rank
    dilations = attribute(node, "dilations") or [1] * rank
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(values, around)
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, 2 + rank)))
    every = tuple(slice(None, None, step) for step in strides)
    inside = tuple(slice(None, None, step) for step in dilations)
    windows = windows[(slice(None), slice(None), *every, *inside)]
    moved = np.moveaxis(windows, 1, 1 + rank)  # (n, *spatial, channels, *kernel)
    index = np.unravel_index(places, moved.shape[: 1 + rank])
    return moved[index].reshape(len(places), -1)


def explicit_pads(node: Any) -> bool:
    """Whether :func:`cut_out` can read the node."""
    return attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
