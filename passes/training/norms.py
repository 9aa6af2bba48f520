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

    All else runs as in evaluation. A norm keeps what it had where it never sees more than one value
    a channel, which has no variance: one row of features, for example, but not one image.

    Args:
        module: any module; without batch normalization nothing happens.
        batches: where the statistics come from.
        samples: how many to see at most.

    Returns:
        Whether any statistics were replaced.
    """
    import torch

    norms = batch_norms(module)
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_pre_hook(_learn_if_able, with_kwargs=True) for norm in norms]
    seen = 0
    module.eval()
    for norm in norms:
        norm.num_batches_tracked.zero_()  # the first batch replaces what there is
        norm.momentum = None  # torch's sign for the plain average
    with torch.no_grad():
        for batch in batches:
            module(*batch.args)
            seen += len(batch)
            if seen >= samples:
                break
    for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
        norm.momentum = momentum
        hook.remove()
        norm.eval()
    return any(bool(norm.num_batches_tracked) for norm in norms)


def _learn_if_able(norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let a norm take statistics of this input, if it has any."""
    (given,) = (*args, *kwargs.values())
    norm.train(given.numel() > given.shape[1])
