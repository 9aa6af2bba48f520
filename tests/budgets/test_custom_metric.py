"""Metrics that users bring: what they are given, and their intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from optimize.budgets.accuracy import Accuracy, compare
from optimize.budgets.metrics import METRICS, Metric, custom
from optimize.errors import InputError

Array = NDArray[Any]


def top1(outputs: Array, labels: Array) -> float:
    return float(np.mean(outputs.argmax(-1) == labels))


def macro_f1(outputs: Array, labels: Array) -> float:
    return float(sk.f1_score(labels, outputs.argmax(-1), average="macro"))


def quick_macro_f1(outputs: Array, labels: Array) -> float:
    guesses = outputs.argmax(-1)
    counts = np.array([[(guesses == c).sum(), (labels == c).sum()] for c in range(4)])
    hits = np.array([((guesses == c) & (labels == c)).sum() for c in range(4)])
    present = counts.sum(-1) > 0
    return float(np.mean(2 * hits[present] / counts.sum(-1)[present]))


def median_error(outputs: Array, labels: Array) -> float:
    return -float(np.median(np.abs(outputs[:, 0] - labels)))


def ranking(outputs: Array, labels: Array) -> float:
    """Area under the curve, as scikit-learn computes it: NaN where only one class is present."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(sk.roc_auc_score(labels, outputs[:, 1]))


def refusing_ranking(outputs: Array, labels: Array) -> float:
    """The same, as older versions and careful users write it."""
    if len(set(labels.tolist())) < 2:
        raise InputError("only one class is present")
    return ranking(outputs, labels)


def test_a_metric_of_chance_is_refused() -> None:
    rng = np.random.default_rng(0)
    output = rng.standard_normal((50, 3))
    labels = np.zeros(50, int)

    def sampled(outputs: Array, labels: Array) -> float:
        return top1(*(part[rng.integers(0, len(labels), 5)] for part in (outputs, labels)))

    rows = {"output": list(output)}
    with pytest.raises(InputError, match="metric sampled gives .* for the same outputs"):
        custom("sampled", sampled).score(rows, labels, rows)

    def seeded(outputs: Array, labels: Array) -> float:
        index = np.random.default_rng(3).integers(0, len(labels), 25)
        return top1(outputs[index], labels[index])

    assert 0 <= custom("seeded", seeded).score(rows, labels, rows).value <= 1


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for an interval, and quick with scikit-learn's functions."""
    monkeypatch.setattr("optimize.budgets.scores.RESAMPLES", 200)


