"""Files, folders and functions of samples: what is taken, and what is refused with its reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.errors import InputError
from optimize.models.data import Dataset, read_data, representative

X = np.arange(12, dtype=np.float32).reshape(6, 2)


def test_every_array_is_an_input_and_labels_are_not(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", a=X, b=X.astype(np.int64), labels=np.arange(6) * 2)
    data = read_data(str(tmp_path / "d.npz"))
    assert set(data.inputs) == {"a", "b"}
    assert len(data) == 6
    np.testing.assert_array_equal(data.sample(4)["b"], [8, 9])
    assert data.labels is not None
    assert data.labels.tolist() == [0, 2, 4, 6, 8, 10]


def test_a_folder_is_read_in_the_order_of_names_with_differing_shapes(tmp_path: Path) -> None:
    for name, length in (("b", 3), ("a", 5), ("c", 1)):
        np.savez(tmp_path / f"{name}.npz", ids=np.arange(length)[None], labels=np.arange(length))
    (tmp_path / "readme.txt").write_text("is left alone")
    data = read_data(str(tmp_path))
    assert [a.shape for a in data.inputs["ids"]] == [(1, 5), (1, 3), (1, 1)]
    assert data.labels is not None
    assert [len(label) for label in data.labels] == [5, 3, 1]


def test_labels_of_one_shape_are_one_array(tmp_path: Path) -> None:
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", x=X, labels=number)
    labels = read_data(str(tmp_path)).labels
    assert labels is not None
    assert labels.dtype.kind == "i"
    assert labels.tolist() == [0, 1, 2]


FUNCTIONS = """
import numpy as np
ROW = np.ones(2, np.float32)

def by_name():
    for number in range(3):
        yield {"a": ROW * number, "b": [number]}, number

def in_a_row():
    return [((ROW, ROW + 1), None)] * 2

def alone():
    return iter([(ROW, 1.5), (ROW, 2.5)])

def loader():
    class Loader:
        def __iter__(self):
            return iter([(ROW, 0)] * 4)
    return Loader()

def endless_names():
    yield {"a": ROW}, 0
    yield {"b": ROW}, 0

def breaks():
    yield ROW, 0
    raise OSError("the disk is gone")

def needs_more(path):
    pass

def no_labels_later():
    yield ROW, 0
    yield ROW, None

def without_labels_in_pairs():
    yield ROW

def nothing():
    return []
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "sample_functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.mark.parametrize(
    ("name", "count", "inputs", "labels"),
    [
        ("by_name", 3, {"a", "b"}, [0, 1, 2]),
        ("in_a_row", 2, {"input0", "input1"}, None),
        ("alone", 2, {"input0"}, [1.5, 2.5]),
        ("loader", 4, {"input0"}, [0, 0, 0, 0]),
    ],
)
def test_a_function_gives_samples_in_any_common_form(
    name: str, count: int, inputs: set[str], labels: Any, functions: Path
) -> None:
    data = read_data(f"{functions}:{name}")
    assert len(data) == count
    assert set(data.inputs) == inputs
    assert (None if data.labels is None else data.labels.tolist()) == labels


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("endless_names", "sample 1 holds b, sample 0 holds a"),
        ("breaks", "OSError: the disk is gone"),
        ("needs_more", "TypeError"),
        ("no_labels_later", "1 of 2 samples have no labels"),
        ("nothing", "gave no samples"),
        ("missing", "defines no function 'missing'"),
    ],
)
def test_a_function_that_gives_none_is_told(name: str, reason: str, functions: Path) -> None:
    with pytest.raises(InputError, match=f"^--data .*sample_functions.py:{name}") as caught:
        read_data(f"{functions}:{name}")
    assert reason in str(caught.value)


def refused(content: dict[str, Any], folder: Path) -> str:
    np.savez(folder / "d.npz", **content)
    with pytest.raises(InputError) as caught:
        read_data(str(folder / "d.npz"), "--calibration")
    return str(caught.value)


def test_labels_of_another_length_are_counted(tmp_path: Path) -> None:
    assert "5 labels for 6 samples" in refused({"x": X, "labels": np.zeros(5)}, tmp_path)
    assert "1 labels for 6 samples" in refused({"x": X, "labels": np.array(3)}, tmp_path)


def test_arrays_of_different_lengths_are_listed(tmp_path: Path) -> None:
    message = refused({"x": X, "y": X[:4]}, tmp_path)
    assert "--calibration" in message
    assert "different numbers of samples: x 6, y 4" in message


