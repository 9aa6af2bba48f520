"""How each operator passes channels on. An operator without a rule keeps what reaches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optimize.passes.pruning.channels import Axes, Axis
from optimize.passes.pruning.graph import Array
from optimize.passes.pruning.reshape import axes_after
from optimize.passes.pruning.target import entries
from optimize.passes.pruning.trace import Node

Rule = Callable[[Node], None]


def rule(node: Node) -> Rule:
    """The rule for a node; tensors without a shape (sequences, optionals) have none."""
    names = [name for name in (*node.proto.input, *node.proto.output) if name]
    known = all(name in node.trace.shapes for name in names)
    return _RULES.get(node.kind, _opaque) if known else _opaque


def _opaque(node: Node) -> None:
    for position in range(len(node.proto.input)):
        node.pin(*node.axes(position), why=f"{node.kind} reads it")


def _same(node: Node) -> None:
    node.give(node.axes())


def _conv(node: Node) -> None:
    weight = node.constant(1)
    if weight is None:
        return _opaque(node)
    node.pin_except(0, 1)
    given, groups = node.axes()[1], node.attribute("group", 1)
    made = node.new(weight.shape[0])
    if groups == 1:
        node.use(1, (made, given, *(None,) * (weight.ndim - 2)))
    else:
        made = _grouped(node, made, given, groups)
        node.use(1, (made, *(None,) * (weight.ndim - 1)))
    return _finish_conv(node, made)


def _conv_transpose(node: Node) -> None:
    weight = node.constant(1)
    if weight is None:
        return _opaque(node)
    node.pin_except(0, 1)
    given, groups = node.axes()[1], node.attribute("group", 1)
    made = node.new(weight.shape[1] * groups)
    if groups == 1:
        node.use(1, (given, made, *(None,) * (weight.ndim - 2)))
    else:
        made = _grouped(node, made, given, groups)
        node.use(1, (given, *(None,) * (weight.ndim - 1)))
    return _finish_conv(node, made)


def _finish_conv(node: Node, made: Axis) -> None:
    if node.name(2):
        if node.constant(2) is None:
            node.pin(made, *node.axes(2), why="its bias is computed")
        else:
            node.use(2, (made,))
    node.give((None, made, *(None,) * (len(node.out_shape()) - 2)))


def _grouped(node: Node, made: Axis, given: Axis, groups: int) -> Axis:
    """Tie all inputs and outputs of each group of a convolution: it goes as a whole."""
    assert made is not None
    outputs = made.reshape(groups, -1)
    for column in outputs.T[1:]:
        node.tie(outputs[:, 0], column)
    if given is None:
        node.pin(made, why="its groups read fixed channels")
        return made
    for column in given.reshape(groups, -1).T:
        node.tie(outputs[:, 0], column)
    return made


def _gemm(node: Node) -> None:
    weight = node.constant(1)
    if weight is None or node.attribute("transA", 0):
        return _opaque(node)
    node.pin_except(0, 1)
    given = node.axes()[1]
    transposed = node.attribute("transB", 0)
    made = node.new(weight.shape[0 if transposed else 1])
    node.use(1, (made, given) if transposed else (given, made))
    if node.name(2):
        made = _joined(node, 2, (None, made), node.out_shape())[-1]
    node.give((None, made))
    return None


def _matmul(node: Node) -> None:
    left, right = node.constant(0), node.constant(1)
    if left is None and right is not None and right.ndim == 2:
        *others, given = node.axes()
        made = node.new(right.shape[1])
        node.use(1, (given, made))
        node.give((*others, made))
    elif left is None and right is None and min(len(node.shape(0)), len(node.shape(1))) >= 2:
        _product(node)
    else:
        _opaque(node)


def _product(node: Node) -> None:
    """Two computed factors: batch axes are element-wise, the summed axis goes together."""
    left, right = node.axes(0), node.axes(1)
    node.tie(left[-1], right[-2])
    rank = len(node.out_shape())
    shapes = [node.shape(i)[:-2] for i in (0, 1)]
    batch = _broadcast(node, [left[:-2], right[:-2]], shapes, node.out_shape()[: rank - 2])
    node.give((*batch, left[-2], right[-1]))


def _broadcast(
    node: Node, operands: list[Axes], shapes: list[tuple[int, ...]], target: tuple[int, ...]
) -> Axes:
    """Tie the axes of computed operands as numpy broadcasts them."""
    result: list[Axis] = []
    for back in range(len(target), 0, -1):
        present = [
            (axes[-back], shape[-back])
            for axes, shape in zip(operands, shapes, strict=True)
            if len(shape) >= back
        ]
        full = [axis for axis, size in present if size == target[-back]]
        node.pin(*(axis for axis, size in present if size != target[-back]))
        axis = full[0] if full else None
        for other in full[1:]:
            if axis is None and other is None:
                continue
            axis = node.tie(axis, other)
        result.append(axis)
    return tuple(result)


def _elementwise(node: Node) -> None:
    positions = [i for i in range(len(node.proto.input)) if node.name(i)]
    computed = [i for i in positions if node.constant(i) is None]
    axes = _broadcast(
        node, [node.axes(i) for i in computed], [node.shape(i) for i in computed], node.out_shape()
    )
    for position in positions:
        if position not in computed:
            axes = _joined(node, position, axes, node.out_shape())
    node.give(axes)


def _joined(node: Node, position: int, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Add an operand that may be constant to a result of ``shape`` with these labels."""
    constant = node.constant(position)
    if constant is None:
        return _broadcast(node, [axes, node.axes(position)], [shape, node.shape(position)], shape)
    own = axes[len(axes) - constant.ndim :] if constant.ndim else ()
    node.use(
        position,
        tuple(a if size == len_ else None
              for a, size, len_ in zip(own, constant.shape, shape[len(shape) - constant.ndim :],
                                       strict=True)),
    )  # fmt: skip
    # A constant that is longer than the computed operand fixes the axis.
    return axes


