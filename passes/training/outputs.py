"""What a module returns, by name; what kind each output is; how far two of one kind are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from optimize.errors import InputError

Kind = Literal["logits", "probabilities", "independent", "values"]
ValueLoss = Literal["mse", "cosine"]
_TINY = 1e-7


def named_outputs(result: Any, prefix: str = "") -> dict[str, Any]:
    """The tensors in a module's result: a tensor, tuple, list, dict or ModelOutput, nested or not.

    A single tensor is called ``output``; items of a tuple ``output_0`` and so on, and items of
    inner containers ``outer.inner``.
    """
    import torch

    if isinstance(result, torch.Tensor):
        return {prefix or "output": result}
    if isinstance(result, Mapping):
        items = [(str(key), value) for key, value in result.items()]
    elif isinstance(result, (tuple, list)):
        if len(result) == 1:
            return named_outputs(result[0], prefix)
        items = [(f"output_{i}" if not prefix else str(i), v) for i, v in enumerate(result)]
    else:
        return {}
    found: dict[str, Any] = {}
    for key, value in items:
        found.update(named_outputs(value, f"{prefix}.{key}" if prefix else key))
    return found


def kind_of(name: str, value: Any, labels: Any = None) -> Kind:
    """Tell the kind of an output from the teacher's values.

    ``probabilities`` sum to one along the classes; ``independent`` ones lie between 0 and 1;
    ``logits`` are what is called so, or has a class for every label; all else is ``values``.

    Args:
        name: the output's.
        value: of one batch, shape (samples, ...).
        labels: of the same batch, if any.
    """
    if value.ndim < 2 or value.shape[class_axis(value)] < 2:
        inside = bool(((value >= 0) & (value <= 1)).all())
        return (
            "independent" if inside and value.numel() > 1 and float(value.std()) > 0 else "values"
        )
    if bool(((value >= 0) & (value <= 1)).all()):
        sums = value.sum(class_axis(value))
        return "probabilities" if bool(((sums - 1).abs() < 1e-3).all()) else "independent"
    return "logits" if "logit" in name.lower() or fits(labels, value) else "values"


def class_axis(value: Any) -> int:
    """The axis of classes: the last of (N, C) and (N, tokens, C), the second of images."""
    return 1 if value.ndim >= 4 else -1


def fits(labels: Any, value: Any) -> bool:
    """Whether the labels are classes of this output, one for each place."""
    if labels is None or labels.dtype.is_floating_point or value.ndim < 2:
        return False
    axis = class_axis(value)
    places = [size for i, size in enumerate(value.shape) if i != axis % value.ndim]
    within = int(labels.min()) >= 0 and int(labels.max()) < value.shape[axis]
    return list(labels.shape) == places and within


def distance(
    student: Any,
    teacher: Any,
    kind: Kind,
    temperature: float = 1.0,
    values: ValueLoss = "mse",
    mask: Any = None,
) -> Any:
    """How far the student's output is from the teacher's; a scalar, 0 where they are equal.

    ``logits`` and ``probabilities``: KL divergence of the softened classes, times the squared
    temperature (https://arxiv.org/abs/1503.02531). ``independent``: cross-entropy of each
    element less the teacher's entropy. ``values``: squared error relative to the teacher's
    variance, or one less the cosine along the last axis.

    Args:
        student: shape (samples, ...).
        teacher: of the same shape.
        kind: of the output.
        temperature: softens classes.
        values: for outputs that are no classes.
        mask: which tokens count, shape (samples, tokens), where the output has these axes.
    """
    from torch.nn import functional

    if kind == "values" and values == "mse":
        apart = (student - teacher).square()
        kept = _kept(apart, mask)
        return _mean(apart, kept) / _variance(teacher, kept).clamp_min(1e-12)
    if kind == "values":
        apart = 1 - functional.cosine_similarity(student, teacher, dim=-1)
    elif kind == "independent":
        student, teacher = student.clamp(_TINY, 1 - _TINY), teacher.clamp(_TINY, 1 - _TINY)
        entropy = functional.binary_cross_entropy(teacher, teacher, reduction="none")
        apart = functional.binary_cross_entropy(student, teacher, reduction="none") - entropy
    else:
        if kind == "probabilities":
            student, teacher = student.clamp_min(_TINY).log(), teacher.clamp_min(_TINY).log()
        axis = class_axis(teacher)
        wanted = functional.log_softmax(teacher / temperature, axis)
        given = functional.log_softmax(student / temperature, axis)
        apart = functional.kl_div(given, wanted, reduction="none", log_target=True).sum(axis)
        apart = apart * temperature**2
    return _mean(apart, _kept(apart, mask))


def label_loss(value: Any, labels: Any, kind: Kind) -> Any:
    """Cross-entropy against class labels.

    Args:
        value: logits or probabilities, shape (samples, ..., classes).
        labels: integer classes.
        kind: of the output.

    Raises:
        InputError: the labels are no classes of this output.
    """
    from torch.nn import functional

    if not fits(labels, value):
        raise InputError("distill: alpha needs labels that are classes of the output")
    scores = value if kind in ("logits", "values") else value.clamp_min(_TINY).log()
    if value.ndim == 3:
        scores = scores.transpose(1, 2)  # torch wants the classes second
    return functional.cross_entropy(scores, labels.long())


def _kept(apart: Any, mask: Any) -> Any:
    """Weights of the tokens, shaped to multiply ``apart``; None where the mask does not fit."""
    if mask is None or apart.ndim < 2 or tuple(apart.shape[:2]) != tuple(mask.shape):
        return None
    return mask.to(apart.dtype).reshape(*mask.shape, *[1] * (apart.ndim - 2)).expand_as(apart)


def _mean(values: Any, kept: Any) -> Any:
    return values.mean() if kept is None else (values * kept).sum() / kept.sum().clamp_min(1)


def _variance(values: Any, kept: Any) -> Any:
    return _mean((values - _mean(values, kept)).square(), kept)
