"""Every sample is in one part; orders depend on seed and epoch alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.errors import InputError
from optimize.models.data import Dataset
from optimize.passes.training.batches import Batches

pytest.importorskip("torch")


def ragged(lengths: list[int]) -> Dataset:
    arrays = [np.full((1, n), i, np.int64) for i, n in enumerate(lengths)]
    return Dataset("ragged", {"ids": arrays}, np.arange(len(lengths)), True)


def indices(batches: Any) -> list[int]:
    return [index for batch in batches for index in batch.indices]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=2, max_size=60),
    size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_parts_are_disjoint_and_batches_hold_one_shape(
    lengths: list[int], size: int, seed: int
) -> None:
    batches = Batches(ragged(lengths), size, 0.2, seed)
    trained, held = indices(batches.training(0)), indices(batches.validation())
    assert not set(trained) & set(held)
    assert len(set(trained)) == len(trained)
    assert len(held) == max(1, int(0.2 * len(lengths)))
    for batch in batches.training(0):
        ids = batch.inputs["ids"]
        assert ids.shape == (len(batch), lengths[batch.indices[0]])
        assert ids[:, 0].tolist() == list(batch.indices) == batch.labels.tolist()
    assert len(list(batches.training(0))) == batches.steps


def test_orders() -> None:
    batches = Batches(ragged([3] * 50), 4, seed=7)
    first = [list(b.indices) for b in batches.training(0)]
    assert first == [list(b.indices) for b in Batches(ragged([3] * 50), 4, seed=7).training(0)]
    assert first != [list(b.indices) for b in batches.training(1)]
    assert first[5:] == [list(b.indices) for b in batches.training(0, start=5)]


def test_samples_without_a_batch_axis_come_alone() -> None:
    data = Dataset("whole", {"x": [np.zeros((5, 2)), np.ones((3, 2)), np.ones((3, 2))]})
    assert [b.inputs["x"].shape[1] for b in Batches(data, 8).training(0)] == [2, 2]
    assert all(len(batch) == 1 for batch in Batches(data, 8).training(0))


def test_one_sample_is_too_few() -> None:
    with pytest.raises(InputError, match="needs two at least"):
        Batches(ragged([3]))


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", ">i4", ">f4"])
def test_labels_of_any_number_type_are_trained_on(kind: str) -> None:
    data = ragged([1] * 20)
    labels = np.arange(20).astype(kind)
    for batch in Batches(replace(data, labels=labels), 8).training(0):
        assert batch.labels.tolist() == list(batch.indices)
        assert int(batch.labels.max()) == max(batch.indices)
        assert batch.labels.is_floating_point() == (kind == ">f4")
