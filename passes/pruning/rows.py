"""Choose among the positions of a tensor, and see its features as channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimize.passes.pruning.graph import Array


def some(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most ``most`` of ``count`` positions, in order, drawn without replacement."""
    if count <= most:
        return np.arange(count)
    return np.sort(rng.choice(count, most, replace=False))


def channel_rows(rows: Array, places: Array) -> NDArray[np.float64]:
    """Rows of features, shape (r, n), as rows of channels, shape (r * m, k).

    Args:
        rows: values.
        places: shape (m, k), the features of each channel; -1 for none, which is read as zero.
    """
    if len(places) == 1:
        return rows[:, places[0]].astype(np.float64)
    padded = np.concatenate([rows, np.zeros((len(rows), 1), rows.dtype)], 1)
    return padded[:, places].reshape(-1, places.shape[1]).astype(np.float64)
