"""Zeros in weights whose shapes stay: for runtimes that have kernels for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.models.nodes import attribute
from optimize.passes.pruning.graph import Array, constants, put


@dataclass(frozen=True)
class Masked:
    """A graph with zeros.

    Attributes:
        proto: the graph.
        zeros: how many weights became zero.
        weights: how many there are in the tensors that were considered.
        skipped: tensors whose inputs do not divide by four.
    """

    proto: Any
    zeros: int
    weights: int
    skipped: tuple[str, ...] = ()


def unstructured(proto: Any, ratio: float, everywhere: bool) -> Masked:
    """Zero the weights of least magnitude.

    Args:
        proto: a plain graph; it is not changed.
        ratio: share of the weights that become zero.
        everywhere: whether tensors compete, each relative to its root mean square; else each
            gives the same share.
    """
    found = {name: array for name, (array, _) in _weights(proto)}
    masks = least([*found.values()], ratio, everywhere)
    return _with_zeros(proto, dict(zip(found, masks, strict=True)))


def two_of_four(proto: Any) -> Masked:
    """Zero the two smallest of every four neighbouring inputs of an output."""
    masks, skipped = {}, []
    for name, (array, axis) in _weights(proto):
        mask = least_of_four(array, axis)
        if mask is None:
            skipped.append(name)
        else:
            masks[name] = mask
    return _with_zeros(proto, masks, skipped)


def least(weights: Sequence[Array], ratio: float, everywhere: bool) -> list[Array]:
    """Masks of the weights of least magnitude; see :func:`unstructured`.

    Of equal ones the first go: no more than the share becomes zero, however many are equal.
    """
    scores = [np.abs(array.astype(np.float64)) for array in weights]
    if not everywhere or not scores:
        return [_least(score.ravel(), ratio).reshape(score.shape) for score in scores]
    for score in scores:
        score /= max(float(np.sqrt(np.mean(score**2))), np.finfo(float).tiny)
    gone = _least(np.concatenate([score.ravel() for score in scores]), ratio)
    parts = np.split(gone, np.cumsum([score.size for score in scores])[:-1])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def least_of_four(weight: Array, axis: int) -> Array | None:
    """A mask of the two smallest of every four neighbours along an axis; None for a remainder."""
    rows = np.moveaxis(np.abs(weight), axis, -1)
    if rows.shape[-1] % 4:
        return None
    fours = rows.reshape(*rows.shape[:-1], -1, 4)
    mask = np.argsort(np.argsort(fours, axis=-1, kind="stable"), axis=-1) < 2
    return np.moveaxis(mask.reshape(rows.shape), -1, axis)


def _least(scores: Array, ratio: float) -> Array:
    gone = np.zeros(scores.size, bool)
    gone[np.argsort(scores, kind="stable")[: int(ratio * scores.size)]] = True
    return gone


def _weights(proto: Any) -> Iterator[tuple[str, tuple[Array, int]]]:
    """Weights of convolutions and matrix products, each once, with the axis of their inputs.

    What is an output, too, is not among them: it must stay as it is.
    """
    known, seen = constants(proto), {value.name for value in proto.graph.output}
    for node in proto.graph.node:
        transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
        axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1 if transposed else 0, "MatMul": 0}
        if node.op_type not in axis or node.domain not in ("", "ai.onnx"):
            continue
        name = node.input[1]
        if name in known and name not in seen and known[name].ndim >= 2:
            seen.add(name)
            matrix = node.op_type == "MatMul"
            yield name, (known[name], known[name].ndim - 2 if matrix else axis[node.op_type])


def _with_zeros(proto: Any, masks: dict[str, Array], skipped: Sequence[str] = ()) -> Masked:
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(proto)
    known = constants(proto)
    for name, mask in masks.items():
        put(result, name, np.where(mask, known[name].dtype.type(0), known[name]))
    onnx.checker.check_model(result)
    return Masked(
        result,
        sum(int(mask.sum()) for mask in masks.values()),
        sum(mask.size for mask in masks.values()),
        tuple(skipped),
    )
