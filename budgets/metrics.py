"""Metrics: what turns outputs and labels into scores.

A metric first makes one row of statistics a sample, then reduces rows to a number. Confidence
intervals reduce subsets of the same rows, so that every metric has one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimize.budgets.scores import (
    FEWEST_RESAMPLES,
    RESAMPLE_S,
    Array,
    Outputs,
    Scores,
    mean,
)
from optimize.errors import InputError

# Raised when the same outputs get other scores: what was kept of earlier ones is void.
VERSION = 2
PROBED_SAMPLES = 32
IGNORED = -100  # torch's and transformers' label for padding
# From here on, a value that is the same in both outputs is a mask's, not an outcome.
MASK = 1e4


@dataclass(frozen=True)
class Metric:
    """A measure of accuracy.

    Attributes:
        name: as it is written in a floor.
        score: (outputs, labels, the source's outputs) -> scores.
        higher_is_better: False for errors such as mae.
        needs_labels: False if the source's outputs are the standard.
        output: the output that alone is judged; None for all, or for the one that fits the labels.
    """

    name: str
    score: Callable[[Outputs, Array | None, Outputs], Scores]
    higher_is_better: bool = True
    needs_labels: bool = True
    output: str | None = None

    @property
    def key(self) -> str:
        """What results are kept under."""
        return f"{self.name}:{self.output}" if self.output else self.name

    def of(self, output: str) -> Metric:
        """The same of one output alone."""

        def score(outputs: Outputs, labels: Array | None, reference: Outputs) -> Scores:
            return self.score(_only(output, outputs), labels, _only(output, reference))

        return replace(self, score=score, output=output)

    def gain(self, value: float, than: float) -> float:
        """How much better ``value`` is than ``than``, in the metric's unit."""
        return value - than if self.higher_is_better else than - value


def custom(name: str, function: Callable[[Any, Any], float]) -> Metric:
    """A metric from a user's ``function(outputs, labels) -> float``; higher is better.

    The function is given the outputs stacked over the samples (a list where shapes differ), in a
    dictionary by name if the model has several. One that turns out to be a mean over samples, as
    accuracies are, is asked for each sample once, which gives exact intervals for little time.
    """

    def score(outputs: Outputs, labels: Array | None, reference: Outputs) -> Scores:
        def reduce(rows: Array) -> float:
            stacked = {key: _stack([arrays[i] for i in rows]) for key, arrays in outputs.items()}
            given = next(iter(stacked.values())) if len(stacked) == 1 else stacked
            return float(function(given, None if labels is None else labels[rows]))

        count = len(next(iter(outputs.values())))
        whole = Scores(np.arange(count), reduce)
        if outputs is reference:  # the source's, which all others are held against
            _refuse_chance(name, whole)
        return _per_sample(whole) or whole

    return Metric(name, score, needs_labels=False)


def _refuse_chance(name: str, whole: Scores) -> None:
    """Raise InputError if the metric says something else of the same outputs the second time."""
    first, second = whole.value, whole.reduce(whole.rows)
    if math.isfinite(first) and not math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9):
        raise InputError(
            f"metric {name} gives {first:.6g} and then {second:.6g} for the same outputs, so that "
            "a change of it shows nothing; give its random numbers a fixed seed"
        )


def _per_sample(whole: Scores) -> Scores | None:
    """The scores of single samples, if their mean is the metric; a few are tried first."""
    for count in (min(PROBED_SAMPLES, len(whole.rows)), len(whole.rows)):
        rows = whole.rows[:count]
        start = time.monotonic()
        try:
            singles = np.array([whole.reduce(rows[i : i + 1]) for i in range(count)], np.float64)
            if not abs(float(singles.mean()) - whole.reduce(rows)) <= 1e-9:
                return None
        except InputError:
            return None  # a function that needs more than one sample is no mean
        spent = time.monotonic() - start
        if spent / count * len(whole.rows) > RESAMPLE_S * FEWEST_RESAMPLES:
            return None
    return Scores(singles, mean)


