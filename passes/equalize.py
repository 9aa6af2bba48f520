"""Cross-layer equalisation: channels of neighbouring convolutions share their range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from optimize.errors import InputError, NotApplicable
from optimize.models.model import Model
from optimize.models.nodes import attribute
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import load_proto, save_proto
from optimize.passes.graph import uses

Array = NDArray[np.float32]
# Functions with f(s x) = s f(x) for s > 0, channel by channel, which a scale may cross.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity")


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale output channels of one layer down and the next layer's inputs up by the same factor.

    The network computes the same, since ReLU and pooling let positive factors through, but no
    channel of a weight dwarfs the others any more, which one scale for the whole tensor could not
    resolve: s_i = sqrt(r1_i / r2_i) with the channels' ranges r (Nagel et al., "Data-free
    quantization through weight equalization and bias correction", 2019, eq. 11). It matters for
    depthwise networks quantized per tensor. ReLU6 is not homogeneous and stops it.
    """

    name: ClassVar[str] = "equalize"
    summary: ClassVar[str] = "cross-layer equalisation of convolutions, before int8"
    tolerance: ClassVar[float | None] = 1e-3  # products are rounded at another scale

    rounds: int = 10

    def __post_init__(self) -> None:
        """Check the number of rounds."""
        if self.rounds < 1:
            raise InputError(f"equalize: rounds={self.rounds} is not at least 1")

    def apply(self, model: Model, context: Context) -> PassResult:
        """Equalize all pairs until their ranges settle."""
        if model.quantized:
            raise NotApplicable("the model is already quantized")
        proto = load_proto(model)
        fold_batch_norms(proto)
        found = list(pairs(proto))
        if not found:
            raise NotApplicable(
                "no two convolutions follow each other with only ReLU or pooling between them"
            )
        spread = max(pair.spread() for pair in found)
        for _ in range(self.rounds):
            for pair in found:
                pair.equalize()
        for pair in found:
            pair.write()
        after = max(pair.spread() for pair in found)
        note = (
            f"{len(found)} pairs of layers; the widest channel of a weight was {spread:.0f} times "
            f"its median, now {after:.1f}"
        )
        return PassResult(save_proto(proto, context), True, (note,))


@dataclass(eq=False)
class _Weights:
    """A convolution's or Gemm's weights, shared by the pairs that it belongs to."""

    node: Any
    tensor: Any
    bias: Any
    value: Array
    bias_value: Array | None

    @property
    def depthwise(self) -> bool:
        return self.value.ndim > 2 and attribute(self.node, "group", 1) == self.value.shape[0] > 1

    def output_ranges(self) -> Array:
        return _ranges(self.value if not self._transposed else self.value.T, 0)

    def input_ranges(self) -> Array:
        if self.depthwise:
            return _ranges(self.value, 0)
        return _ranges(self.value if not self._transposed else self.value.T, 1)

    def scale_outputs(self, factor: Array) -> None:
        axis = 1 if self._transposed else 0
        self.value = self.value * _along(factor, axis, self.value.ndim)
        if self.bias_value is not None:
            self.bias_value = self.bias_value * factor

    def scale_inputs(self, factor: Array) -> None:
        axis = 0 if self.depthwise or self._transposed else 1
        self.value = self.value * _along(factor, axis, self.value.ndim)

    @property
    def _transposed(self) -> bool:
        """Gemm without transB keeps inputs first."""
        return self.node.op_type == "Gemm" and not attribute(self.node, "transB", 0)


@dataclass(eq=False)
class Pair:
    """Two layers with nothing but what a positive scale may cross between them."""

    first: _Weights
    second: _Weights

    def spread(self) -> float:
        """The widest output channel of the first, as a multiple of the median one."""
        ranges = self.first.output_ranges()
        return float(ranges.max() / max(float(np.median(ranges)), 1e-12))

    def equalize(self) -> None:
        """Give every channel the same range in both layers."""
        out, into = self.first.output_ranges(), self.second.input_ranges()
        alive = (out > 1e-8) & (into > 1e-8)
        factor = np.where(alive, np.sqrt(into / np.where(alive, out, 1)), 1).astype(np.float32)
        self.first.scale_outputs(factor)
        self.second.scale_inputs(np.float32(1) / factor)

    def write(self) -> None:
        """Put the scaled weights into the graph that they came from."""
        from onnx import numpy_helper

        for weights in (self.first, self.second):
            value = weights.value.astype(np.float32)
            weights.tensor.CopyFrom(numpy_helper.from_array(value, weights.tensor.name))
            if weights.bias is not None and weights.bias_value is not None:
                bias = weights.bias_value.astype(np.float32)
                weights.bias.CopyFrom(numpy_helper.from_array(bias, weights.bias.name))


