"""Run a model in this process, to compare outputs. Latency is never measured here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.errors import InputError, first_cause
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.worker import SPINNING, session_options

Array = NDArray[Any]


@dataclass(frozen=True)
class Difference:
    """How far two models' outputs are apart.

    Attributes:
        absolute: largest absolute difference of any element.
        relative: largest of any output, each relative to that output's largest magnitude.
        output: the output with the largest relative difference.
    """

    absolute: float = 0.0
    relative: float = 0.0
    output: str = ""

    def __str__(self) -> str:
        if self.absolute == 0:
            return "equal"
        return f"{self.absolute:.2g} ({self.relative:.2g} of {self.output}'s largest value)"


def open_session(model: Model) -> Any:
    """Create an onnxruntime session on the CPU with the model's own options.

    Raises:
        InputError: onnxruntime cannot load the model.
    """
    import onnxruntime

    try:
        # Idle threads that spin would hinder what other processes do meanwhile.
        options = session_options({SPINNING: "0", **dict(model.config)}, 0)
        return onnxruntime.InferenceSession(
            str(model.path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise InputError(f"onnxruntime cannot load {model.path}: {first_cause(error)}") from error


def run(model: Model, samples: Dataset) -> list[dict[str, Any]]:
    """Outputs of every sample, by name.

    Raises:
        InputError: onnxruntime cannot load or run the model.
    """
    return list(run_each(model, samples))


def run_each(model: Model, samples: Dataset) -> Iterator[dict[str, Any]]:
    """Give the same one sample after the other, so that no more than one's are in memory.

    Raises:
        InputError: onnxruntime cannot load or run the model.
    """
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]
    for index in range(len(samples)):
        try:
            values = session.run(names, feed(samples.sample(index)))
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot run {model.path} on sample {index}: {first_cause(error)}"
            ) from error
        yield dict(zip(names, values, strict=True))


def feed(sample: Mapping[str, Array]) -> dict[str, Array]:
    """A sample as onnxruntime takes it: strings as objects, everything contiguous."""
    return {
        name: array.astype(object) if array.dtype.kind in "UT" else np.ascontiguousarray(array)
        for name, array in sample.items()
    }


# Attention masks leave such constants in outputs, beside which every difference looks small.
MASK = 1e4


def difference(got: Sequence[Mapping[str, Any]], want: Sequence[Mapping[str, Any]]) -> Difference:
    """The largest difference between two models' outputs on the same samples.

    Shapes or types of value that differ, and a NaN on one side only, count as infinite.
    """
    worst = Difference()
    for mine, theirs in zip(got, want, strict=True):
        for name in theirs:
            absolute, relative = _distance(mine.get(name), theirs[name])
            if relative > worst.relative or (not worst.output and absolute > 0):
                worst = Difference(max(absolute, worst.absolute), relative, name)
            elif absolute > worst.absolute:
                worst = Difference(absolute, worst.relative, worst.output)
    return worst


def _distance(mine: Any, theirs: Any) -> tuple[float, float]:
    a, b = np.asarray(mine), np.asarray(theirs)
    if a.shape != b.shape or a.dtype.kind in "OUS" or b.dtype.kind in "OUS":
        same = a.shape == b.shape and bool(np.all(a == b))
        return (0.0, 0.0) if same else (np.inf, np.inf)
    x, y = a.astype(np.float64), b.astype(np.float64)
    equal = (x == y) | (np.isnan(x) & np.isnan(y))
    if equal.all():
        return 0.0, 0.0
    gaps = np.abs(x[~equal] - y[~equal])
    if not np.isfinite(gaps).all():
        return np.inf, np.inf
    constant = equal & (np.abs(y) >= MASK)
    scale = float(np.abs(y[np.isfinite(y) & ~constant]).max(initial=0.0))
    absolute = float(gaps.max())
    return absolute, absolute / scale if scale else np.inf
