"""How samples meet a model's inputs: the rule of ranks, batches, shares and made-up inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimize.errors import InputError
from optimize.models.data import Dataset, batched, fit, split, static_batch, synthetic
from optimize.models.model import TensorSpec

IMAGE = TensorSpec("image", "float32", ("n", 1, 8, 8))
IDS = TensorSpec("ids", "int64", ("n", "length"))
MASK = TensorSpec("mask", "int64", ("n", "length"))


def data(**inputs: Any) -> Dataset:
    return Dataset("val.npz", inputs)


def test_one_axis_less_gains_the_batch_axis() -> None:
    images = list(np.random.default_rng(0).random((3, 1, 8, 8), np.float32))
    fitted = fit(data(image=images), [IMAGE])
    assert fitted.batch_first
    np.testing.assert_array_equal(fitted.sample(1)["image"], images[1][None])


def test_as_many_axes_are_a_complete_sample() -> None:
    ids = [np.zeros((1, 4), int), np.zeros((1, 9), int)]
    fitted = fit(data(ids=ids, mask=ids), [IDS, MASK])
    assert fitted.batch_first
    assert [a.shape for a in fitted.inputs["ids"]] == [(1, 4), (1, 9)]


def test_complete_samples_of_several_rows_are_one_call_each() -> None:
    ids = [np.zeros((3, 4), int), np.zeros((3, 5), int)]
    fitted = fit(data(ids=ids), [IDS])
    assert not fitted.batch_first
    assert [a.shape for a in fitted.inputs["ids"]] == [(3, 4), (3, 5)]


def test_inputs_come_in_the_order_of_the_model() -> None:
    ids = [np.zeros(4, int)]
    fitted = fit(data(mask=ids, ids=ids), [IDS, MASK])
    assert list(fitted.inputs) == ["ids", "mask"]


def test_the_only_input_takes_an_array_of_any_name() -> None:
    assert list(fit(data(anything=[np.zeros(4, int)]), [IDS]).inputs) == ["ids"]


@pytest.mark.parametrize("names", [{"ids"}, {"ids", "mask", "extra"}, {"ids", "masks"}])
def test_other_names_are_shown_beside_the_models(names: set[str]) -> None:
    given = {name: [np.zeros(4, int)] for name in names}
    with pytest.raises(InputError, match="the model takes ids, mask") as caught:
        fit(data(**given), [IDS, MASK], "--calibration")
    assert f"--calibration val.npz holds {', '.join(sorted(names))}" in str(caught.value)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((1, 8, 8)), "image is float64, the model takes float32"),
        (np.zeros((1, 8, 8), np.uint8), "image is uint8, the model takes float32"),
        (np.zeros((1, 8, 7), np.float32), r"shape \(1, 8, 7\)"),
        (np.zeros((3, 8, 8), np.float32), r"the model takes image: float32\[nx1x8x8\]"),
        (np.zeros((8, 8), np.float32), r"shape \(8, 8\)"),
        (np.zeros((1, 1, 1, 8, 8), np.float32), r"shape \(1, 1, 1, 8, 8\)"),
    ],
)
def test_another_type_or_shape_is_shown_beside_the_models(array: Any, reason: str) -> None:
    good = np.zeros((1, 8, 8), np.float32)
    with pytest.raises(InputError, match=reason):
        fit(data(image=[array, array]), [IMAGE])
    with pytest.raises(InputError, match=reason):  # wherever among good ones it comes
        fit(data(image=[good, array]), [IMAGE])


def test_texts_fit_an_input_of_strings() -> None:
    spec = TensorSpec("text", "str", ("n",))
    fitted = fit(data(text=list(np.array(["a", "bc"]))), [spec])
    assert [a.tolist() for a in fitted.inputs["text"]] == [["a"], ["bc"]]


@pytest.mark.parametrize("count", [2, 5, 9, 10, 1279, 1280, 4000])
def test_a_fifth_is_set_aside_256_at_most(count: int) -> None:
    calibration, evaluation = split(data(x=list(np.arange(count))), 0)
    assert len(calibration) == min(256, max(1, count // 5))
    shares = [{int(x) for x in share.inputs["x"]} for share in (calibration, evaluation)]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == set(range(count))


def test_shares_keep_labels_with_their_samples_and_follow_the_seed() -> None:
    given = Dataset("d", {"x": list(np.arange(100))}, np.arange(100) * 7)
    first, again, other = (split(given, seed)[0] for seed in (3, 3, 4))
    assert first.digest == again.digest != other.digest
    for share in split(given, 3):
        assert share.labels is not None
        assert [int(x) * 7 for x in share.inputs["x"]] == share.labels.tolist()


def test_one_sample_cannot_be_shared() -> None:
    with pytest.raises(InputError, match="holds 1 sample; two are needed"):
        split(data(x=[np.zeros(2)]), 0)


def test_a_remainder_is_left_out_of_batches() -> None:
    rows = np.arange(14, dtype=np.float32).reshape(7, 2)
    fitted = fit(
        Dataset("d", {"x": list(rows)}, np.arange(7)), [TensorSpec("x", "float32", (3, 2))]
    )
    joined = batched(fitted, 3)
    assert len(joined) == 2
    np.testing.assert_array_equal(joined.sample(1)["x"], rows[3:6])
    assert joined.labels is not None
    assert joined.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_calls_that_have_no_batch_axis_cannot_be_joined() -> None:
    with pytest.raises(InputError, match="first axis is the batch"):
        batched(fit(data(ids=[np.zeros((3, 4), int)] * 4), [IDS]), 2)


@pytest.mark.parametrize(
    ("shapes", "size"),
    [([("n", 3), ("n", 5)], None), ([(4, 3), (4,)], 4), ([(4, 3), (2, 3)], None), ([()], None),
     ([None], None), ([(1, 3)], 1)],
)  # fmt: skip
def test_a_fixed_batch_is_one_that_all_inputs_share(shapes: Any, size: int | None) -> None:
    specs = [TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes)]
    assert static_batch(specs) == size


def test_made_up_inputs_are_valid_indices_masks_and_counts() -> None:
    made = synthetic([IDS, MASK, IMAGE], 20, 0)
    for sample in map(made.sample, range(20)):
        assert sample["ids"].shape == sample["mask"].shape == (1, 16)
        assert set(np.unique(sample["ids"])) <= {0, 1}
        assert sample["image"].dtype == np.float32
    assert len({array.tobytes() for array in made.inputs["image"]}) == 20
    fit(made, [IDS, MASK, IMAGE])


@pytest.mark.parametrize(
    "spec",
    [TensorSpec("t", "str", ("n",)), TensorSpec("t", "float32", None),
     TensorSpec("t", "unknown", (2,)), TensorSpec("t", "complex64", (2,))],
)  # fmt: skip
def test_what_cannot_be_made_up_asks_for_data(spec: TensorSpec) -> None:
    with pytest.raises(InputError, match=r"no inputs can be made up for t: .*give --data"):
        synthetic([spec], 2, 0)
