"""Dependency groups: which channels of which layers can only go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.passes.pruning.channels import Axes, Classes, Labels
from optimize.passes.pruning.graph import Shapes, captured, constants
from optimize.passes.pruning.rules import rule
from optimize.passes.pruning.trace import Node, Trace, Use

Keep = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that the same layers compute, so that they compete with each other.

    Attributes:
        layers: positions of these layers' nodes.
        channels: shape (n,), channels that can go.
        width: how many indices of a layer's output one channel covers; more than one for
            attention heads and grouped convolutions.
    """

    layers: tuple[int, ...]
    channels: Labels
    width: int


@dataclass(frozen=True, eq=False)
class Dependencies:
    """The channels of a graph.

    Attributes:
        axes: for each computed tensor and axis, the channel of each index; None for an axis
            without channels. Tensors without any are left out.
        uses: the same for constants, by node and input.
        groups: what can go.
        untouched: layers (by their nodes' positions) of which some or all channels cannot go,
            and why.
        count: number of channels.
    """

    axes: Mapping[str, Axes]
    uses: Mapping[Use, Axes]
    groups: tuple[Group, ...]
    untouched: Mapping[int, str]
    count: int

    @property
    def prunable(self) -> int:
        """How many channels can go."""
        return sum(len(group.channels) for group in self.groups)


def dependencies(proto: Any, shapes: Shapes) -> Dependencies:
    """Find the channels of a plain graph.

    Args:
        proto: an ``onnx.ModelProto`` from :func:`optimize.passes.pruning.graph.plain`.
        shapes: of all its tensors.
    """
    trace = _traced(proto, shapes)
    classes = trace.channels.classes()
    groups: dict[frozenset[int], list[int]] = {}
    for number, layers in enumerate(classes.layers):
        if layers and number not in classes.pins:
            groups.setdefault(layers, []).append(number)
    axes = {name: classes.of(labels) for name, labels in trace.axes.items()}
    return Dependencies(
        axes,
        {use: classes.of(labels) for use, labels in trace.uses.items()},
        tuple(
            Group(tuple(sorted(layers)), np.array(found), _width(proto, axes, layers, found))
            for layers, found in groups.items()
        ),
        _untouched(classes),
        len(classes),
    )


def layer_name(node: Any) -> str:
    """What notes call a layer: the node's name, or its output's."""
    return str(node.name or node.output[0])


def _traced(proto: Any, shapes: Shapes) -> Trace:
    readers: dict[str, list[Any]] = {}
    producers = {name: node for node in proto.graph.node for name in node.output if name}
    for node in proto.graph.node:
        for name in (*node.input, *captured(node)):
            readers.setdefault(name, []).append(node)
    outputs = [value.name for value in proto.graph.output]
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    trace = Trace(constants(proto), shapes, readers, producers, outputs, opset)
    for index, node in enumerate(proto.graph.node):
        seen = Node(index, node, trace)
        for name in captured(node):
            seen.pin(*trace.axes.get(name, ()), why=f"a branch of {seen.kind} reads it")
        rule(seen)(seen)
    for output in outputs:
        for axis in trace.axes.get(output, ()):
            trace.channels.pin(axis, f"it computes the output {output}")
    return trace


def _width(
    proto: Any, axes: Mapping[str, Axes], layers: frozenset[int], channels: list[int]
) -> int:
    """The most indices that one of these channels covers in an output of these layers."""
    most = 1
    for layer in layers:
        for axis in axes.get(proto.graph.node[layer].output[0], ()):
            if axis is not None:
                most = max(
                    most, int(np.bincount(axis, minlength=max(channels) + 1)[channels].max())
                )
    return most


def _untouched(classes: Classes) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for number, reason in sorted(classes.pins.items()):
        for layer in sorted(classes.layers[number]):
            reasons.setdefault(layer, reason)
    return reasons
