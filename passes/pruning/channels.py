"""Channels as labels on axes: which must live or go together, and which cannot go at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Axis = Labels | None  # None: no channel of this axis can go, or the axis has none
Axes = tuple[Axis, ...]


class Channels:
    """Disjoint sets of labels. A set is one channel: what is removed is removed as a whole."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._layers: list[int | None] = []
        self._pins: dict[int, str] = {}

    def new(self, count: int, layer: int | None = None) -> Labels:
        """Make labels for ``count`` indices, which ``layer`` (a node's position) computes."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        self._layers += [layer] * count
        return np.arange(first, first + count, dtype=np.int64)

    def tie(self, first: Axis, second: Axis, reason: str) -> Axis:
        """Join two axes of one length index by index; if one is None, the other cannot go."""
        if first is None or second is None:
            self.pin(first if second is None else second, reason)
            return None
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            root_a, root_b = self._find(a), self._find(b)
            if root_a != root_b:
                self._parents[root_b] = root_a
        return first

    def pin(self, axis: Axis, reason: str) -> None:
        """Keep all channels of an axis; the first reason given for one stays."""
        for label in [] if axis is None else axis.tolist():
            self._pins.setdefault(label, reason)

    def classes(self) -> Classes:
        """Number the sets from zero."""
        roots = np.array([self._find(i) for i in range(len(self._parents))], dtype=np.int64)
        _, numbers = np.unique(roots, return_inverse=True)
        layers: list[set[int]] = [set() for _ in range(int(numbers.max(initial=-1)) + 1)]
        for number, layer in zip(numbers.tolist(), self._layers, strict=True):
            if layer is not None:
                layers[number].add(layer)
        pins: dict[int, str] = {}
        for label, reason in self._pins.items():
            pins.setdefault(int(numbers[label]), reason)
        return Classes(numbers, tuple(frozenset(found) for found in layers), pins)

    def _find(self, label: int) -> int:
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label


class Classes:
    """The sets of :class:`Channels`, numbered.

    Attributes:
        layers: for each set, the positions of the nodes that compute its channels.
        pins: for each set that cannot go, why.
    """

    def __init__(
        self, numbers: Labels, layers: tuple[frozenset[int], ...], pins: Mapping[int, str]
    ) -> None:
        self._numbers = numbers
        self.layers = layers
        self.pins = pins

    def __len__(self) -> int:
        return len(self.layers)

    def of(self, axes: Axes) -> Axes:
        """The sets of labelled axes."""
        return tuple(None if axis is None else self._numbers[axis] for axis in axes)