def _top(k: int) -> Callable[[Outputs, Array | None, Outputs], Scores]:
    def score(outputs: Outputs, labels: Array | None, reference: Outputs) -> Scores:
        rows = []
        for classes, label in _classes(outputs, labels, f"top{k}"):
            if k > 1 and classes.shape[-1] <= k:
                raise InputError(
                    f"metric top{k} is 1 for every model of {classes.shape[-1]} classes; take top1"
                )
            best = np.argsort(-classes.astype(np.float64), axis=-1, kind="stable")[..., :k]
            hits = np.asarray(np.any(best == label[..., None], axis=-1))
            rows.append(np.mean(hits[label != IGNORED]))
        return Scores(np.array(rows, np.float64), mean)

    return score


def _f1(outputs: Outputs, labels: Array | None, reference: Outputs) -> Scores:
    rows = []
    for classes, label in _classes(outputs, labels, "f1"):
        guess = classes.argmax(-1)
        rows.append(np.stack([guess.reshape(-1), label.reshape(-1)], axis=-1))
    if len({row.shape for row in rows}) > 1:
        raise InputError("metric f1 needs the same number of labels in every sample")
    return Scores(np.stack(rows), _macro_f1)


def _error(power: int) -> Callable[[Outputs, Array | None, Outputs], Scores]:
    def score(outputs: Outputs, labels: Array | None, reference: Outputs) -> Scores:
        rows = []
        for value, label in _labelled(
            outputs, labels, _error_fits, "mae" if power == 1 else "rmse"
        ):
            if not _alike(value.shape, label.shape):
                raise InputError(
                    f"an output of shape {value.shape} cannot be compared "
                    f"with a label of shape {label.shape}"
                )
            if label.dtype.kind not in "biuf":
                raise InputError(f"the metric needs labels that are numbers, not {label!r:.40}")
            difference = value.astype(np.float64).reshape(-1) - label.reshape(-1)
            rows.append(np.mean(np.abs(difference) ** power))
        return Scores(np.array(rows, np.float64), _mean_error if power == 1 else _root_mean)

    return score


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether values of two shapes pair up: axes of one do not matter, and one may be flat."""
    a, b = ([length for length in shape if length > 1] for shape in (one, other))
    return a == b or (min(len(a), len(b)) <= 1 and math.prod(a) == math.prod(b))


def _cosine(outputs: Outputs, labels: Array | None, reference: Outputs) -> Scores:
    # The worst output counts: an embedding must not hide behind a pooled output that survived.
    per_output = [_similarities(outputs[name], reference[name]) for name in reference]
    degrees = all(_is_real(a) for arrays in reference.values() for a in arrays)
    rows = np.min(np.array(per_output, np.float64), axis=0)
    return Scores(rows, mean, degrees)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("top1", _top(1)),
        Metric("top5", _top(5)),
        Metric("f1", _f1),
        Metric("mae", _error(1), higher_is_better=False),
        Metric("rmse", _error(2), higher_is_better=False),
        Metric("cosine", _cosine, needs_labels=False),
    )
}


def _similarities(mine: Sequence[Array], theirs: Sequence[Array]) -> list[float]:
    if all(
        np.size(a) == np.size(b) == 1 and _is_real(a) for a, b in zip(mine, theirs, strict=True)
    ):
        return _closeness(np.ravel(mine), np.ravel(theirs))
    return [_similarity(a, b) for a, b in zip(mine, theirs, strict=True)]


def _is_real(a: Array) -> bool:
    return np.asarray(a).dtype.kind in "fc"


def _closeness(mine: Array, theirs: Array) -> list[float]:
    """What cosine is for vectors: two numbers of one sign would always have one of 1."""
    x, y = mine.astype(np.float64), theirs.astype(np.float64)
    scale = math.sqrt(float(np.mean(y**2))) or 1.0
    return list(np.where(x == y, 1.0, 1 - np.abs(x - y) / scale))


def _similarity(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        return 0.0
    if not _is_real(a):  # numbers of classes, truth values, texts
        return float(np.mean(a == b)) if a.size else 1.0
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    if np.array_equal(x, y):
        return 1.0
    masked = (np.abs(x) >= MASK) & (x == y)  # attention masks put such constants into both alike
    x, y = np.where(masked, 0.0, x), np.where(masked, 0.0, y)
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale != 0 else 0.0  # NaN stays NaN, and is refused later


def _only(output: str, outputs: Outputs) -> Outputs:
    """One output; another model's may have another name if it is the only one."""
    if len(outputs) < 2:
        return outputs
    if output not in outputs:
        raise InputError(f"there is no output {output} among {', '.join(outputs)}")
    return {output: outputs[output]}


