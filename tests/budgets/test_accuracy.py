"""Metrics, intervals and floors against scikit-learn, scipy and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest
from sklearn import metrics as sk

from optimize.budgets.accuracy import Accuracy, compare
from optimize.budgets.budget import Floor
from optimize.budgets.metrics import METRICS
from optimize.budgets.scores import Outputs, Scores, mean
from optimize.errors import InputError

Array = NDArray[Any]


def logits(count: int = 300, classes: int = 7, seed: int = 0) -> tuple[Array, Array]:
    """Scores that are right more often than not, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    scores = rng.standard_normal((count, classes))
    scores[np.arange(count), labels] += 1.5
    return scores.astype(np.float32), labels


def value(name: str, output: Sequence[Array] | Array, labels: Array | None) -> float:
    outputs: Outputs = {"output": list(output)}
    return METRICS[name].score(outputs, labels, outputs).value


def accuracy(
    name: str, variant: Array, source: Array, labels: Array | None, confidence: float = 0.99
) -> Accuracy:
    metric = METRICS[name]
    reference: Outputs = {"output": list(source)}
    scores = [
        metric.score({"output": list(output)}, labels, reference) for output in (variant, source)
    ]
    return compare(metric, scores[0], scores[1], confidence)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_top1_is_sklearns_accuracy(dtype: str) -> None:
    scores, labels = logits()
    scores = scores.astype(dtype)
    assert value("top1", scores, labels) == pytest.approx(
        sk.accuracy_score(labels, scores.argmax(-1))
    )


def test_the_output_that_fits_the_labels_is_judged() -> None:
    scores, labels = logits()
    outputs: Outputs = {"hidden": list(np.zeros((300, 5, 4))), "logits": list(scores)}
    found = METRICS["top1"].score(outputs, labels, outputs).value
    assert found == pytest.approx(sk.accuracy_score(labels, scores.argmax(-1)))
    error = METRICS["mae"].score({"a": list(np.zeros((300, 2))), "b": list(labels)}, labels, {})
    assert error.value == 0


def test_a_probability_beside_features_is_not_passed_over() -> None:
    labels = np.arange(40) % 2
    outputs: Outputs = {"prob": list(labels[:, None] * 0.9), "features": list(np.ones((40, 64)))}
    with pytest.raises(InputError, match="may be of the outputs prob and features"):
        METRICS["top1"].score(outputs, labels, outputs)
    error = METRICS["rmse"].score(outputs, labels * 0.9, outputs)
    assert error.value == 0
    two: Outputs = {"a": list(labels * 1.0), "b": list(labels * 2.0)}
    with pytest.raises(InputError, match="as in --metric mae:a"):
        METRICS["mae"].score(two, labels, two)


def test_which_of_several_outputs_is_judged_must_be_said() -> None:
    scores, labels = logits()
    outputs: Outputs = {"aux": list(scores[:, ::-1]), "logits": list(scores)}
    for name in ("top1", "f1"):
        with pytest.raises(InputError, match=f"the outputs aux and logits; .* {name}:aux"):
            METRICS[name].score(outputs, labels, outputs)
    metric = METRICS["top1"].of("logits")
    expected = pytest.approx(sk.accuracy_score(labels, scores.argmax(-1)))
    assert metric.score(outputs, labels, outputs).value == expected
    assert metric.score({"other": list(scores)}, labels, outputs).value == expected
    with pytest.raises(InputError, match="no output logits among one, two"):
        metric.score({"one": list(scores), "two": list(scores)}, labels, outputs)
    alone = METRICS["cosine"].of("logits")
    assert alone.score({"aux": list(scores), "logits": list(scores)}, None, outputs).value == 1


def test_top5_is_sklearns_top_k_accuracy() -> None:
    scores, labels = logits(classes=12)
    expected = sk.top_k_accuracy_score(labels, scores, k=5)
    assert value("top5", scores, labels) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [3, 5])
