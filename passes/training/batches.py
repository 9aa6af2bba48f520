"""Samples in batches of tensors, in a random order that the seed and the epoch fix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from optimize.errors import InputError
from optimize.models.data import Dataset

HELD_OUT_MOST = 1024
_MASK = "attention_mask"


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples joined along their first axis.

    Attributes:
        indices: which samples of the data set, shape (samples,).
        inputs: tensors by name, in the order in which the module takes them.
        labels: one label a sample, or None.
    """

    indices: Sequence[int]
    inputs: Mapping[str, Any]
    labels: Any = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def args(self) -> tuple[Any, ...]:
        """The inputs by position."""
        return tuple(self.inputs.values())

    @property
    def mask(self) -> Any:
        """Which tokens are real, shape (samples, tokens); None where no input tells."""
        return self.inputs.get(_MASK)


@dataclass(frozen=True, eq=False)
class Batches:
    """A data set shared out between training and a held-out part.

    Samples of one shape are batched together. Without a batch axis each sample is a batch.

    Attributes:
        data: fitted to the model's inputs.
        size: samples a batch.
        held_out: share of the samples that is not trained on, 1024 at most.
        seed: of the share and of the order.
    """

    data: Dataset
    size: int = 64
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options and that both parts get samples."""
        if self.size < 1 or not 0 < self.held_out < 1:
            raise InputError("batches: size must be at least 1, held_out between 0 and 1")
        if len(self.data) < 2:
            raise InputError(
                f"{self.data.origin} holds {len(self.data)} sample; training needs two at least, "
                "one of them to stop by"
            )

    @cached_property
    def _parts(self) -> tuple[list[int], list[int]]:
        order = np.random.default_rng(self.seed).permutation(len(self.data)).tolist()
        count = max(1, min(HELD_OUT_MOST, int(self.held_out * len(order))))
        return order[count:], order[:count]

    @cached_property
    def _buckets(self) -> list[list[int]]:
        return list(_by_shape(self.data, self._parts[0]).values())

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return sum(len(self._chunks(bucket)) for bucket in self._buckets)

    @property
    def uniform(self) -> bool:
        """Whether all samples have one shape and a batch axis."""
        return self.data.batch_first and len(_by_shape(self.data, range(len(self.data)))) == 1

    @property
    def digest(self) -> str:
        """SHA-256 of the samples, with the options."""
        return f"{self.data.digest}-{self.size}-{self.held_out}-{self.seed}"

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The training part, shuffled anew each epoch, from its ``start``-th batch on."""
        rng = np.random.default_rng([self.seed, epoch])
        chunks = [
            chunk
            for bucket in self._buckets
            for chunk in self._chunks([bucket[i] for i in rng.permutation(len(bucket))])
        ]
        for place in rng.permutation(len(chunks))[start:]:
            yield self._batch(chunks[place])

    def validation(self) -> Iterator[Batch]:
        """The held-out part, always in the same batches."""
        for bucket in _by_shape(self.data, self._parts[1]).values():
            for start in range(0, len(bucket), self._joined):
                yield self._batch(bucket[start : start + self._joined])

    @property
    def _joined(self) -> int:
        return self.size if self.data.batch_first else 1

    def _chunks(self, bucket: list[int]) -> list[list[int]]:
        """Cut into batches; a remainder is dropped where there is a full one."""
        size = self._joined
        full = len(bucket) // size
        return [bucket[i * size : (i + 1) * size] for i in range(max(1, full))]

    def _batch(self, indices: list[int]) -> Batch:
        import torch

        inputs = {
            name: torch.from_numpy(np.concatenate([arrays[i] for i in indices]))
            if self.data.batch_first
            else torch.from_numpy(np.array(arrays[indices[0]]))
            for name, arrays in self.data.inputs.items()
        }
        return Batch(indices, inputs, self._labels(indices))

    def _labels(self, indices: list[int]) -> Any:
        """Numbers as torch takes them: it lacks some of numpy's integers, and one byte order."""
        import torch

        labels = self.data.labels
        if labels is None or labels.dtype.kind not in "iufb":
            return None
        whole = labels.dtype.kind in "iu"
        native = np.dtype(np.int64) if whole else labels.dtype.newbyteorder("=")
        return torch.from_numpy(labels[indices].astype(native))


def _by_shape(data: Dataset, indices: Sequence[int]) -> dict[tuple[Any, ...], list[int]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index in indices:
        key = tuple(arrays[index].shape for arrays in data.inputs.values())
        groups.setdefault(key, []).append(index)
    return groups
