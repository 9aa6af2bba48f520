"""Quantization-aware recovery: training that sees the rounding of INT8, against the float teacher.

The fake quantization is that of onnxruntime's static QDQ, as ``int8{mode=static}`` writes it:
activations unsigned 8 bits, asymmetric, one range a tensor; weights signed 8 bits, symmetric, one
scale an output channel. What comes out are *float* weights that lose little when the pass quantizes
them after export, so that onnxruntime's own tools choose which operators run in integers.

Batch normalization need not be folded first: it scales whole output channels, as the weights'
scales do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimize.errors import NotApplicable
from optimize.passes.training.batches import Batches
from optimize.passes.training.distill import distill
from optimize.passes.training.options import DistillOptions, Progress

_RANGE_SAMPLES = 256


def recover_quantized(
    module: Any,
    teacher: Any,
    batches: Batches,
    options: DistillOptions,
    progress: Callable[[Progress], None] | None = None,
    checkpoint_folder: Path | None = None,
    deadline: float | None = None,
    reduced: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    """Return a copy of ``module`` with float weights that bear INT8, and notes.

    Args:
        module: what will be exported and quantized statically.
        teacher: the float model to agree with, mostly the source.
        batches: real data, for ranges and for training.
        options: see :class:`DistillOptions`; a tenth of the usual learning rate does.
        progress: see :func:`distill.distill`.
        checkpoint_folder: likewise.
        deadline: likewise.
        reduced: whether weights will get 7 bits, see :func:`fake_quantized`.

    Raises:
        NotApplicable: there is no convolution or linear layer.
        InputError, PassFailed: as :func:`distill.distill`.
    """
    student = fake_quantized(module, batches, reduced)
    trained, notes = distill(
        student, teacher, batches, options, progress, checkpoint_folder, deadline
    )
    return plain(trained).train(module.training), ("trained with INT8's rounding", *notes)


def fake_quantized(module: Any, batches: Batches, reduced: bool = False) -> Any:
    """Return a copy whose convolutions and linear layers round their inputs and weights to 8 bits.

    Args:
        module: in float.
        batches: real data, for ranges.
        reduced: 7 bits for the weights, as ``int8`` writes where 8 would overflow.

    Raises:
        NotApplicable: there is none.
    """
    import torch
    from torch.nn.utils import parametrize

    from optimize.passes.training.rounding import RoundedInput, RoundedWeight

    student = copy.deepcopy(module)
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.Linear)
    layers = [(n, part) for n, part in student.named_modules() if isinstance(part, kinds)]
    if not layers:
        raise NotApplicable("the model has no convolution or linear layer to quantize")
    for name, layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight(reduced))
        wrapped = RoundedInput(layer)
        if not name:
            student = wrapped
        else:
            parent, _, child = name.rpartition(".")
            setattr(student.get_submodule(parent), child, wrapped)
    _find_ranges(student, batches)
    return student


def _find_ranges(student: Any, batches: Batches) -> None:
    """Let every layer see real inputs before it rounds them."""
    import torch

    from optimize.passes.training.rounding import RoundedInput

    rounded = [part for part in student.modules() if isinstance(part, RoundedInput)]
    mode = student.training
    student.eval()
    for part in rounded:
        part.watching = True
    seen = 0
    with torch.no_grad():
        for batch in batches.training(epoch=0):
            student(*batch.args)
            seen += len(batch)
            if seen >= _RANGE_SAMPLES:
                break
    for part in rounded:
        part.watching = False
    student.train(mode)


def plain(student: Any) -> Any:
    """Take the rounding off again, in place: the weights as they were trained."""
    from torch.nn.utils import parametrize

    from optimize.passes.training.rounding import RoundedInput

    for name, part in list(student.named_modules()):
        if isinstance(part, RoundedInput):
            layer: Any = part.layer
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            if not name:
                return layer
            parent, _, child = name.rpartition(".")
            setattr(student.get_submodule(parent), child, layer)
    return student