def test_top5_of_so_few_classes_that_all_models_are_right_is_refused(classes: int) -> None:
    scores, labels = logits(classes=classes)
    with pytest.raises(InputError, match=f"top5 is 1 for every model of {classes} classes"):
        value("top5", scores, labels)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64"])
@pytest.mark.parametrize("name", ["top1", "top5"])
def test_integer_scores_rank_like_others(name: str, dtype: str) -> None:
    """As a quantized model gives them: softmax in steps of 1/256, most of them zero."""
    rng = np.random.default_rng(2)
    info = np.iinfo(dtype)
    low, high = max(int(info.min), -(2**15)), min(int(info.max), 2**15)
    rows = np.stack([rng.permutation(np.linspace(low, high, 12).astype(dtype)) for _ in range(50)])
    labels = rows.argmax(-1)
    labels[::5] = rows[::5].argmin(-1)
    expected = sk.top_k_accuracy_score(
        labels, rows.astype(float), k=1 if name == "top1" else 5, labels=np.arange(12)
    )
    assert value(name, rows, labels) == pytest.approx(expected)


def test_f1_is_sklearns_macro_f1() -> None:
    scores, labels = logits()
    expected = sk.f1_score(labels, scores.argmax(-1), average="macro")
    assert value("f1", scores, labels) == pytest.approx(expected)


def test_f1_counts_classes_that_are_only_guessed_or_only_labelled() -> None:
    guesses = np.array([0, 0, 1, 2, 2])
    labels = np.array([0, 0, 1, 1, 5])
    expected = sk.f1_score(labels, guesses, average="macro", zero_division=0)
    assert value("f1", np.eye(6)[guesses], labels) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(40,), (40, 3), (40, 2, 5)])
def test_errors_are_sklearns(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    output, labels = rng.standard_normal(shape), rng.standard_normal(shape)
    flat = labels.reshape(-1), output.reshape(-1)
    assert value("mae", output, labels) == pytest.approx(sk.mean_absolute_error(*flat))
    assert value("rmse", output, labels) == pytest.approx(sk.root_mean_squared_error(*flat))


def test_errors_ignore_axes_of_length_one() -> None:
    rng = np.random.default_rng(5)
    output, labels = rng.standard_normal((40, 1)), rng.standard_normal(40)
    assert value("mae", output, labels) == pytest.approx(np.abs(output[:, 0] - labels).mean())


def test_errors_take_flat_labels_but_no_transposed_ones() -> None:
    output = np.random.default_rng(6).standard_normal((40, 3, 4))
    assert value("mae", output, output.reshape(40, 12)) == 0
    with pytest.raises(InputError, match="cannot be compared"):
        value("mae", output, np.moveaxis(output, 1, 2))


def test_errors_of_unsigned_integers_do_not_wrap() -> None:
    output, labels = np.array([[3], [250]], np.uint8), np.array([[5], [10]], np.uint8)
    assert value("mae", output, labels) == (2 + 240) / 2


def test_errors_refuse_labels_of_another_size() -> None:
    with pytest.raises(InputError, match="shape"):
        value("mae", np.zeros((4, 3)), np.zeros((4, 2)))


def test_classes_are_the_last_axis_of_token_scores() -> None:
    rng = np.random.default_rng(6)
    scores, labels = rng.standard_normal((30, 5, 4)), rng.integers(0, 4, (30, 5))
    expected = sk.accuracy_score(labels.reshape(-1), scores.argmax(-1).reshape(-1))
    assert value("top1", scores, labels) == pytest.approx(expected)
    f1 = sk.f1_score(labels.reshape(-1), scores.argmax(-1).reshape(-1), average="macro")
    assert value("f1", scores, labels) == pytest.approx(f1)


def test_classes_are_the_first_axis_of_segmentation_scores() -> None:
    rng = np.random.default_rng(7)
    scores, labels = rng.standard_normal((12, 3, 6, 8)), rng.integers(0, 3, (12, 6, 8))
    expected = sk.accuracy_score(labels.reshape(-1), scores.argmax(1).reshape(-1))
    assert value("top1", scores, labels) == pytest.approx(expected)


def test_token_scores_of_as_many_tokens_as_classes_keep_classes_last() -> None:
    rng = np.random.default_rng(8)
    scores, labels = rng.standard_normal((30, 4, 4)), rng.integers(0, 4, (30, 4))
    expected = sk.accuracy_score(labels.reshape(-1), scores.argmax(-1).reshape(-1))
    assert value("top1", scores, labels) == pytest.approx(expected)


def test_token_scores_may_differ_in_length() -> None:
    rng = np.random.default_rng(9)
    lengths = [2, 5, 3]
    scores = [rng.standard_normal((n, 4)) for n in lengths]
    labels = np.empty(3, object)
    labels[:] = [rng.integers(0, 4, n) for n in lengths]
    shares = [np.mean(s.argmax(-1) == y) for s, y in zip(scores, labels, strict=True)]
    assert value("top1", scores, labels) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("name", ["top1", "f1"])
def test_padding_does_not_count(name: str) -> None:
    rng = np.random.default_rng(12)
    scores, labels = rng.standard_normal((30, 6, 4)), rng.integers(0, 4, (30, 6))
    padded = np.where(np.arange(6) < 4, labels, -100)
    assert value(name, scores, padded) == pytest.approx(value(name, scores[:, :4], labels[:, :4]))
    padded[3] = -100
    with pytest.raises(InputError, match="no label but -100"):
        value(name, scores, padded)


@pytest.mark.parametrize("name", ["top1", "top5", "f1"])
def test_outputs_without_classes_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="classes"):
        value(name, np.zeros((4, 1)), np.zeros(4, int))
    with pytest.raises(InputError, match="classes"):
        value(name, np.zeros((4, 3, 5)), np.zeros((4, 2), int))


