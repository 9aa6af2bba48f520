"""Masks: weights set to zero, for runtimes with sparse kernels. No shape changes."""

from __future__ import annotations

import copy
from typing import Any, Literal

from optimize.errors import InputError, NotApplicable

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
        scope: ``layer`` or ``global``: whether weights are ranked in their layer or over all.

    Raises:
        InputError: the ratio is out of range.
        NotApplicable: there is no weight to mask.
    """
    import torch

    if not 0 <= ratio < 1:
        raise InputError(f"prune: ratio={ratio:g} must be at least 0 and below 1")
    masked = copy.deepcopy(module)
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    weights = [part.weight for part in masked.modules() if isinstance(part, kinds)]
    if pattern == "2:4":
        weights = [weight for weight in weights if weight[0].numel() % 4 == 0]
    if not weights:
        raise NotApplicable("the model has no weight of a convolution or linear layer to mask")
    with torch.no_grad():
        threshold = None
        if pattern == "unstructured" and scope == "global":
            threshold = _threshold(torch.cat([w.abs().flatten() for w in weights]), ratio)
        for weight in weights:
            weight.mul_(
                _two_of_four(weight) if pattern == "2:4" else _largest(weight, ratio, threshold)
            )
        zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    note = f"{zeros:,} of {total:,} weights are zero ({zeros / total:.0%}), pattern {pattern}"
    return masked, (note, _NOTE)


def _threshold(magnitudes: Any, ratio: float) -> Any:
    """The largest magnitude that is set to zero, below 0 at ratio 0."""
    count = round(ratio * len(magnitudes))
    return magnitudes.sort().values[count - 1] if count else magnitudes.new_tensor(-1.0)


def _largest(weight: Any, ratio: float, threshold: Any) -> Any:
    magnitudes = weight.abs()
    limit = _threshold(magnitudes.flatten(), ratio) if threshold is None else threshold
    return magnitudes > limit


def _two_of_four(weight: Any) -> Any:
    import torch

    groups = weight.abs().reshape(weight.shape[0], -1, 4)
    mask = torch.zeros_like(groups)
    mask.scatter_(2, groups.topk(2, dim=2).indices, 1.0)
    return mask.reshape(weight.shape)