def _ranges(value: Array, axis: int) -> Array:
    others = tuple(a for a in range(value.ndim) if a != axis)
    ranges: Array = np.abs(value).max(axis=others)
    return ranges


def _along(factor: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return factor.reshape(shape)


def pairs(proto: Any) -> Iterator[Pair]:
    """Layers whose output goes, through homogeneous functions only, to one other layer."""
    reads = uses(proto)
    readers = {name: node for node in proto.graph.node for name in node.input}
    layers = _layers(proto)
    for first in layers.values():
        name = first.node.output[0]
        while reads[name] == 1 and name in readers:
            node = readers[name]
            second = layers.get(node.output[0])
            if second is not None and node.input[0] == name:
                if first.output_ranges().shape == second.input_ranges().shape:
                    yield Pair(first, second)
                break
            if node.op_type not in _HOMOGENEOUS:
                break
            name = node.output[0]


def _layers(proto: Any) -> dict[str, _Weights]:
    """Convolutions and Gemms with float32 weights of their own, by the name of their output."""
    from onnx import numpy_helper

    tensors = _float_tensors(proto)
    reads = uses(proto)
    found = {}
    for node in proto.graph.node:
        names = list(node.input[1:3])
        own = all(name in tensors and reads[name] == 1 for name in names if name)
        if node.op_type not in ("Conv", "Gemm") or not own or attribute(node, "transA", 0):
            continue
        group = attribute(node, "group", 1)
        value = numpy_helper.to_array(tensors[names[0]])
        if group > 1 and (group != value.shape[0] or value.shape[1] != 1):
            continue
        bias = tensors[names[1]] if len(names) > 1 and names[1] else None
        bias_value = numpy_helper.to_array(bias) if bias is not None else None
        found[node.output[0]] = _Weights(node, tensors[names[0]], bias, value, bias_value)
    return found


def _float_tensors(proto: Any) -> dict[str, Any]:
    from onnx import TensorProto

    return {
        tensor.name: tensor
        for tensor in proto.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }


def fold_batch_norms(proto: Any) -> int:
    """Fold batch norms into the convolutions before them, in place.

    Returns:
        How many were folded.
    """
    from onnx import numpy_helper

    tensors = _float_tensors(proto)
    makers = {name: node for node in proto.graph.node for name in node.output}
    readers = uses(proto)
    folded = []
    for norm in proto.graph.node:
        conv = makers.get(norm.input[0]) if norm.input else None
        if norm.op_type != "BatchNormalization" or conv is None or conv.op_type != "Conv":
            continue
        names = [*norm.input[1:5], *conv.input[1:3]]
        private = all(n in tensors for n in names) and all(readers[n] == 1 for n in conv.input[1:3])
        if not private or readers[norm.input[0]] != 1:
            continue
        gamma, beta, mean, variance = (numpy_helper.to_array(tensors[n]) for n in norm.input[1:5])
        epsilon = attribute(norm, "epsilon", 1e-5)
        factor = (gamma / np.sqrt(variance + epsilon)).astype(np.float32)
        weight = numpy_helper.to_array(tensors[conv.input[1]])
        scaled = weight * _along(factor, 0, weight.ndim)
        bias = np.zeros_like(mean)
        if len(conv.input) > 2:
            bias = numpy_helper.to_array(tensors[conv.input[2]])
        else:
            conv.input.append(f"{conv.output[0]}_bias")
            proto.graph.initializer.append(numpy_helper.from_array(bias, conv.input[2]))
            tensors[conv.input[2]] = proto.graph.initializer[-1]
        shifted = ((bias - mean) * factor + beta).astype(np.float32)
        tensors[conv.input[2]].CopyFrom(numpy_helper.from_array(shifted, conv.input[2]))
        tensors[conv.input[1]].CopyFrom(
            numpy_helper.from_array(scaled.astype(np.float32), conv.input[1])
        )
        conv.output[0] = norm.output[0]
        folded.append(norm)
    for node in folded:
        proto.graph.node.remove(node)
    return len(folded)
