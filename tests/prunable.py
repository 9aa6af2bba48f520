"""Random networks to prune, written node by node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, checker, helper, numpy_helper

SIZE = 8  # pixels a side of the input


@dataclass
class Builder:
    """Collects nodes and weights; every method returns the name of a new tensor."""

    rng: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=lambda: {"image": 3})

    def node(self, kind: str, inputs: list[str], channels: int, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.channels[name] = channels
        return name

    def weight(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def random(self, *shape: int, scale: float = 1.0) -> str:
        return self.weight((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, channels: int, kernel: int = 3, bias: bool = True) -> str:
        given = self.channels[x]
        inputs = [x, self.random(channels, given, kernel, kernel, scale=1 / (given**0.5 * kernel))]
        inputs += [self.random(channels)] if bias else []
        return self.node("Conv", inputs, channels, pads=[kernel // 2] * 4)

    def depthwise(self, x: str, groups: int | None = None) -> str:
        count = self.channels[x]
        groups = groups or count
        inputs = [x, self.random(count, count // groups, 3, 3, scale=0.3), self.random(count)]
        return self.node("Conv", inputs, count, pads=[1] * 4, group=groups)

    def norm(self, x: str) -> str:
        count = self.channels[x]
        variance = self.weight(self.rng.uniform(0.5, 2, count).astype(np.float32))
        scale, bias, mean = (self.random(count) for _ in range(3))
        return self.node("BatchNormalization", [x, scale, bias, mean, variance], count)

    def unary(self, x: str, kind: str) -> str:
        return self.node(kind, [x], self.channels[x])

    def prelu(self, x: str) -> str:
        return self.node("PRelu", [x, self.random(self.channels[x], 1, 1)], self.channels[x])

    def scaled(self, x: str) -> str:
        return self.node("Mul", [x, self.random(1, self.channels[x], 1, 1)], self.channels[x])

    def residual(self, x: str) -> str:
        y = self.unary(self.conv(x, self.channels[x]), "Relu")
        return self.node("Add", [x, y], self.channels[x])

    def gated(self, x: str) -> str:
        pooled = self.node("GlobalAveragePool", [x], self.channels[x])
        hidden = self.unary(self.conv(pooled, 4, 1), "Relu")
        gate = self.unary(self.conv(hidden, self.channels[x], 1), "Sigmoid")
        return self.node("Mul", [x, gate], self.channels[x])

    def concat(self, x: str) -> str:
        y = self.conv(x, 4)
        return self.node("Concat", [x, y], self.channels[x] + 4, axis=1)

    def split(self, x: str) -> str:
        """Two halves, each with a convolution of its own, side by side again."""
        count = self.channels[x]
        first = count // 2 + 1
        names = [f"part_{len(self.nodes)}_{i}" for i in range(2)]
        sizes = self.weight(np.array([first, count - first], np.int64))
        self.nodes.append(helper.make_node("Split", [x, sizes], names, axis=1))
        self.channels |= {names[0]: first, names[1]: count - first}
        parts = [self.conv(names[0], 4), self.unary(names[1], "Relu")]
        return self.node("Concat", parts, 4 + count - first, axis=1)

    def resized(self, x: str) -> str:
        scales = self.weight(np.array([1, 1, 2, 2], np.float32))
        up = self.node("Resize", [x, "", scales], self.channels[x], mode="nearest")
        return self.node("MaxPool", [up], self.channels[x], kernel_shape=[2, 2], strides=[2, 2])

    def padded(self, x: str) -> str:
        pads = self.weight(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        y = self.node("Pad", [x, pads], self.channels[x])
        return self.node("AveragePool", [y], self.channels[x], kernel_shape=[3, 3])

    def transposed(self, x: str) -> str:
        given = self.channels[x]
        inputs = [x, self.random(given, 6, 3, 3, scale=0.2), self.random(6)]
        return self.node("ConvTranspose", inputs, 6, pads=[1] * 4)

    def flat_head(self, x: str) -> str:
        """Flattened features through two dense layers, the first a Gemm, the second a MatMul."""
        small = self.node("MaxPool", [x], self.channels[x], kernel_shape=[4, 4], strides=[4, 4])
        flat = self.node("Flatten", [small], 4 * self.channels[x])
        dense = [flat, self.random(8, self.channels[flat], scale=0.1), self.random(8)]
        hidden = self.unary(self.node("Gemm", dense, 8, transB=1), "Gelu")
        product = self.node("MatMul", [hidden, self.random(8, 5)], 5)
        return self.node("Add", [product, self.random(5)], 5)

    def mean_head(self, x: str) -> str:
        axes = self.weight(np.array([2, 3], np.int64))
        mean = self.node("ReduceMean", [x, axes], self.channels[x], keepdims=0)
        return self.node("Gemm", [mean, self.random(self.channels[x], 5)], 5)

    def model(self, output: str) -> Any:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 5])],
            self.weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        checker.check_model(proto)
        return proto


_STEPS: dict[str, Callable[[Builder, str], str]] = {
    "conv": lambda b, x: b.conv(x, int(b.rng.integers(4, 9))),
    "pointwise": lambda b, x: b.conv(x, 6, 1, bias=False),
    "depthwise": lambda b, x: b.depthwise(x),
    "grouped": lambda b, x: b.depthwise(b.conv(x, 8), 4),
    "norm": lambda b, x: b.norm(x),
    "relu": lambda b, x: b.unary(x, "Relu"),
    "sigmoid": lambda b, x: b.unary(x, "HardSwish"),
    "prelu": lambda b, x: b.prelu(x),
    "scaled": lambda b, x: b.scaled(x),
    "residual": lambda b, x: b.residual(x),
    "gated": lambda b, x: b.gated(x),
    "concat": lambda b, x: b.concat(x),
    "split": lambda b, x: b.split(x),
    "resized": lambda b, x: b.resized(x),
    "padded": lambda b, x: b.padded(x),
    "transposed": lambda b, x: b.transposed(x),
}


@st.composite
def networks(draw: st.DrawFn) -> Any:
    """Random convolutional networks of a few steps: images (n, 3, 8, 8) to five numbers."""
    builder = Builder(np.random.default_rng(draw(st.integers(0, 2**16))))
    x = builder.conv("image", draw(st.integers(4, 8)))
    for step in draw(st.lists(st.sampled_from(sorted(_STEPS)), min_size=1, max_size=6)):
        x = _STEPS[step](builder, x)
    head = builder.flat_head if draw(st.booleans()) else builder.mean_head
    return builder.model(head(x))