@pytest.mark.parametrize("name", ["top1", "top5", "f1", "mae", "rmse"])
def test_metrics_of_labels_say_that_there_are_none(name: str) -> None:
    assert METRICS[name].needs_labels
    with pytest.raises(InputError, match="labels"):
        value(name, np.zeros((4, 3)), None)


def test_cosine_is_numpys() -> None:
    rng = np.random.default_rng(10)
    source = rng.standard_normal((20, 3, 4)).astype(np.float32)
    variant = (source + 0.1 * rng.standard_normal(source.shape)).astype(np.float32)
    expected = [
        np.vdot(a.astype(float), b.astype(float))
        / np.sqrt(np.vdot(a.astype(float), a) * np.vdot(b.astype(float), b))
        for a, b in zip(variant, source, strict=True)
    ]
    assert accuracy("cosine", variant, source, None).value == pytest.approx(np.mean(expected))


def test_cosine_of_the_source_is_one() -> None:
    source = np.random.default_rng(11).standard_normal((20, 8))
    found = accuracy("cosine", source, source, None)
    assert (found.value, found.source_value, found.change) == (1.0, 1.0, 0.0)


def test_cosines_of_one_are_no_outcomes_and_equal_classes_are() -> None:
    numbers, _ = logits(30)
    for outputs, few in ((numbers, False), (numbers.argmax(1)[:, None], True)):
        scores = METRICS["cosine"].score({"y": list(outputs)}, None, {"y": list(outputs)})
        found = compare(METRICS["cosine"], scores, scores, 0.99)
        assert found.value == found.high == 1.0
        assert (found.low < 0.9) is few
    both = {"y": list(numbers), "class": list(numbers.argmax(1)[:, None])}
    scores = METRICS["cosine"].score(both, None, both)
    assert compare(METRICS["cosine"], scores, scores, 0.99).low < 0.9


