"""Samples: what is read, what is refused, and how they are fitted and shared out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.errors import InputError
from optimize.models.data import Dataset, batched, fit, read_data, split, synthetic
from optimize.models.model import TensorSpec

IMAGE = TensorSpec("image", "float32", ("n", 3, 4))


def test_an_npz_holds_one_sample_along_its_first_axis(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", anything=values, labels=np.arange(5))
    data = fit(read_data(str(tmp_path / "d.npz")), [IMAGE])
    assert len(data) == 5
    np.testing.assert_array_equal(data.sample(3)["image"], values[3:4])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.batch_first


def test_a_folder_holds_complete_samples_of_any_length(tmp_path: Path) -> None:
    for i, length in enumerate((4, 9)):
        np.savez(tmp_path / f"{i}.npz", ids=np.full((1, length), i), labels=i)
    data = fit(read_data(str(tmp_path)), [TensorSpec("ids", "int64", ("n", "length"))])
    assert [a.shape for a in data.inputs["ids"]] == [(1, 4), (1, 9)]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]


def test_an_array_with_one_axis_more_holds_complete_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((7, 1, 5), np.float32), state=np.ones((7, 2, 1, 3)),
             rate=np.full(7, 16))  # fmt: skip
    specs = [
        TensorSpec("x", "float32", ("n", 5)),
        TensorSpec("state", "float64", (2, None, 3)),
        TensorSpec("rate", "int64", ()),
    ]
    data = fit(read_data(str(tmp_path / "d.npz")), specs)
    assert {k: v.shape for k, v in data.sample(0).items()} == {
        "x": (1, 5), "state": (2, 1, 3), "rate": (),
    }  # fmt: skip
    assert not data.batch_first


def test_a_function_yields_inputs_and_labels(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for i in range(3):\n"
        "        yield {'image': np.full((3, 4), i, np.float32)}, i\n"
    )
    data = fit(read_data(f"{tmp_path / 'd.py'}:samples"), [IMAGE])
    assert data.sample(2)["image"].max() == 2


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ("raise OSError('gone')", "gone"),
        ("yield 1", "must yield"),
        ("return []", "no samples"),
        ("yield {'a': 1}, 0\n    yield {'b': 1}, 0", "holds b"),
        ("yield {'a': 1}, 0\n    yield {'a': 1}, None", "have no labels"),
    ],
)
def test_a_function_that_misbehaves_is_told(body: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text(f"def samples():\n    {body}\n")
    with pytest.raises(InputError, match=hint):
        read_data(f"{tmp_path / 'd.py'}:samples")


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros((2, 3, 4), np.float64), "float64, the model takes float32"),
        (np.zeros((2, 3, 5), np.float32), "has shape"),
        (np.zeros((2, 4), np.float32), "has shape"),
    ],
)
def test_what_does_not_fit_is_refused(array: np.ndarray, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        fit(Dataset("d", {"image": list(array)}), [IMAGE])


@given(st.integers(2, 3000), st.integers(0, 5))
def test_shares_are_fixed_disjoint_and_complete(count: int, seed: int) -> None:
    data = Dataset("d", {"x": list(np.arange(count))}, np.arange(count))
    calibration, evaluation = split(data, seed)
    again, _ = split(data, seed)
    assert calibration.labels is not None
    assert evaluation.labels is not None
    assert again.labels is not None
    assert again.labels.tolist() == calibration.labels.tolist()
    assert sorted([*calibration.labels, *evaluation.labels]) == list(range(count))
    assert len(calibration) == max(1, min(256, int(0.2 * count)))
    assert [int(x) for x in evaluation.inputs["x"]] == evaluation.labels.tolist()


def test_batches_join_along_the_first_axis() -> None:
    values = np.arange(7 * 12, dtype=np.float32).reshape(7, 3, 4)
    data = batched(fit(Dataset("d", {"image": list(values)}), [IMAGE]), 2)
    assert len(data) == 3
    np.testing.assert_array_equal(data.sample(1)["image"], values[2:4])


def test_batches_need_one_shape_and_enough_samples() -> None:
    ragged = Dataset("d", {"x": [np.zeros((1, 2)), np.zeros((1, 3))]}, batch_first=True)
    with pytest.raises(InputError, match="one shape"):
        batched(ragged, 2)
    with pytest.raises(InputError, match="at least 4"):
        batched(ragged, 4)


def test_made_up_inputs_follow_the_specification() -> None:
    specs = [IMAGE, TensorSpec("ids", "int64", ("n", "length")), TensorSpec("on", "bool", (2,))]
    data = synthetic(specs, 5, 0)
    assert {k: (v.shape, v.dtype.name) for k, v in data.sample(0).items()} == {
        "image": ((1, 3, 4), "float32"), "ids": ((1, 16), "int64"), "on": ((2,), "bool"),
    }  # fmt: skip
    assert synthetic(specs, 5, 0).digest == data.digest != synthetic(specs, 5, 1).digest


def test_a_sequence_input_cannot_be_made_up() -> None:
    with pytest.raises(InputError, match="--data"):
        synthetic([TensorSpec("s", "sequence", None)], 2, 0)
