"""The teacher's outputs, computed once a sample and kept, across kills too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimize.passes.training.batches import Batch
from optimize.passes.training.outputs import named_outputs

MOST_BYTES = 2**30


class Teacher:
    """A frozen module whose outputs are remembered.

    Samples of one shape are kept in files if there is a folder, others in memory; both up to a
    limit, beyond which the teacher runs again.

    Args:
        module: put into evaluation mode.
        samples: how many the data set holds.
        uniform: whether all of them have one shape.
        folder: for the files; they belong to one teacher and one data set.
    """

    def __init__(self, module: Any, samples: int, uniform: bool, folder: Path | None) -> None:
        self.module = module.eval()
        self._samples = samples
        self._uniform = uniform
        self._folder = folder
        self._table: _Table | None = None
        self._memory: dict[int, dict[str, Any]] = {}
        self._left = MOST_BYTES
        if folder is not None and (folder / _Table.LIST).is_file():
            self._table = _Table.read(folder)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Floating-point outputs of the batch by name, without gradients."""
        known = self._known(batch)
        if known is not None:
            return known
        outputs = self.compute(batch)
        if outputs and all(len(value) == len(batch) for value in outputs.values()):
            self._remember(batch, outputs)
        return outputs

    def compute(self, batch: Batch) -> dict[str, Any]:
        """Run the module; one number for the whole batch, as a loss is, tells of no sample."""
        import torch

        with torch.no_grad():
            outputs = named_outputs(self.module(*batch.args))
        return {name: v.float() for name, v in outputs.items() if v.ndim and v.is_floating_point()}

    def _known(self, batch: Batch) -> dict[str, Any] | None:
        import torch

        if self._table is not None:
            return self._table.get(batch.indices)
        rows = [self._memory.get(index) for index in batch.indices]
        found = [row for row in rows if row is not None]
        if len(found) < len(rows):
            return None
        return {name: torch.stack([row[name] for row in found]) for name in found[0]}

    def _remember(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        if self._table is None and self._uniform and self._folder is not None:
            shapes = {name: (self._samples, *value.shape[1:]) for name, value in outputs.items()}
            if sum(4 * int(np.prod(shape)) for shape in shapes.values()) <= MOST_BYTES:
                self._table = _Table.create(self._folder, shapes)
        if self._table is not None:
            self._table.put(batch.indices, outputs)
            return
        size = sum(value.nbytes for value in outputs.values())
        if size <= self._left:
            self._left -= size
            for place, index in enumerate(batch.indices):
                self._memory[index] = {name: value[place] for name, value in outputs.items()}


class _Table:
    """Outputs as arrays in files, one row a sample, and a byte for each that is there."""

    LIST = "teacher.json"

    def __init__(self, arrays: dict[str, Any], done: Any) -> None:
        self._arrays = arrays
        self._done = done

    @classmethod
    def create(cls, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> _Table:
        """Make empty files; the list comes last, so that a kill leaves nothing half made."""
        folder.mkdir(parents=True, exist_ok=True)
        for place, shape in enumerate(shapes.values()):
            _file(folder, str(place), np.float32, shape, "w+")
        count = next(iter(shapes.values()))[0]
        _file(folder, "done", np.uint8, (count,), "w+")
        fresh = folder / f"{cls.LIST}.new"
        fresh.write_text(json.dumps(shapes))
        fresh.replace(folder / cls.LIST)
        return cls.read(folder)

    @classmethod
    def read(cls, folder: Path) -> _Table:
        """Open the files."""
        shapes = json.loads((folder / cls.LIST).read_text())
        arrays = {
            name: _file(folder, str(place), np.float32, tuple(shape), "r+")
            for place, (name, shape) in enumerate(shapes.items())
        }
        count = next(iter(shapes.values()))[0]
        return cls(arrays, _file(folder, "done", np.uint8, (count,), "r+"))

    def get(self, indices: Any) -> dict[str, Any] | None:
        """The rows, if all are there."""
        import torch

        if not self._done[indices].all():
            return None
        return {n: torch.from_numpy(np.array(a[indices])) for n, a in self._arrays.items()}

    def put(self, indices: Any, outputs: Mapping[str, Any]) -> None:
        """Write rows, then mark them: a kill in between costs only that they are written again."""
        for name, array in self._arrays.items():
            array[indices] = outputs[name].numpy()
        self._done[indices] = 1


def _file(folder: Path, name: str, dtype: Any, shape: tuple[int, ...], mode: Any) -> Any:
    return np.memmap(folder / f"teacher-{name}.bin", dtype=dtype, mode=mode, shape=shape)
