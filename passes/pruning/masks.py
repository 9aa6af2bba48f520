"""Zeros in weights whose shapes stay: for runtimes that have kernels for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.passes.pruning.graph import Array, attribute, constants, put


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
    found = dict(_weights(proto))
    scores = {name: np.abs(array.astype(np.float64)) for name, (array, _) in found.items()}
    if everywhere:
        for score in scores.values():
            score /= max(float(np.sqrt(np.mean(score**2))), np.finfo(float).tiny)
        flat = np.concatenate([score.ravel() for score in scores.values()])
        gone = _least(flat, ratio)
        ends = np.cumsum([score.size for score in scores.values()])[:-1]
        masks = dict(zip(scores, np.split(gone, ends), strict=True))
    else:
        masks = {name: _least(score.ravel(), ratio) for name, score in scores.items()}
    return _with_zeros(
        proto, {name: mask.reshape(found[name][0].shape) for name, mask in masks.items()}
    )


def two_of_four(proto: Any) -> Masked:
    """Zero the two smallest of every four neighbouring inputs of an output."""
    masks, skipped = {}, []
    for name, (array, axis) in _weights(proto):
        rows = np.moveaxis(np.abs(array), axis, -1)
        if rows.shape[-1] % 4:
            skipped.append(name)
            continue
        fours = rows.reshape(*rows.shape[:-1], -1, 4)
        mask = np.argsort(np.argsort(fours, axis=-1, kind="stable"), axis=-1) < 2
        masks[name] = np.moveaxis(mask.reshape(rows.shape), -1, axis)
    return _with_zeros(proto, masks, skipped)


def _least(scores: Array, ratio: float) -> Array:
    gone = np.zeros(scores.size, bool)
    gone[np.argsort(scores, kind="stable")[: int(ratio * scores.size)]] = True
    return gone


def _weights(proto: Any) -> Iterator[tuple[str, tuple[Array, int]]]:
    """Weights of convolutions and matrix products, each once, with the axis of their inputs."""
    known, seen = constants(proto), set()
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