def scores(count: int = 200, classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    output = rng.standard_normal((count, classes))
    output[np.arange(count), labels] += 1.5
    return output, labels


def judged(
    metric: Metric, variant: Array, source: Array, labels: Array | None, confidence: float = 0.99
) -> Accuracy:
    reference = {"output": list(source)}
    both = [metric.score({"output": list(o)}, labels, reference) for o in (variant, source)]
    return compare(metric, both[0], both[1], confidence)


def test_a_metric_that_is_a_mean_has_the_exact_interval_of_the_built_in_one() -> None:
    output, labels = scores()
    variant = output + 0.4 * np.random.default_rng(1).standard_normal(output.shape)
    own = judged(custom("own", top1), variant, output, labels)
    built_in = judged(METRICS["top1"], variant, output, labels)
    for field in ("value", "low", "high", "source_value", "change", "change_low", "change_high"):
        assert getattr(own, field) == pytest.approx(getattr(built_in, field), abs=1e-12), field


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("function", [macro_f1, median_error])
def test_a_metric_that_is_no_mean_has_a_bootstrap_interval(
    function: Callable[[Array, Array], float],
) -> None:
    output, labels = scores()
    variant = output + 0.4 * np.random.default_rng(1).standard_normal(output.shape)
    found = judged(custom("own", function), variant, output, labels)
    assert found.value == pytest.approx(function(variant, labels))
    assert found.source_value == pytest.approx(function(output, labels))
    assert found.low < found.value < found.high
    assert found.change_low <= found.change <= found.change_high


def test_a_custom_macro_f1_is_the_built_in_one() -> None:
    output, labels = scores()
    variant = output + 0.4 * np.random.default_rng(1).standard_normal(output.shape)
    own = judged(custom("own", quick_macro_f1), variant, output, labels)
    built_in = judged(METRICS["f1"], variant, output, labels)
    assert own.value == pytest.approx(built_in.value)
    assert (own.low, own.high) == pytest.approx((built_in.low, built_in.high))
    assert (own.change_low, own.change_high) == pytest.approx(
        (built_in.change_low, built_in.change_high)
    )


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("function", [ranking, refusing_ranking])
def test_a_metric_that_some_resamples_lack_has_an_interval_of_the_others(
    function: Callable[[Array, Array], float],
) -> None:
    """With two positives in sixty samples, a resample in seven holds none."""
    rng = np.random.default_rng(3)
    labels = np.zeros(60, int)
    labels[[7, 40]] = 1
    output = rng.standard_normal((60, 2))
    output[labels == 1, 1] += 2
    variant = output + 0.3 * rng.standard_normal(output.shape)
    found = judged(custom("auc", function), variant, output, labels)
    assert found.value == pytest.approx(sk.roc_auc_score(labels, variant[:, 1]))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.change_low <= found.change <= found.change_high


def test_the_function_is_given_outputs_stacked_and_labels_beside_them() -> None:
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def function(outputs: Array, labels: Array) -> float:
        seen.append((outputs.shape, labels.shape))
        return float(np.median(outputs))

    output, labels = scores(count=50)
    judged(custom("own", function), output, output, labels)
    assert ((50, 4), (50,)) in seen
    assert all(a[1:] == (4,) and a[0] == b[0] for a, b in seen)


def test_the_function_is_given_no_labels_where_there_are_none() -> None:
    def function(outputs: Array, labels: Array | None) -> float:
        assert labels is None
        return float(outputs.mean())

    output, _ = scores(count=50)
    assert judged(custom("own", function), output, output, None).value == pytest.approx(
        output.mean()
    )


def test_several_outputs_come_by_name() -> None:
    def function(outputs: dict[str, Array], labels: Array) -> float:
        return float(np.mean((outputs["a"] + outputs["b"]).argmax(-1) == labels))

    output, labels = scores()
    metric = custom("own", function)
    rows = {"a": list(output), "b": list(np.zeros_like(output))}
    assert metric.score(rows, labels, rows).value == pytest.approx(top1(output, labels))


def test_outputs_of_differing_shapes_come_as_a_list() -> None:
    def function(outputs: list[Array], labels: Array | None) -> float:
        return float(np.median([len(output) for output in outputs]))

    rows = {"boxes": [np.zeros((n, 4)) for n in (1, 2, 3, 5, 9)]}
    assert custom("own", function).score(rows, None, rows).value == 3.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_is_refused_by_its_name(bad: float) -> None:
    output, labels = scores(count=10)
    with pytest.raises(InputError, match="quality"):
        judged(custom("quality", lambda outputs, labels: bad), output, output, labels)


def test_a_function_that_raises_for_single_samples_is_still_evaluated_on_all() -> None:
    def needs_two(outputs: Array, labels: Array) -> float:
        if len(outputs) < 2:
            raise InputError("a correlation needs two samples")
        return float(np.corrcoef(outputs[:, 0], labels)[0, 1])

    output, labels = scores()
    found = judged(custom("r", needs_two), output, output, labels)
    assert found.value == pytest.approx(np.corrcoef(output[:, 0], labels)[0, 1])
    assert found.low < found.value < found.high


def test_what_the_function_gives_may_be_a_numpy_number() -> None:
    def function(outputs: Array, labels: Array) -> Any:
        return np.float32(np.median(outputs))

    output, labels = scores(count=20)
    found = judged(custom("own", function), output, output, labels)
    assert type(found.value) is float
