"""Walk a graph and label its channels; the rules of each operator are in ``rules``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from optimize.models.nodes import attribute
from optimize.passes.pruning.channels import Axes, Axis, Channels
from optimize.passes.pruning.graph import Array, Shapes

Use = tuple[int, int]  # position of a node, position of its input


@dataclass(eq=False)
class Trace:
    """What is known so far.

    Attributes:
        constants: values of all initializers.
        shapes: of all tensors.
        channels: the labels.
        axes: labels of each computed tensor, an entry an axis; tensors without labels are left out.
        uses: labels of constants, by the place where they are used.
        readers: the nodes that read a tensor, by themselves or in a branch.
        producers: the node that computes a tensor.
        outputs: names of the graph's.
        opset: version of the default operator set.
    """

    constants: Mapping[str, Array]
    shapes: Shapes
    readers: Mapping[str, list[Any]]
    producers: Mapping[str, Any]
    outputs: Collection[str]
    opset: int
    channels: Channels = field(default_factory=Channels)
    axes: dict[str, Axes] = field(default_factory=dict)
    uses: dict[Use, Axes] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Node:
    """A node as its rule sees it."""

    index: int
    proto: Any
    trace: Trace

    @property
    def kind(self) -> str:
        """The operator, with its domain unless it is the default one."""
        domain = self.proto.domain
        return (
            self.proto.op_type if domain in ("", "ai.onnx") else f"{domain}::{self.proto.op_type}"
        )

    def name(self, position: int) -> str:
        """The name of an input; empty if it is left out."""
        return self.proto.input[position] if position < len(self.proto.input) else ""

    def constant(self, position: int) -> Array | None:
        """The value of an input that is an initializer."""
        return self.trace.constants.get(self.name(position))

    def shape(self, position: int) -> tuple[int, ...]:
        """The shape of an input."""
        return self.trace.shapes[self.name(position)]

    def out_shape(self, position: int = 0) -> tuple[int, ...]:
        """The shape of an output."""
        return self.trace.shapes[self.proto.output[position]]

    def axes(self, position: int = 0) -> Axes:
        """The labels of an input, None for every axis without."""
        name = self.name(position)
        return self.trace.axes.get(name) or (None,) * len(self.trace.shapes.get(name, ()))

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return attribute(self.proto, name, default)

    def numbers(self, name: str, position: int) -> list[int] | None:
        """Integers that are an attribute in old operator sets and an input in new ones."""
        value = self.attribute(name)
        if value is None and self.name(position):
            value = self.constant(position)
        return None if value is None else [int(item) for item in value]

    def give(self, axes: Axes, position: int = 0) -> None:
        """Label an output."""
        if any(axis is not None for axis in axes):
            self.trace.axes[self.proto.output[position]] = axes

    def use(self, position: int, axes: Axes) -> None:
        """Label a constant input at this place."""
        if any(axis is not None for axis in axes):
            self.trace.uses[self.index, position] = axes

    def new(self, count: int) -> Axis:
        """Labels of channels that this node computes."""
        return self.trace.channels.new(count, self.index)

    def tie(self, first: Axis, second: Axis) -> Axis:
        """Join the channels of two axes."""
        return self.trace.channels.tie(first, second, f"{self.kind} joins it with fixed channels")

    def pin(self, *axes: Axis, why: str = "") -> None:
        """Keep the channels of these axes."""
        for axis in axes:
            self.trace.channels.pin(axis, why or f"{self.kind} takes all its channels together")

    def pin_except(self, position: int, *kept: int) -> None:
        """Keep the channels of all axes of an input but ``kept``."""
        axes = self.axes(position)
        self.pin(*(axis for i, axis in enumerate(axes) if i not in kept))