def test_labels_alone_are_no_data(tmp_path: Path) -> None:
    assert "no array but labels" in refused({"labels": np.zeros(4)}, tmp_path)


def test_no_samples_are_no_data(tmp_path: Path) -> None:
    assert "d.npz" in refused({"x": X[:0]}, tmp_path)


class Touch:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_pickled_arrays_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    evil = np.array([Touch(tmp_path / "ran")] * 2, object)
    assert "holds pickled objects" in refused({"x": evil}, tmp_path)
    assert "holds pickled objects" in refused({"x": X[:2], "labels": evil}, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_single_array_asks_for_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match=r"is a single array; write an \.npz"):
        read_data(str(tmp_path / "x.npy"))


def test_a_text_is_no_npz_and_no_pickle_either(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_text("image,label\n1,2\n")
    with pytest.raises(InputError, match=r"is no readable \.npz"):
        read_data(str(tmp_path / "d.npz"))


@pytest.mark.parametrize("length", [0, 1, 100, 300])
def test_an_npz_that_is_cut_short_is_refused(length: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=X, labels=np.zeros(6))
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[:length])
    with pytest.raises(InputError, match=r"d\.npz"):
        read_data(str(tmp_path / "d.npz"))


def test_an_npz_with_damaged_bytes_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(4096))
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"is no readable \.npz"):
        read_data(str(tmp_path / "d.npz"))


def test_an_empty_folder_holds_no_samples(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \.npz file"):
        read_data(str(tmp_path))


def test_a_folder_whose_files_disagree_names_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", ids=X)
    np.savez(tmp_path / "1.npz", tokens=X)
    with pytest.raises(InputError, match=r"1\.npz holds tokens, 0\.npz holds ids"):
        read_data(str(tmp_path))


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--data .*none\.npz does not exist"):
        read_data(str(tmp_path / "none.npz"))


def test_the_digest_follows_the_content_only() -> None:
    def digest(**changes: Any) -> str:
        given = {"x": X, "labels": np.arange(6)} | changes
        labels = given.pop("labels")
        return Dataset("here", {k: list(v) for k, v in given.items()}, labels).digest

    first = digest()
    assert digest() == first
    others = [
        digest(x=X + 1), digest(x=X.astype(np.float64)), digest(x=X[::-1]),
        digest(labels=None), digest(labels=np.arange(6)[::-1]), digest(y=X),
    ]  # fmt: skip
    assert len({first, *others}) == 7
    assert Dataset("elsewhere", {"x": list(X)}, np.arange(6)).digest == first


@pytest.mark.parametrize("dtype", [object, np.dtypes.StringDType()])
def test_texts_make_the_digest_whatever_holds_them(dtype: Any) -> None:
    def digest(letter: str) -> str:
        texts = [np.array([letter * 40], dtype=dtype) for _ in range(2)]
        return Dataset("here", {"text": texts}).digest

    assert digest("a") == digest("a") != digest("b")


def test_labels_of_several_lengths_make_the_digest() -> None:
    def digest(last: int) -> str:
        labels = np.empty(2, object)
        labels[:] = [np.arange(3), np.array([*range(5000), last])]
        return Dataset("here", {"x": [np.zeros(1)] * 2}, labels).digest

    assert digest(1) == digest(1) != digest(2)


def test_the_order_of_bytes_in_a_file_does_not_matter(tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", x=X.astype(">f4"), labels=np.arange(len(X), dtype=">i8"))
    data = read_data(str(tmp_path / "big.npz"))
    assert data.inputs["x"][0].dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(np.array(data.inputs["x"]), X.astype(np.float32))
    assert data.labels is not None
    assert data.labels.dtype == np.dtype(np.int64)


def test_a_damaged_compressed_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).random((200, 50)))
    content = bytearray(path.read_bytes())
    content[2000:2400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is no readable \.npz"):
        read_data(str(path))


def test_a_few_samples_show_every_axis_that_varies() -> None:
    lengths = [4] * 9 + [5, 7, 2] + [4] * 9
    data = Dataset("d", {"ids": [np.zeros((1, n)) for n in lengths]})
    few = representative(data)
    assert len(few) == 6
    assert {a.shape[1] for a in few.inputs["ids"]} == {4, 7, 2}


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.npz")
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        read_data(str(tmp_path / "data.npz"))
