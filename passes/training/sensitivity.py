"""Gradients that tell which weights matter to the outputs."""

from __future__ import annotations

from typing import Any

from optimize.passes.training.batches import Batch, Batches
from optimize.passes.training.outputs import kind_of, label_loss, named_outputs

_SAMPLES = 512


def accumulate_gradients(module: Any, batches: Batches, samples: int = _SAMPLES) -> None:
    """Leave in ``module`` the gradients of its parameters on real data.

    With class labels they are those of the cross-entropy. Without, of the outputs along random
    signs, whose square is in expectation that of the whole Jacobian: how much any output would
    move.

    Args:
        module: in evaluation mode afterwards, with no parameter frozen.
        batches: the training part is used.
        samples: how many to see at most.
    """
    import torch

    module.eval()
    module.zero_grad()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    seen = 0
    with torch.enable_grad():
        for batch in batches.training(epoch=0):
            _objective(module, batch).backward()
            seen += len(batch)
            if seen >= samples:
                break


def _objective(module: Any, batch: Batch) -> Any:
    import torch

    outputs = {
        name: value
        for name, value in named_outputs(module(*batch.args)).items()
        if value.is_floating_point()
    }
    for name, value in outputs.items():
        kind = kind_of(name, value.detach(), batch.labels)
        if kind == "logits" and batch.labels is not None:
            return label_loss(value, batch.labels, kind) * len(batch)
    return sum(
        (value * (torch.randint(0, 2, value.shape) * 2 - 1)).sum() / value.numel() ** 0.5
        for value in outputs.values()
    )