def test_cosine_judges_the_worst_output() -> None:
    good = [np.ones(4)] * 3
    outputs = {"embedding": [np.array([1.0, -1, 1, -1])] * 3, "pooled": good}
    source = {"embedding": good, "pooled": good}
    assert METRICS["cosine"].score(outputs, None, source).value == pytest.approx(0.0)


def test_cosine_of_single_numbers_tells_them_apart() -> None:
    rng = np.random.default_rng(13)
    source, other = rng.random((2, 200, 1))
    assert accuracy("cosine", source, source, None).value == 1.0
    assert accuracy("cosine", source + 0.001, source, None).value == pytest.approx(1, abs=0.005)
    assert accuracy("cosine", other, source, None).value < 0.6


def test_cosine_counts_classes_that_differ() -> None:
    source = np.arange(200).reshape(20, 10) % 7 + 1
    variant = source.copy()
    variant[:, 0] += 1
    assert accuracy("cosine", variant, source, None).value == pytest.approx(0.9)


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min, -1e9, -1e4])
def test_a_mask_hides_no_difference(mask: float) -> None:
    rng = np.random.default_rng(14)
    source, other = rng.standard_normal((2, 50, 8))
    source[:, 5:] = other[:, 5:] = mask
    assert abs(accuracy("cosine", other, source, None).value) < 0.3


def test_cosine_of_nothing_and_something_is_zero() -> None:
    source = np.ones((2, 4))
    assert accuracy("cosine", np.zeros((2, 4)), source, None).value == 0.0
    assert accuracy("cosine", np.ones((2, 3)), source, None).value == 0.0
    assert accuracy("cosine", np.zeros((2, 4)), np.zeros((2, 4)), None).value == 1.0


@pytest.mark.parametrize(("name", "better"), [("top1", 0.9), ("cosine", 0.9), ("mae", 0.1)])
def test_better_is_up_for_scores_and_down_for_errors(name: str, better: float) -> None:
    assert METRICS[name].gain(better, 0.5) > 0
    assert METRICS[name].gain(0.5, better) < 0


# Intervals


def hits(wins: Sequence[bool] | Array) -> Array:
    """Two-class scores that are right where ``wins`` is true; all labels are 1."""
    right = np.asarray(wins, bool)
    return np.stack([~right, right], axis=-1).astype(np.float32)


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_of_a_share_is_clopper_and_pearsons(
    count: int, share: float, confidence: float
) -> None:
    right = round(share * count)
    scores = hits(np.arange(count) < right)
    found = accuracy("top1", scores, scores, np.ones(count, int), confidence)
    exact = binomtest(right, count).proportion_ci(confidence, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.samples == count


def test_a_change_is_bounded_by_what_was_won_and_what_was_lost() -> None:
    source = np.arange(200) < 150
    variant = source.copy()
    variant[:9] = False
    variant[190:194] = True
    found = accuracy("top1", hits(variant), hits(source), np.ones(200, int), 0.95)
    won = binomtest(4, 200).proportion_ci(0.975, method="exact")
    lost = binomtest(9, 200).proportion_ci(0.975, method="exact")
    assert found.change == pytest.approx(-5 / 200)
    assert found.change_low == pytest.approx(won.low - lost.high)
    assert found.change_high == pytest.approx(won.high - lost.low)


@pytest.mark.parametrize("count", [1, 20, 500])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_no_change_in_few_samples_is_no_certainty(count: int, share: float) -> None:
    scores = hits(np.arange(count) < share * count)
    found = accuracy("top1", scores, scores, np.ones(count, int))
    assert found.change == 0.0
    assert found.change_low < 0 < found.change_high


def test_more_samples_narrow_the_change() -> None:
    widths = []
    for count in (50, 500, 5000):
        scores = hits(np.arange(count) % 2 == 0)
        found = accuracy("top1", scores, scores, np.ones(count, int))
        widths.append(found.change_high - found.change_low)
    assert widths[0] > 5 * widths[1] > 25 * widths[2]


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.01), (0.0, 0.0), (0.005, 0.0), (0.3, 0.2)])
def test_the_change_is_covered_as_often_as_promised(lost: float, won: float) -> None:
    rng = np.random.default_rng(12)
    runs, count, covered = 1000, 150, 0
    for _ in range(runs):
        fate = rng.random(count)  # of each sample: lost, won, or the same for both
        same = rng.random(count) < 0.8
        source = np.where(fate < lost, True, np.where(fate < lost + won, False, same))
        variant = np.where(fate < lost, False, np.where(fate < lost + won, True, same))
        rows = [Scores(right.astype(np.float64), mean) for right in (variant, source)]
        found = compare(METRICS["top1"], *rows, 0.95)
        covered += found.change_low <= won - lost <= found.change_high
    # At a true coverage of 95%, fewer than this happen once in a thousand such tests.
    assert covered >= binom.ppf(0.001, runs, 0.95)