def _per_channel(node: Node) -> None:
    """Normalizations with a constant for each channel of axis 1."""
    positions = range(1, len(node.proto.input))
    if any(node.constant(i) is None for i in positions) or node.attribute("training_mode", 0):
        return _opaque(node)
    axes = node.axes()
    for position in positions:
        node.use(position, (axes[1],))
    node.give(axes)
    return None


def _concat(node: Node) -> None:
    joined = node.attribute("axis") % len(node.out_shape())
    positions = range(len(node.proto.input))
    parts: list[Axis] = [node.axes(i)[joined] for i in positions]
    if all(node.constant(i) is not None for i in positions):
        return
    axes = [list(node.axes(i)) for i in positions]
    for k in range(len(node.out_shape())):
        if k == joined:
            continue
        computed = [axes[i][k] for i in positions]
        if any(axis is not None for axis in computed):
            tied = computed[0]
            for other in computed[1:]:
                tied = node.tie(tied, other)
    if all(part is None for part in parts):
        labels: Axis = None
    else:
        whole = [_or_fixed(node, part, node.shape(i)[joined]) for i, part in enumerate(parts)]
        labels = np.concatenate(whole)
    result = [axes[0][k] for k in range(len(node.out_shape()))]
    result[joined] = labels
    node.give(tuple(result))


def _or_fixed(node: Node, axis: Axis, size: int) -> np.ndarray:
    if axis is not None:
        return axis
    fixed = node.trace.channels.new(size)
    node.trace.channels.pin(fixed, f"{node.kind} puts fixed channels beside it")
    return fixed


def _split(node: Node) -> None:
    axis = node.attribute("axis", 0) % len(node.shape(0))
    axes, start = node.axes(), 0
    if axes[axis] is not None and node.name(1) and node.constant(1) is None:
        return _opaque(node)
    for position in range(len(node.proto.output)):
        size = node.out_shape(position)[axis]
        labels = axes[axis]
        part = None if labels is None else labels[start : start + size]
        node.give((*axes[:axis], part, *axes[axis + 1 :]), position)
        start += size
    return None


def _pool(node: Node) -> None:
    if len(node.proto.output) > 1:
        return _opaque(node)  # its indices count through all channels
    node.pin_except(0, 0, 1)
    node.give((*node.axes()[:2], *(None,) * (len(node.out_shape()) - 2)))
    return None


def _reduce(node: Node) -> None:
    rank = len(node.shape(0))
    listed = node.numbers("axes", 1)
    if listed is None and node.name(1):
        return _opaque(node)
    reduced = {axis % rank for axis in listed} if listed else set(range(rank))
    axes = node.axes()
    node.pin(*(axis for i, axis in enumerate(axes) if i in reduced))
    if node.attribute("keepdims", 1):
        node.give(tuple(None if i in reduced else axis for i, axis in enumerate(axes)))
    else:
        node.give(tuple(axis for i, axis in enumerate(axes) if i not in reduced))
    return None


def _along_axis(node: Node) -> None:
    """Softmax: what is normalized stays whole: an axis, in old operator sets all from it on."""
    old = node.trace.opset < 13
    axes = node.axes()
    axis = node.attribute("axis", 1 if old else -1) % len(axes)
    whole = range(axis, len(axes) if old else axis + 1)
    node.pin(*(axes[i] for i in whole))
    node.give(tuple(None if i in whole else labels for i, labels in enumerate(axes)))


def _layer_norm(node: Node) -> None:
    first = node.attribute("axis", -1) % len(node.shape(0))
    axes = node.axes()
    node.pin(*axes[first:])
    node.give((*axes[:first], *(None,) * (len(axes) - first)))


