"""Masks: weights set to zero, for runtimes with sparse kernels. No shape changes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from optimize.errors import InputError, NotApplicable
from optimize.passes.pruning.graph import Array
from optimize.passes.pruning.masks import least, least_of_four

Pattern = Literal["unstructured", "2:4"]
_NOTE = "masks leave every shape as it is: runtimes without sparse kernels gain nothing from them"


def mask_module(
    module: Any, pattern: Pattern = "unstructured", ratio: float = 0.5, scope: str = "layer"
) -> tuple[Any, tuple[str, ...]]:
    """Return a copy whose smallest weights are zero, and notes; ``module`` itself is untouched.

    Weights of convolutions and linear layers are masked, by magnitude.

    Args:
        module: a ``torch.nn.Module``.
        pattern: ``unstructured``, or ``2:4``: two of every four neighbours along the inputs.
        ratio: share of zeros, for ``unstructured``; 0 is exact.
        scope: ``layer`` or ``global``: whether weights are ranked in their layer or over all, each
            relative to its layer's root mean square.

    Raises:
        InputError: the ratio is out of range.
        NotApplicable: there is no weight to mask.
    """
    import torch

    if not 0 <= ratio < 1:
        raise InputError(f"prune: ratio={ratio:g} must be at least 0 and below 1")
    masked = copy.deepcopy(module)
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    axes = {p.weight: _input_axis(p) for p in masked.modules() if isinstance(p, kinds)}
    arrays = [weight.detach().double().numpy() for weight in axes]
    masks: Sequence[Array | None] = (
        [least_of_four(array, axis) for array, axis in zip(arrays, axes.values(), strict=True)]
        if pattern == "2:4"
        else least(arrays, ratio, scope == "global")
    )
    found = {w: mask for w, mask in zip(axes, masks, strict=True) if mask is not None}
    if not found:
        raise NotApplicable("the model has no weight of a convolution or linear layer to mask")
    with torch.no_grad():
        for weight, mask in found.items():
            weight.masked_fill_(torch.from_numpy(mask), 0)
        zeros = sum(int((weight == 0).sum()) for weight in found)
    total = sum(weight.numel() for weight in found)
    note = f"{zeros:,} of {total:,} weights are zero ({zeros / total:.0%}), pattern {pattern}"
    return masked, (note, _NOTE)


def _input_axis(part: Any) -> int:
    """Which axis of a layer's weight its inputs are on."""
    return 0 if getattr(part, "transposed", False) else 1
