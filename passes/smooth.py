"""SmoothQuant on the graph: activation outliers move into weights before they are quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from optimize.errors import InputError, NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.nodes import attribute
from optimize.models.run import feed
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import load_proto, open_session, save_proto
from optimize.passes.graph import Products, insert_after, products, show, uses

Array = NDArray[np.float32]
_ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_ROWS = 512  # rows of a layer's input that its error is estimated on
_PER_SAMPLE = 16
_WORTH = 0.8  # a layer whose error does not fall below this share keeps its input as it is


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide the channels of a layer's input by s and multiply the rows of its weights by s.

    The layer computes the same, but its input has no channels that dwarf all others, which a
    single range for the whole tensor could not resolve. s = max|X|^alpha / max|W|^(1-alpha)
    (Xiao et al., "SmoothQuant", 2023). With ``alpha=auto`` every layer gets the alpha at which
    its own output, computed in 8 bits, is nearest to the true one on calibration data; layers
    that gain nothing are left alone.
    """

    name: ClassVar[str] = "smooth"
    summary: ClassVar[str] = "SmoothQuant: move activation outliers into weights, before int8"
    needs: ClassVar[str] = "real data to calibrate on"
    tolerance: ClassVar[float | None] = 1e-3  # products are rounded at another scale

    alpha: str = "auto"
    samples: int = 64

    def __post_init__(self) -> None:
        """Check ``alpha``, ``auto`` or a number between 0 and 1, and ``samples``."""
        try:
            valid = self.alpha == "auto" or 0 <= float(self.alpha) <= 1
        except ValueError:
            valid = False
        if not valid:
            raise InputError(f"smooth: alpha={self.alpha} is neither auto nor between 0 and 1")
        if self.samples < 1:
            raise InputError(f"smooth: samples={self.samples} is not at least 1")

    @property
    def needs_calibration(self) -> bool:
        """Outliers are found in real activations."""
        return True

    def apply(self, model: Model, context: Context) -> PassResult:
        """Smooth the inputs of all matrix products with constant weights."""
        if model.quantized:
            raise NotApplicable("the model is already quantized")
        if context.calibration is None:
            raise NotApplicable("smoothing needs calibration data")
        proto = load_proto(model)
        groups = products(proto)
        if not groups:
            raise NotApplicable("the model has no MatMul or Gemm with constant weights")
        samples = context.calibration.first(self.samples)
        rows = _rows(proto, [group.input for group in groups], samples, context.seed)
        before, after, count = 0.0, 0.0, 0
        for group in groups:
            choice = self._choose(rows[group.input], group)
            before += choice.plain
            if choice.scale is None:
                after += choice.plain
                continue
            after += choice.error
            count += 1
            _apply_scale(proto, group, choice.scale)
        if not count:
            return PassResult(model, False, ("no layer gains by it",))
        gain = before / after if after else float("inf")
        note = (
            f"{count} of {len(groups)} layer inputs smoothed; squared error of 8-bit layers, "
            f"relative to their outputs, down {gain:.1f}x in sum"
        )
        return PassResult(save_proto(proto, context), True, (note,))

    def _choose(self, rows: Array, group: Products) -> _Choice:
        weights = group.stacked()
        plain = layer_error(rows, weights)
        alphas = _ALPHAS if self.alpha == "auto" else (float(self.alpha),)
        best = _Choice(plain, plain, None)
        for alpha in alphas:
            scale = smoothing_scale(rows, weights, alpha)
            error = layer_error(rows, weights, scale)
            if error < best.error or self.alpha != "auto":
                best = _Choice(plain, error, scale)
        if self.alpha == "auto" and best.error > _WORTH * plain:
            return _Choice(plain, plain, None)
        return best


@dataclass(frozen=True)
class _Choice:
    plain: float
    error: float
    scale: Array | None


def smoothing_scale(rows: Array, weights: Array, alpha: float) -> Array:
    """S = max|X|^alpha / max|W|^(1-alpha) for each input channel, with geometric mean 1.

    Args:
        rows: inputs X of the layer, shape (rows, channels).
        weights: W, shape (channels, outputs).
        alpha: how much of the difficulty goes to the weights, in [0, 1].
    """
    of_input = np.maximum(np.abs(rows).max(axis=0), 1e-6)
    of_weights = np.maximum(np.abs(weights).max(axis=1), 1e-6)
    scale = of_input**alpha / of_weights ** (1 - alpha)
    normal: Array = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    return normal


def layer_error(rows: Array, weights: Array, scale: Array | None = None) -> float:
    """Squared error of a layer in 8 bits, relative to the power of its output.

    Activations are quantized by one unsigned range, weights symmetrically by output channel.
    """
    true = rows @ weights
    if scale is not None:
        rows, weights = rows / scale, weights * scale[:, None]
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    step = (high - low) / 255 or 1.0
    zero = np.rint(-low / step)
    quantized = (np.clip(np.rint(rows / step) + zero, 0, 255) - zero) * step
    steps = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 127
    error = quantized @ (np.rint(weights / steps) * steps) - true
    return float(np.mean(error**2) / max(float(np.mean(true**2)), 1e-30))


def _rows(proto: Any, names: Sequence[str], samples: Dataset, seed: int) -> Mapping[str, Array]:
    """Rows of the named tensors over all samples, at most ``_ROWS`` of each."""
    import onnx

    observed = onnx.ModelProto()
    observed.CopyFrom(proto)
    show(observed.graph, names)
    session = open_session(observed.SerializeToString())
    rng = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {name: [] for name in names}
    for index in range(len(samples)):
        values = session.run(list(names), feed(samples.sample(index)))
        for name, value in zip(names, values, strict=True):
            rows = value.reshape(-1, value.shape[-1])
            count = min(len(rows), max(_PER_SAMPLE, _ROWS // len(samples)))
            found[name].append(rows[rng.choice(len(rows), count, replace=False)])
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _apply_scale(proto: Any, group: Products, scale: Array) -> None:
    """Put 1/s into what makes the input, if it has no other reader, else into a product."""
    group.multiply_rows(scale)
    if _fold_into_norm(proto, group, scale):
        return
    from onnx import helper, numpy_helper

    smoothed, constant = f"{group.input}_smoothed", f"{group.input}_smoothing"
    proto.graph.initializer.append(numpy_helper.from_array(1 / scale, constant))
    node = helper.make_node("Mul", [group.input, constant], [smoothed], name=smoothed)
    group.read_from(smoothed)
    insert_after(proto.graph, group.input, node)


def _fold_into_norm(proto: Any, group: Products, scale: Array) -> bool:
    from onnx import numpy_helper

    reads = uses(proto)
    maker = next((n for n in proto.graph.node if group.input in n.output), None)
    if maker is None or maker.op_type != "LayerNormalization":
        return False
    if reads[group.input] != len(group.nodes) or attribute(maker, "axis", -1) != -1:
        return False
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    parts = [name for name in maker.input[1:] if name]
    if not all(name in weights and reads[name] == 1 for name in parts):
        return False
    for name in parts:
        value = numpy_helper.to_array(weights[name]) / scale
        weights[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    return True
