"""Cut the channels that go out of every weight that knows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimize.models.nodes import attribute
from optimize.passes.graph import uses
from optimize.passes.pruning.channels import Axes
from optimize.passes.pruning.graph import (
    Array,
    Shapes,
    captured,
    constants,
    put,
    set_nodes,
)
from optimize.passes.pruning.groups import Dependencies, Keep
from optimize.passes.pruning.target import replaced

_TARGETS = {"Reshape": 1, "Resize": 3}  # inputs that hold the shape of the result


def shrink(proto: Any, found: Dependencies, shapes: Shapes, keep: Keep) -> Any:
    """The smaller graph: it passes onnx's checker, the types of its tensors are inferred anew.

    Args:
        proto: a plain graph; it is not changed.
        found: its channels.
        shapes: of all its tensors.
        keep: shape (number of channels,), whether each stays.
    """
    import onnx

    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    _Cutter(cut, found, shapes, keep).cut()
    finish(cut)
    return cut


def kept(axes: Axes, keep: Keep) -> tuple[Array | None, ...]:
    """For each axis the indices that stay; None for all."""
    return tuple(
        None if axis is None or keep[axis].all() else np.flatnonzero(keep[axis]) for axis in axes
    )


def finish(proto: Any) -> None:
    """Drop weights that nothing uses, infer types anew, and check, all in place."""
    import onnx

    graph = proto.graph
    used = {name for node in graph.node for name in (*node.input, *captured(node))}
    used |= {value.name for value in graph.output}
    for position in reversed(range(len(graph.initializer))):
        if graph.initializer[position].name not in used:
            del graph.initializer[position]
    del graph.value_info[:]
    onnx.checker.check_model(proto)
    graph.value_info.extend(onnx.shape_inference.infer_shapes(proto).graph.value_info)


class _Cutter:
    """Cuts one graph in place."""

    def __init__(self, proto: Any, found: Dependencies, shapes: Shapes, keep: Keep) -> None:
        self._proto, self._found, self._shapes, self._keep = proto, found, shapes, keep
        self._constants = constants(proto)
        self._producers = {name: node for node in proto.graph.node for name in node.output}
        self._times = uses(proto)

    def cut(self) -> None:
        nodes: list[Any] = []
        for index, node in enumerate(self._proto.graph.node):
            before = list(node.input)
            for position in range(len(node.input)):
                self._cut_weight(node, index, position)
            self._cut_groups(node, before)
            self._cut_split(node)
            nodes += [*self._cut_target(node), node]
        set_nodes(self._proto, nodes)

    def _cut_weight(self, node: Any, index: int, position: int) -> None:
        places = kept(self._found.uses.get((index, position), ()), self._keep)
        if all(place is None for place in places):
            return
        name = node.input[position]
        array = self._constants[name]
        for axis, place in enumerate(places):
            array = array if place is None else np.take(array, place, axis)
        # What others read too, in a branch or as an output, is cut for this node by itself.
        own = name if self._times[name] == 1 else f"{name}.{index}"
        put(self._proto, own, array)
        node.input[position] = own

    def _cut_groups(self, node: Any, before: Sequence[str]) -> None:
        groups = attribute(node, "group", 1)
        if node.op_type not in ("Conv", "ConvTranspose") or groups == 1:
            return
        kept_inputs = self._length(before[0], 1)
        each = self._shapes[before[0]][1] // groups
        _set(node, "group", kept_inputs // each)

    def _cut_split(self, node: Any) -> None:
        if node.op_type != "Split" or node.input[0] not in self._found.axes:
            return
        axis = attribute(node, "axis", 0) % len(self._shapes[node.input[0]])
        sizes = [self._length(name, axis) for name in node.output]
        if sizes == [self._shapes[name][axis] for name in node.output]:
            return
        if self._opset() < 13:
            _set(node, "split", sizes)
            return
        _set(node, "num_outputs", None)
        name = f"{node.output[0]}.split"
        put(self._proto, name, np.array(sizes, np.int64))
        node.input[:] = [node.input[0], name]

    def _cut_target(self, node: Any) -> list[Any]:
        """Tell the node its new shape; if that has computed pieces, a new Concat joins them."""
        from onnx import helper

        position = _TARGETS.get(node.op_type, len(node.input))
        axes = self._found.axes.get(node.output[0], ())
        if position >= len(node.input) or not node.input[position] or not axes:
            return []
        lengths = [
            None if axis is None else self._length(node.output[0], k) for k, axis in enumerate(axes)
        ]
        target = node.input[position]
        pieces = replaced(target, lengths, self._constants, self._producers, self._shapes)
        if pieces is None:
            return []
        names = []
        for count, piece in enumerate(pieces):
            name = piece if isinstance(piece, str) else f"{node.output[0]}.shape.{count}"
            if not isinstance(piece, str):
                put(self._proto, name, piece)
            names.append(name)
        node.input[position] = names[0] if len(names) == 1 else f"{node.output[0]}.shape"
        if len(names) == 1:
            return []
        return [helper.make_node("Concat", names, [node.input[position]], axis=0)]

    def _length(self, name: str, axis: int) -> int:
        labels = self._found.axes.get(name, (None,) * (axis + 1))[axis]
        return self._shapes[name][axis] if labels is None else int(self._keep[labels].sum())

    def _opset(self) -> int:
        return max(int(o.version) for o in self._proto.opset_import if o.domain in ("", "ai.onnx"))


def _set(node: Any, name: str, value: Any) -> None:
    """Replace an attribute; None removes it."""
    from onnx import helper

    others = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(others)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
