"""Multiply-accumulates of single operators, from the shapes and attributes of one execution.

Each rule gives three numbers: what the formula of the operator holds (``nominal``, as counters of
FLOPs count: two FLOPs each); what no direct implementation can leave out (``least``): products
with padding zeros, masked-out halves of causal attention and the first, zero state of a recurrent
layer need not be computed; and what is left where convolutions are computed by Winograd's minimal
filtering (``winograd``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Execution:
    """One execution of a node.

    Attributes:
        inputs: shapes by position; None where an optional input is left out.
        outputs: shapes of the outputs that exist.
        attributes: those that are given.
    """

    inputs: Sequence[Shape | None]
    outputs: Sequence[Shape]
    attributes: Mapping[str, Any]

    def shape(self, position: int) -> Shape:
        """The shape of an input that must be there.

        Raises:
            ValueError: it is not.
        """
        shape = self.input(position)
        if shape is None:
            raise ValueError(f"input {position} is missing")
        return shape

    def input(self, position: int) -> Shape | None:
        """The shape of an input; None if it is left out."""
        return self.inputs[position] if position < len(self.inputs) else None


class Macs(NamedTuple):
    """Multiply-accumulates: by the formula, those of a direct kernel, and of Winograd's."""

    nominal: int
    least: int
    winograd: int

    @classmethod
    def direct(cls, nominal: int, least: int | None = None) -> Macs:
        """An operator that no runtime computes in another way than by its formula."""
        least = nominal if least is None else least
        return cls(nominal, least, least)


Rule = Callable[[Execution], Macs]