def test_the_bootstrap_of_an_error_covers_its_mean() -> None:
    rng = np.random.default_rng(13)
    runs, covered, changes = 60, 0, 0
    for _ in range(runs):
        labels = np.zeros((80, 1))
        source = rng.standard_normal((80, 1))
        variant = source + 0.3 * rng.standard_normal((80, 1))
        found = accuracy("mae", variant, source, labels, 0.95)
        covered += found.low <= np.sqrt(2 / np.pi) * np.sqrt(1.09) <= found.high
        truth = np.sqrt(2 / np.pi) * (np.sqrt(1.09) - 1)
        changes += found.change_low <= truth <= found.change_high
    assert covered >= 51  # percentile bootstraps of 80 samples reach some 93%
    assert changes >= 51


@pytest.mark.parametrize("name", ["f1", "mae", "rmse", "cosine"])
def test_every_interval_holds_its_value(name: str) -> None:
    scores, labels = logits()
    rng = np.random.default_rng(14)
    variant = scores + 0.5 * rng.standard_normal(scores.shape).astype(np.float32)
    wanted: Array | None = labels if name == "f1" else scores + 1
    found = accuracy(name, variant, scores, None if name == "cosine" else wanted)
    assert found.low <= found.value <= found.high
    assert found.low < found.high
    assert found.change_low <= found.change <= found.change_high
    assert found.change == pytest.approx(found.value - found.source_value)


def test_a_paired_change_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(15)
    labels = np.zeros((200, 1))
    source = rng.standard_normal((200, 1))
    variant = source * 1.001
    found = accuracy("mae", variant, source, labels)
    assert found.change_high - found.change_low < 0.02 * (found.high - found.low)


def test_intervals_are_the_same_each_time() -> None:
    scores, labels = logits()
    assert accuracy("f1", scores + 0.1, scores, labels) == accuracy(
        "f1", scores + 0.1, scores, labels
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mae", "rmse", "cosine"])
def test_a_metric_that_is_no_number_is_refused(name: str, bad: float) -> None:
    source = np.ones((5, 3))
    variant = source.copy()
    variant[2, 1] = bad
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=name):
        accuracy(name, variant, source, None if name == "cosine" else source)


@pytest.mark.parametrize("name", ["mae", "rmse"])
def test_a_larger_error_misses_a_floor_and_a_smaller_one_meets_it(name: str) -> None:
    labels = np.zeros((50, 1))
    source = np.ones((50, 1))
    for variant, met in ((1.5 * source, False), (0.5 * source, True)):
        found = accuracy(name, variant, source, labels)
        assert found.meets(Floor.parse("drop=0.1")) is met
        assert found.meets(Floor.parse("drop=10%"), strict=True) is met
        assert found.meets(Floor.parse(f"{name}=1.1")) is met


# Floors

FOUND = Accuracy("top1", 0.89, 0.86, 0.92, 500, 0.90, -0.01, -0.018, -0.002)
ERROR = Accuracy("mae", 2.2, 2.0, 2.4, 500, 2.0, 0.2, 0.15, 0.25, higher_is_better=False)


