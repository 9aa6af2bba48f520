"""Samples as files that a worker maps into its memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from optimize.models.data import Array, Dataset


def write_inputs(samples: Dataset, folder: Path) -> Path:
    """Write every input as one flat array, with the shape of each sample beside it.

    Returns:
        ``folder``, which is created.
    """
    folder.mkdir(parents=True)
    entries: list[dict[str, Any]] = []
    for number, (name, arrays) in enumerate(samples.inputs.items()):
        file = f"input-{number}.npy"
        flat = np.concatenate([np.ravel(array) for array in arrays])
        np.save(folder / file, flat, allow_pickle=False)
        entries.append({"name": name, "file": file, "shapes": [list(a.shape) for a in arrays]})
    index = {"version": 1, "count": len(samples), "inputs": entries}
    (folder / "samples.json").write_text(json.dumps(index))
    return folder


def read_outputs(entry: dict[str, Any], file: Path) -> list[Array]:
    """Map one output that a worker wrote: an array for each sample."""
    dtype = np.dtype(entry["dtype"])
    shapes = [tuple(shape) for shape in entry["shapes"]]
    sizes = [int(np.prod(shape)) for shape in shapes]
    total = sum(sizes)
    flat = np.memmap(file, dtype, "r", shape=(total,)) if total else np.empty(0, dtype)
    ends = np.cumsum([0, *sizes])
    return [
        np.asarray(flat[ends[i] : ends[i + 1]]).reshape(shape) for i, shape in enumerate(shapes)
    ]
