"""Batch normalization's running statistics, estimated anew for changed weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from optimize.passes.training.batches import Batch

SAMPLES = 1024


def batch_norms(module: Any) -> list[Any]:
    """The batch normalizations that keep running statistics."""
    import torch

    return [
        part
        for part in module.modules()
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) and part.track_running_stats
    ]


def recalibrate(module: Any, batches: Iterable[Batch], samples: int = SAMPLES) -> bool:
    """Replace running means and variances, in place, by their plain averages over real batches.

    All else runs as in evaluation. Batches of one sample are left out: they have no variance.

    Args:
        module: any module; without batch normalization nothing happens.
        batches: where the statistics come from.
        samples: how many to see at most.

    Returns:
        Whether statistics were replaced.
    """
    import torch

    norms = batch_norms(module)
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    seen = 0
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for the plain average
        norm.train()
    with torch.no_grad():
        for batch in batches:
            if len(batch) > 1:
                module(*batch.args)
                seen += len(batch)
            if seen >= samples:
                break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return seen > 0