@pytest.mark.parametrize(
    ("floor", "limit", "met", "strictly"),
    [
        ("top1=0.85", 0.85, True, True),
        ("top1=0.89", 0.89, True, None),
        ("top1=0.90", 0.90, False, None),
        ("top1=0.95", 0.95, False, False),
        ("drop=0.02", 0.88, True, True),
        ("drop=0.01", 0.89, True, None),
        ("drop=0.005", 0.895, False, None),
        ("drop=0.001", 0.899, False, False),
        ("drop=0", 0.90, False, False),
        ("drop=3%", 0.873, True, True),
        ("drop=1.2%", 0.8892, True, None),
        ("drop=1%", 0.891, False, None),
        ("drop=0.1%", 0.8991, False, False),
    ],
)
def test_floors_of_a_score(floor: str, limit: float, met: bool, strictly: bool | None) -> None:
    parsed = Floor.parse(floor)
    assert FOUND.limit(parsed) == pytest.approx(limit)
    assert FOUND.meets(parsed) is met
    assert FOUND.meets(parsed, strict=True) is strictly


@pytest.mark.parametrize(
    ("floor", "limit", "met", "strictly"),
    [
        ("mae=2.5", 2.5, True, True),
        ("mae=2.2", 2.2, True, None),
        ("mae=2.1", 2.1, False, None),
        ("mae=1.9", 1.9, False, False),
        ("drop=0.3", 2.3, True, True),
        ("drop=0.2", 2.2, True, None),
        ("drop=0.18", 2.18, False, None),
        ("drop=0.1", 2.1, False, False),
        ("drop=20%", 2.4, True, True),
        ("drop=11%", 2.22, True, None),
        ("drop=9%", 2.18, False, None),
        ("drop=1%", 2.02, False, False),
    ],
)
def test_floors_of_an_error(floor: str, limit: float, met: bool, strictly: bool | None) -> None:
    parsed = Floor.parse(floor)
    assert ERROR.limit(parsed) == pytest.approx(limit)
    assert ERROR.meets(parsed) is met
    assert ERROR.meets(parsed, strict=True) is strictly


def test_a_handful_of_samples_shows_no_strict_floor() -> None:
    floor = Floor.parse("mae=10")
    for count, met in ((1, None), (19, None), (40, True)):
        errors, labels = np.linspace(1.0, 2.0, count)[:, None], np.zeros(count)
        found = accuracy("mae", errors, errors, labels)
        assert found.meets(floor) is True
        assert found.meets(floor, strict=True) is met


def test_a_better_variant_meets_every_drop() -> None:
    up = replace(FOUND, value=0.93, change=0.03, change_low=0.01, change_high=0.05)
    down = replace(ERROR, value=1.5, change=-0.5, change_low=-0.6, change_high=-0.4)
    for floor in ("drop=0", "drop=0%", "drop=0.01"):
        for found in (up, down):
            assert found.meets(Floor.parse(floor), strict=True) is True


def test_a_relative_drop_of_a_negative_score_allows_a_lower_one() -> None:
    negative = Accuracy("reward", -2.1, -2.2, -2.0, 100, -2.0, -0.1, -0.12, -0.08)
    assert negative.limit(Floor.parse("drop=10%")) == pytest.approx(-2.2)
    assert negative.meets(Floor.parse("drop=10%"), strict=True) is True
    assert negative.meets(Floor.parse("drop=1%"), strict=True) is False


@pytest.mark.parametrize("drop", ["drop=0.01", "drop=0.1", "drop=0.3"])
def test_a_drop_of_exactly_what_is_allowed_is_allowed(drop: str) -> None:
    allowed = Floor.parse(drop).value
    found = replace(FOUND, value=0.9 - allowed, change=(0.9 - allowed) - 0.9)
    assert found.meets(Floor.parse(drop)) is True