def _labelled(
    outputs: Outputs, labels: Array | None, fits: Callable[[Array, Array], bool], metric: str
) -> list[tuple[Array, Array]]:
    """Pair the output that the labels are of with them: the only one, or the only one that may be.

    Raises:
        InputError: there are no labels, or several outputs that they may be of.
    """
    if labels is None:
        raise InputError("the metric needs labels, and the data has none")
    first = np.asarray(labels[0])
    fitting = [name for name, arrays in outputs.items() if fits(np.asarray(arrays[0]), first)]
    if len(fitting) > 1:
        raise InputError(
            f"the labels may be of the outputs {' and '.join(fitting)}; name the one that is "
            f"meant after the metric, as in --metric {metric}:{fitting[0]}"
        )
    judged = outputs[fitting[0]] if fitting else next(iter(outputs.values()))
    return list(zip(map(np.asarray, judged), map(np.asarray, labels), strict=True))


def _error_fits(value: Array, label: Array) -> bool:
    return _alike(value.shape, label.shape)


def _classes(outputs: Outputs, labels: Array | None, metric: str) -> list[tuple[Array, Array]]:
    """Pair scores, with the classes last, with labels that are whole numbers among them.

    Or ``IGNORED``, for what does not count, though not for all of a sample.

    Raises:
        InputError: a label is no class, which would make every model equally wrong.
    """
    pairs = []
    for logits, label in _labelled(outputs, labels, _classes_fit, metric):
        if label.dtype.kind not in "biuf" or not np.array_equal(label, np.rint(label)):
            raise InputError(f"the metric needs labels that are class numbers, not {label!r:.40}")
        scores = _classes_last(logits, label)
        counted = label[label != IGNORED]
        if not counted.size:
            raise InputError(
                f"a sample has no label but {IGNORED}, which marks what does not count"
            )
        strange = counted[(counted < 0) | (counted >= scores.shape[-1])]
        if strange.size:
            raise InputError(
                f"label {strange.flat[0]} is none of the {scores.shape[-1]} classes scored"
            )
        pairs.append((scores, label))
    return pairs


def _classes_fit(logits: Array, label: Array) -> bool:
    """Whether labels may be of an output: of its classes, or of its single probabilities."""
    return _axis_of_classes(logits, label) is not None or _alike(logits.shape, label.shape)


def _axis_of_classes(logits: Array, label: Array) -> int | None:
    """The axis that the label's shape lacks; None if there is none of two or more classes."""
    for axis in range(logits.ndim - 1, -1, -1):
        if logits.shape[:axis] + logits.shape[axis + 1 :] == label.shape and logits.shape[axis] > 1:
            return axis
    return None


def _classes_last(logits: Array, label: Array) -> Array:
    """Move the axis of classes last.

    Raises:
        InputError: there is none.
    """
    axis = _axis_of_classes(logits, label)
    if axis is not None:
        return np.moveaxis(logits, axis, -1)
    hint = ""
    if label.shape == logits.shape:
        hint = "; one-hot labels become numbers of classes by argmax(-1)"
    elif label.shape[-1:] == (1,):
        hint = "; the label's last axis is one too many"
    raise InputError(
        f"an output of shape {logits.shape} has no scores of two or more classes "
        f"for a label of shape {label.shape}{hint}"
    )


def _mean_error(rows: Array) -> float:
    return mean(rows)  # errors of 0 and 1 are no share of samples that are right


def _root_mean(rows: Array) -> float:
    return math.sqrt(float(rows.mean()))


def _macro_f1(rows: Array) -> float:
    pairs = rows.reshape(-1, 2)
    guess, label = pairs[pairs[:, 1] != IGNORED].T
    present, codes = np.unique(np.concatenate([guess, label]), return_inverse=True)
    guess, label = codes[: guess.size], codes[guess.size :]
    hits = np.bincount(label[guess == label], minlength=present.size)
    total = np.bincount(guess, minlength=present.size) + np.bincount(label, minlength=present.size)
    return float(np.mean(2 * hits / total))


def _stack(arrays: list[Array]) -> Any:
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays
