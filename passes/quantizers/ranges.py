"""Activation ranges from calibration data: onnxruntime's methods, and one that minimizes error.

onnxruntime's histogram calibrators keep every activation of every sample; the least-squares
method here streams over the samples twice and keeps one histogram a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimize.models.data import Dataset
from optimize.models.run import feed
from optimize.passes.files import open_session
from optimize.passes.graph import show

Method = Literal["minmax", "entropy", "percentile", "mse"]
HISTOGRAM_SAMPLES = 32  # what onnxruntime's histogram methods can hold in memory
BINS = 2048
LEVELS = 255
# Attention masks put -3.4e38 into a tensor; no range that includes that resolves anything else.
_BEYOND = 1e30
_PER_SAMPLE = 1 << 18  # elements of a tensor that go into its histogram from one sample
_SHARES = np.linspace(0.2, 1.0, 33)


def activation_ranges(
    model: Path, ops: Sequence[str], samples: Dataset, method: Method, large: bool
) -> Any:
    """Range of every tensor that nodes of the types ``ops`` read or write.

    Args:
        model: a prepared ONNX file.
        ops: operator types.
        samples: calibration inputs.
        method: how a range follows from values.
        large: whether the model keeps its weights beside the graph.

    Returns:
        onnxruntime's ``TensorsData``.
    """
    if method == "mse":
        return _least_squares(model, ops, samples, large)
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    observed = model.with_name("augmented.onnx")
    calibrator = create_calibrator(
        model,
        list(ops),
        augmented_model_path=str(observed),
        calibrate_method=methods[method],
        use_external_data_format=large,
    )
    # Its own session's threads spin, which hinders what is built meanwhile.
    calibrator.infer_session = None  # or its weights would be held twice
    calibrator.infer_session = open_session(observed, "DISABLE_ALL")
    calibrator.collect_data(_reader(samples))
    return calibrator.compute_data()


def suitable(samples: Dataset, method: Method) -> Dataset:
    """The samples that a method can take: histograms want one shape, and not too many."""
    if method in ("minmax", "mse"):
        return samples
    return samples.take(_most_common_shape(samples)[:HISTOGRAM_SAMPLES])


def _least_squares(model: Path, ops: Sequence[str], samples: Dataset, large: bool) -> Any:
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    session, names = _with_outputs(model, ops, large)
    lows, highs = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for values in _activations(session, names, samples):
        for index, value in enumerate(values):
            if value.size:
                lows[index] = min(lows[index], value.min())
                highs[index] = max(highs[index], value.max())
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)  # zero stays exact
    counts, drawn = np.zeros((len(names), BINS)), Drawn()
    for values in _activations(session, names, samples):
        for index, value in enumerate(values):
            if highs[index] > lows[index]:
                counts[index] += histogram(drawn(value), lows[index], highs[index])
    data = {}
    for index, name in enumerate(names):
        low, high = least_squares_range(counts[index], float(lows[index]), float(highs[index]))
        data[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    return TensorsData(CalibrationMethod.MinMax, data)


class Drawn:
    """Draws so many values of a large tensor at random, others each time.

    Every n-th value would be those of a few channels, where n divides their number; the same places
    each time would never, or always, see the few that hold a transformer's outliers.
    """

    def __init__(self, most: int = _PER_SAMPLE) -> None:
        self._most = most
        self._rng = np.random.default_rng(0)

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """All of the values, shape (values,), or ``most`` of them."""
        if values.size <= self._most:
            return values
        return values[self._rng.integers(0, values.size, self._most)]


def histogram(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.int64]:
    """Counts of equal bins over [low, high], shape (BINS,); numpy's own takes five times as long.

    Args:
        values: shape (values,), within the range.
        low: where the first bin begins.
        high: where the last one ends; above ``low``.
    """
    places = ((values - np.float32(low)) * np.float32(BINS / (high - low))).astype(np.int32)
    return np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)


def least_squares_range(
    counts: NDArray[np.float64], low: float, high: float, levels: int = LEVELS
) -> tuple[float, float]:
    """The part of [low, high] whose uniform quantization loses least, by squared error.

    Both ends are shrunk towards zero independently; values beyond an end are clipped to it, whose
    error counts, too.

    Args:
        counts: histogram of equal bins over [low, high], shape (bins,); low <= 0 <= high.
        low: its lower end.
        high: its upper end.
        levels: steps between the two ends of the quantized range.
    """
    if not high > low or not counts.any():
        return low, high
    edges = np.linspace(low, high, counts.size + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    best = (np.inf, low, high)
    for bottom in _SHARES * low if low < 0 else (0.0,):
        for top in _SHARES * high if high > 0 else (0.0,):
            step = (top - bottom) / levels
            if step <= 0:
                continue
            rounded = bottom + step * np.rint((np.clip(centres, bottom, top) - bottom) / step)
            error = float(counts @ (centres - rounded) ** 2)
            if error < best[0]:
                best = (error, float(bottom), float(top))
    return best[1], best[2]


def _with_outputs(model: Path, ops: Sequence[str], large: bool) -> tuple[Any, list[str]]:
    """Open a session that gives the float tensors around nodes of these types as outputs."""
    import onnx

    proto = onnx.load(str(model))
    weights = {tensor.name for tensor in proto.graph.initializer}
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*proto.graph.value_info,
             *proto.graph.input, *proto.graph.output]}  # fmt: skip
    names = list(
        dict.fromkeys(
            name
            for node in proto.graph.node
            if node.op_type in ops
            for name in [*node.input, *node.output]
            if name and name not in weights and kinds.get(name, 1) == onnx.TensorProto.FLOAT
        )
    )
    show(proto.graph, names)
    path = model.with_name("observed.onnx")
    onnx.save(proto, str(path), save_as_external_data=large, location="observed.data")
    # Fusions would remove the very tensors that are asked for.
    return open_session(path, "BASIC"), names


def _activations(
    session: Any, names: list[str], samples: Dataset
) -> Iterator[list[NDArray[np.float32]]]:
    """The named tensors of each sample, flat, without what is beyond all use."""
    for index in range(len(samples)):
        values = session.run(names, feed(samples.sample(index)))
        yield [_within(value.ravel()) for value in values]


def _within(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if values.size == 0 or max(-values.min(), values.max()) < _BEYOND:
        return values
    return values[np.abs(values) < _BEYOND]


def _most_common_shape(samples: Dataset) -> list[int]:
    """Find the samples that share the shapes which most samples have."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index in range(len(samples)):
        shapes = tuple(array.shape for array in samples.sample(index).values())
        groups.setdefault(shapes, []).append(index)
    return max(groups.values(), key=len)


def _reader(samples: Dataset) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self._left = iter(range(len(samples)))

        def get_next(self) -> dict[str, Any] | None:
            index = next(self._left, None)
            return None if index is None else feed(samples.sample(index))

    return Reader()
