"""Layers that sum over channels: where they read them, and their weights as matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.models.nodes import attribute
from optimize.passes.pruning.channels import Labels
from optimize.passes.pruning.graph import Array
from optimize.passes.pruning.groups import Dependencies


@dataclass(frozen=True, eq=False)
class Layer:
    """A Conv of one group, ConvTranspose, Gemm or MatMul whose input has channels.

    Attributes:
        index: position of the node.
        node: the node.
        inputs: for each index of the input's channel axis, its channel.
    """

    index: int
    node: Any
    inputs: Labels

    @property
    def channel_axis(self) -> int:
        """Which axis of the layer's input and output the channels are on."""
        return -1 if self.node.op_type == "MatMul" else 1

    @property
    def input_axis(self) -> int:
        """Which axis of the weight the inputs are on."""
        axis = _input_axis(self.node)
        assert axis is not None
        return axis

    def matrix(self, weight: Array) -> Array:
        """Weights as (inputs, outputs, positions of the kernel), float64."""
        return np.ascontiguousarray(self._turned(weight), np.float64)

    def weight(self, matrix: Array, like: Array) -> Array:
        """The inverse of :meth:`matrix`, in the type of ``like`` and its kernel's shape."""
        inputs, outputs, _ = matrix.shape
        kernel = like.shape[2:]
        if self.node.op_type == "Conv":
            turned = matrix.transpose(1, 0, 2).reshape(outputs, inputs, *kernel)
        elif self.node.op_type == "Gemm" and attribute(self.node, "transB", 0):
            turned = matrix[:, :, 0].T
        else:
            turned = matrix.reshape(inputs, outputs, *kernel)
        return np.ascontiguousarray(turned, like.dtype)

    def rows(self, values: Array) -> Array:
        """Values of the input or output as (positions, channels), a view where possible."""
        moved = np.moveaxis(values, self.channel_axis, -1)
        return moved.reshape(-1, moved.shape[-1])

    def by_channel(self) -> tuple[Labels, Array]:
        """The distinct channels, shape (k,), and where each is read, shape (m, k).

        After a flattening, each channel is read at m places. A place of -1 stands for none, where
        some are read more often than others.
        """
        channels, numbers = np.unique(self.inputs, return_inverse=True)
        places = np.full((int(np.bincount(numbers).max()), len(channels)), -1)
        seen = np.zeros(len(channels), np.int64)
        for place, number in enumerate(numbers.tolist()):
            places[seen[number], number] = place
            seen[number] += 1
        return channels, places

    def _turned(self, weight: Array) -> Array:
        if self.node.op_type == "Conv":
            return weight.reshape(*weight.shape[:2], -1).transpose(1, 0, 2)
        if self.node.op_type == "Gemm" and attribute(self.node, "transB", 0):
            return weight.T[:, :, None]
        return weight.reshape(*weight.shape[:2], -1)


def layers(proto: Any, found: Dependencies) -> Iterator[Layer]:
    """All layers of a plain graph that sum over channels, in the order of computation."""
    for index, node in enumerate(proto.graph.node):
        axis = _input_axis(node)
        axes = found.uses.get((index, 1))
        if axis is not None and axes is not None:
            labels = axes[axis]
            if labels is not None:
                yield Layer(index, node, labels)


def _input_axis(node: Any) -> int | None:
    """Which axis of the weight the layer sums over."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Conv":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "ConvTranspose":
        return 0 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 1 if attribute(node, "transB", 0) else 0
    return 0 if node.op_type == "MatMul" else None