def _transpose(node: Node) -> None:
    rank = len(node.shape(0))
    order = node.attribute("perm") or list(range(rank))[::-1]
    node.give(tuple(node.axes()[i] for i in order))


def _reshape(node: Node) -> None:
    axes = axes_after(node, node.axes(), node.shape(0), node.out_shape())
    if node.kind == "Reshape" and any(axis is not None for axis in axes):
        # An entry that is computed cannot be told how many channels stay.
        target = _target(node, 1)
        for k, axis in enumerate(axes):
            if axis is not None and (target is None or target[k] is None):
                node.pin(axis, why="the shape it is brought to is computed")
    node.give(axes)


def _target(node: Node, position: int) -> list[int | None] | None:
    trace = node.trace
    return entries(node.name(position), trace.constants, trace.producers, trace.shapes)


def _pad(node: Node) -> None:
    pads = node.numbers("pads", 1)
    if pads is None or node.name(3):
        return _opaque(node)
    rank, axes = len(node.shape(0)), node.axes()
    node.pin(*(axis for i, axis in enumerate(axes) if pads[i] or pads[rank + i]))
    node.give(tuple(None if pads[i] or pads[rank + i] else a for i, a in enumerate(axes)))
    return None


def _slice(node: Node) -> None:
    axes = node.axes()
    cut = node.numbers("axes", 3)
    if cut is None:
        return _opaque(node)
    places = {axis % len(axes) for axis in cut}
    node.pin(*(axis for i, axis in enumerate(axes) if i in places))
    node.give(tuple(None if i in places else axis for i, axis in enumerate(axes)))
    return None


def _resize(node: Node) -> None:
    before, after, axes = node.shape(0), node.out_shape(), node.axes()
    if node.name(3):
        target = None if node.attribute("axes") else _target(node, 3)
        fixed = target is None or any(
            axis is not None and target[i] is None for i, axis in enumerate(axes)
        )
        if fixed:
            return _opaque(node)
    same = [a == b for a, b in zip(before, after, strict=True)]
    node.pin(*(axis for axis, ok in zip(axes, same, strict=True) if not ok))
    node.give(tuple(axis if ok else None for axis, ok in zip(axes, same, strict=True)))
    return None


def _shape(node: Node) -> None:
    """Lengths of channel axes must not enter arithmetic; lengths of others may."""
    axes = node.axes()
    if all(axis is None for axis in axes):
        return
    read = list(range(len(axes)))[slice(node.attribute("start", 0), node.attribute("end"))]
    readers = node.trace.readers.get(node.proto.output[0], [])
    picked = [_picked(reader, node.trace.constants, read) for reader in readers]
    shown = read if node.proto.output[0] in node.trace.outputs else []
    fixed = {axis for axes_read in (shown, *picked) for axis in axes_read}
    node.pin(*(axes[i] for i in sorted(fixed)), why="its number of channels is computed with")


def _picked(reader: Any, constants: Mapping[str, Array], lengths: list[int]) -> list[int]:
    """Which of the lengths that a Shape gives its reader takes."""
    given = [constants.get(name) for name in reader.input[1:]]
    known = [np.ravel(value) for value in given if value is not None]
    if reader.op_type == "Gather" and known:
        return [lengths[int(i)] for i in known[0]]
    if reader.op_type == "Slice" and len(known) == len(given) >= 2:
        one = np.array([1])
        start, end, _, step = (int(value[0]) for value in (*known, one, one)[:4])
        return lengths[start:end:step]
    return lengths


_UNARY = (
    "Relu LeakyRelu Elu Selu Celu ThresholdedRelu Sigmoid HardSigmoid HardSwish Tanh Softplus "
    "Softsign Gelu Mish Swish Erf Exp Log Sqrt Abs Neg Sign Floor Ceil Round Reciprocal Sin Cos "
    "Atan Identity Cast Not IsNaN com.microsoft::Gelu com.microsoft::QuickGelu"
).split()
_NARY = (
    "Add Sub Mul Div Pow Max Min Sum Mean PRelu Where And Or Xor Equal Greater GreaterOrEqual "
    "Less LessOrEqual Mod"
).split()
_POOLS = "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool".split()
_REDUCTIONS = "Mean Sum Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(("Dropout", "Clip"), _same),  # their further inputs are scalars
    **dict.fromkeys(_NARY, _elementwise),
    **dict.fromkeys(_POOLS, _pool),
    **{f"Reduce{kind}": _reduce for kind in _REDUCTIONS},
    **dict.fromkeys(("Softmax", "LogSoftmax"), _along_axis),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _per_channel),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "LayerNormalization": _layer_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Transpose": _transpose,
    "Pad": _pad,
    "Resize": _resize,
    "Shape": _shape,
}
