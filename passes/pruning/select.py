"""How many channels of each group stay."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, Literal

import numpy as np

from optimize.passes.pruning.groups import Dependencies, Group, Keep
from optimize.passes.pruning.importance import Order

Scope = Literal["layer", "global"]
# onnxruntime's convolutions compute blocks of 16 channels with AVX-512 and of 8 without: on an
# EPYC with AVX-512, 3x3 convolutions of 20, 24, 28 and 32 channels took 404 us each, of 36 to 48
# 769 us, of 52 to 64 1275 us (28x28 pixels, one thread, timed in turns). Matrix products grow
# evenly: .94 us a column from 1100 to 1536 columns; four keep rows of floats aligned. On an EPYC
# without AVX-512 24 channels took .66 of the time of 32, and 20 as long as 24.
_BLOCK_AVX512, _BLOCK, _MATRIX = 16, 8, 4
GLOBAL_MOST = 0.75  # of a group's channels: no layer becomes a bottleneck of a few channels


def multiple_for(proto: Any, group: Group, multiple: int, isa: frozenset[str]) -> int:
    """The multiple that a group's kept channels are rounded to; 0 chooses what kernels like."""
    if multiple:
        return multiple
    kinds = {proto.graph.node[layer].op_type for layer in group.layers}
    if not kinds & {"Conv", "ConvTranspose"}:
        return _MATRIX
    return convolution_block(isa)


def convolution_block(isa: frozenset[str]) -> int:
    """How many channels onnxruntime's convolutions compute at a time with these instructions."""
    return _BLOCK_AVX512 if "avx512f" in isa or "avx512_vnni" in isa else _BLOCK


def share_at_most(scope: Scope, ratio: float) -> float:
    """The largest share of a group's channels that may go, before rounding."""
    return ratio if scope == "layer" else max(ratio, min(GLOBAL_MOST, 2 * ratio))


def kept_channels(
    found: Dependencies, orders: Sequence[Order], ratio: float, scope: Scope,
    multiples: Sequence[int],
) -> Keep:  # fmt: skip
    """Which channels stay: shape (number of channels,).

    ``layer`` takes the same share of every group, ``global`` the channels whose removal costs
    least wherever they are. What stays of a group is rounded to its multiple, to the nearer one,
    at least one; a group that is narrower than its multiple stays whole.
    """
    keep = np.ones(found.count, bool)
    counts = (
        [round(ratio * len(group.channels)) for group in found.groups]
        if scope == "layer"
        else _cheapest(orders, ratio)
    )
    for group, order, count, multiple in zip(found.groups, orders, counts, multiples, strict=True):
        keep[order.channels[: _rounded(group, count, multiple)]] = False
    return keep


def _cheapest(orders: Sequence[Order], ratio: float) -> list[int]:
    """How many channels of each group are among the cheapest of all."""
    total = sum(len(order.channels) for order in orders)
    most = share_at_most("global", ratio)
    losses, groups = [], []
    for number, order in enumerate(orders):
        able = order.losses[: int(most * len(order.channels))]
        losses.append(np.maximum.accumulate(able))
        groups.append(np.full(len(able), number))
    ranked = np.argsort(np.concatenate(losses), kind="stable")[: round(ratio * total)]
    counts = np.bincount(np.concatenate(groups)[ranked], minlength=len(orders))
    return [int(count) for count in counts]


def step_of(group: Group, multiple: int) -> int:
    """How many channels go at once; one of several indices covers more than one."""
    return multiple // gcd(multiple, group.width)


def _rounded(group: Group, count: int, multiple: int) -> int:
    """How many channels go so that what stays is a multiple."""
    step, size = step_of(group, multiple), len(group.channels)
    if count == 0 or size <= step:
        return 0 if size <= step and step > 1 else min(count, size - 1)
    stay = max(step, int((size - count) / step + 0.5) * step)
    return max(0, size - stay)