def taps(positions: int, kernel: int, size: int, stride: int, dilation: int, pad: int) -> int:
    """How many pairs (o, k) have ``0 <= o * stride + k * dilation - pad < size``.

    Args:
        positions: ``o`` runs below this.
        kernel: ``k`` runs below this.
        size: of the axis that is read.
        stride: of the convolution along that axis.
        dilation: of the kernel.
        pad: at the axis's beginning.
    """
    total = 0
    for offset in (k * dilation - pad for k in range(kernel)):
        first = max(0, -(offset // stride))  # the smallest o with o * stride + offset >= 0
        last = min(positions - 1, (size - 1 - offset) // stride)
        total += max(0, last - first + 1)
    return total


FLOAT_TILE, INTEGER_TILE = 8, 4


def winograd_gain(kernel: int, stride: int, tile: int) -> float:
    """How many times fewer products minimal filtering takes along one axis.

    F(m, r) gives ``m`` outputs of ``r`` taps from a tile of ``m + r - 1`` products instead of
    ``m * r`` (Lavin and Gray, arXiv:1509.09308). Longer kernels are cut into pieces of ``r`` taps.
    Tiles of 8 are the largest in use (F(6x6, 3x3) of NNPACK and ncnn, 5.06 in two axes); in 8 bits
    only tiles of 4 leave room for the transformed values.
    """
    if stride > 1:
        return 1.0
    return max((tile + 1 - r) * r / tile for r in range(1, min(kernel, tile) + 1))


def _convolution(weights: int, tile: int) -> Rule:
    """Conv and its like, whose weights (M, C/group, ...) are the input at ``weights``."""

    def rule(done: Execution) -> Macs:
        if done.attributes.get("channels_last"):
            raise ValueError("channels last")
        x, w, out = done.shape(0), done.shape(weights), done.outputs[0]
        axes = len(x) - 2
        strides, dilations = _axes(done, "strides", axes), _axes(done, "dilations", axes)
        least, gain = out[0] * w[0] * w[1], 1.0
        for axis in range(axes):
            size, kernel, positions = x[2 + axis], w[2 + axis], out[2 + axis]
            reach = (kernel - 1) * dilations[axis] + 1
            needed = max(0, (positions - 1) * strides[axis] + reach - size)
            pad = _pad(done, axis, needed)
            least *= taps(positions, kernel, size, strides[axis], dilations[axis], pad)
            gain *= winograd_gain(kernel, strides[axis], tile)
        return Macs(math.prod(out) * math.prod(w[1:]), least, int(least / gain))

    return rule


def _pad(done: Execution, axis: int, needed: int) -> int:
    """Padding at the beginning of an axis; ``needed`` is what SAME padding adds in all."""
    auto = done.attributes.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        pads = done.attributes.get("pads")
        return int(pads[axis]) if pads else 0
    if auto == "VALID":
        return 0
    return needed // 2 if auto == "SAME_UPPER" else needed - needed // 2


def _transposed(done: Execution) -> Macs:
    """ConvTranspose, of weights (C, M/group, ...): inputs meet all taps, some beyond the edge."""
    x, w, out = done.shape(0), done.shape(1), done.outputs[0]
    axes = len(x) - 2
    strides, dilations = _axes(done, "strides", axes), _axes(done, "dilations", axes)
    nominal = least = x[0] * w[0] * w[1]
    by_shape = "output_shape" in done.attributes or done.attributes.get("auto_pad", "NOTSET") in (
        "SAME_UPPER",
        "SAME_LOWER",
    )
    for axis in range(axes):
        size, kernel, place = x[2 + axis], w[2 + axis], (strides[axis], dilations[axis])
        nominal *= size * kernel
        total = place[0] * (size - 1) + (kernel - 1) * place[1] + 1 - out[2 + axis]
        # Versions of the operator differ in which side gets the odd one.
        pads = (total // 2, total - total // 2) if by_shape else (_pad(done, axis, 0),)
        least *= min(taps(size, kernel, out[2 + axis], *place, pad) for pad in pads)
    return Macs.direct(nominal, least)


def _axes(done: Execution, name: str, count: int) -> Sequence[int]:
    return done.attributes.get(name) or (1,) * count


def _product(done: Execution) -> Macs:
    """MatMul and its like, of which the first input's last axis is contracted."""
    if done.attributes.get("transBatchA") or done.attributes.get("transBatchB"):
        raise ValueError("batch axes are transposed")
    a = done.shape(0)
    depth = a[-2] if done.attributes.get("transA") and len(a) > 1 else a[-1]
    macs = math.prod(done.outputs[0]) * depth
    return Macs.direct(macs)


def _recurrent(done: Execution) -> Macs:
    """LSTM, GRU, RNN: every step multiplies by W, every step but the first surely by R."""
    x, w, r = done.shape(0), done.shape(1), done.shape(2)
    steps, batch = (x[1], x[0]) if done.attributes.get("layout") else (x[0], x[1])
    by_input, by_state = batch * math.prod(w), batch * math.prod(r)
    least = steps * by_input + max(0, steps - 1) * by_state
    # Sequences may be shorter than their padding.
    return Macs.direct(steps * (by_input + by_state), 0 if done.input(4) is not None else least)


def _fused_attention(past: int) -> Rule:
    """com.microsoft Attention and QAttention: X (B, S, I) by W (I, Q + K + V), then the scores."""

    def rule(done: Execution) -> Macs:
        x, w, before = done.shape(0), done.shape(1), done.input(past)
        sizes = done.attributes.get("qkv_hidden_sizes") or (w[1] // 3,) * 3
        length = x[1] + (before[3] if before is not None else 0)
        projected = math.prod(x) * w[1]
        scores = x[0] * x[1] * length * (sizes[0] + sizes[2])
        causal = bool(done.attributes.get("unidirectional"))
        return Macs.direct(projected + scores, projected + _seen(scores, causal))

    return rule


def _multi_head(done: Execution) -> Macs:
    """com.microsoft MultiHeadAttention with Q, K, V of their own, (B, S, hidden) each."""
    q, k, v = done.shape(0), done.shape(1), done.shape(2)
    before = done.input(6)
    if not len(q) == len(k) == len(v) == 3:
        raise ValueError("packed or transposed keys")
    length = k[1] + (before[2] if before is not None else 0)
    scores = q[0] * q[1] * length * (q[2] + v[2])
    return Macs.direct(scores, _seen(scores, bool(done.attributes.get("unidirectional"))))


def _attention(done: Execution) -> Macs:
    """Attention of the default operator set: (B, heads, S, d), or (B, S, heads * d)."""
    q, k, v, before = done.shape(0), done.shape(1), done.shape(2), done.input(4)
    if len(q) == 4:
        batch, heads, queries, depth = q
        length, wide = k[2], v[3]
    else:
        batch, queries, heads = q[0], q[1], done.attributes["q_num_heads"]
        depth, length = q[2] // heads, k[1]
        wide = v[2] // done.attributes["kv_num_heads"]
    length += before[2] if before is not None else 0
    scores = batch * heads * queries * length * (depth + wide)
    return Macs.direct(scores, _seen(scores, bool(done.attributes.get("is_causal"))))


def _seen(scores: int, causal: bool) -> int:
    return scores // 2 if causal else scores


def _einsum(done: Execution) -> Macs:
    """A contraction of two operands; axes of one operand alone may be summed beforehand."""
    left, _, right = done.attributes["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != 2 or "." in left or not right:
        raise ValueError("no contraction of two operands in letters")
    sizes = {
        letter: size
        for position, term in enumerate(terms)
        for letter, size in zip(term, done.shape(position), strict=True)
    }
    kept = (set(terms[0]) & set(terms[1])) | set(right)
    macs = math.prod(sizes[letter] for letter in kept)
    return Macs.direct(macs)


RULES: Mapping[str, Rule] = {
    "Conv": _convolution(1, FLOAT_TILE),
    "ConvInteger": _convolution(1, INTEGER_TILE),
    "QLinearConv": _convolution(3, INTEGER_TILE),
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
    "Einsum": _einsum,
    "com.microsoft.FusedConv": _convolution(1, FLOAT_TILE),
    "com.microsoft.QLinearConv": _convolution(3, INTEGER_TILE),
    "com.microsoft.FusedMatMul": _product,
    "com.microsoft.FusedGemm": _product,
    "com.microsoft.QGemm": _product,
    "com.microsoft.MatMulIntegerToFloat": _product,
    "com.microsoft.DynamicQuantizeMatMul": _product,
    "com.microsoft.MatMulNBits": _product,
    "com.microsoft.DynamicQuantizeLSTM": _recurrent,
    "com.microsoft.Attention": _fused_attention(4),
    "com.microsoft.QAttention": _fused_attention(8),
    "com.microsoft.MultiHeadAttention": _multi_head,
}

INTEGER = frozenset(
    (
        "ConvInteger QLinearConv MatMulInteger QLinearMatMul com.microsoft.QLinearConv "
        "com.microsoft.QGemm com.microsoft.MatMulIntegerToFloat com.microsoft.QAttention "
        "com.microsoft.DynamicQuantizeMatMul com.microsoft.DynamicQuantizeLSTM"
    ).split()
)
# MatMulNBits multiplies floats by default, and bytes at accuracy level 4: the faster is assumed.
EITHER = frozenset({"com.microsoft.MatMulNBits"})
