"""Channels through reshapes: flattened into features, split into heads, or left alone."""

from __future__ import annotations

from math import prod

import numpy as np

from optimize.passes.pruning.channels import Axes, Axis, Labels
from optimize.passes.pruning.trace import Node

Span = tuple[range, range]


def axes_after(node: Node, axes: Axes, before: tuple[int, ...], after: tuple[int, ...]) -> Axes:
    """The labels of the reshaped tensor.

    Axes are matched in the smallest runs whose lengths have the same product. Merged axes repeat
    a channel's label for every feature that it becomes. An axis that is split keeps its channels
    apart if they end up on an axis of their own; else the run of channels that shares an index of
    the first axis (the features of an attention head) becomes one channel.
    """
    result: list[Axis] = [None] * len(after)
    if prod(before) == 0:
        node.pin(*axes)
        return tuple(result)
    for given, made in spans(before, after):
        labelled = [i for i in given if axes[i] is not None]
        if not labelled:
            continue
        real = [k for k in made if after[k] > 1] or list(made[:1])
        if len(labelled) > 1 or not real:
            node.pin(*(axes[i] for i in labelled))
            continue
        labels = _spread(axes, labelled[0], [before[i] for i in given], labelled[0] - given.start)
        place, result_labels = _placed(node, labels.reshape([after[k] for k in real]), real)
        result[place] = result_labels
    return tuple(result)


def spans(before: tuple[int, ...], after: tuple[int, ...]) -> list[Span]:
    """Match runs of axes of equal products, from the left, each as short as possible."""
    found: list[Span] = []
    i = j = 0
    while i < len(before) or j < len(after):
        start, stop = i, j
        left, right = 1, 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if (left < right and i < len(before)) or j == len(after):
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        found.append((range(start, i), range(stop, j)))
    return found


def _spread(axes: Axes, axis: int, sizes: list[int], place: int) -> Labels:
    """The labels of one axis, for every element of a run of axes."""
    labels = axes[axis]
    assert labels is not None
    shape = [-1 if k == place else 1 for k in range(len(sizes))]
    return np.broadcast_to(labels.reshape(shape), sizes).ravel()


def _placed(node: Node, labels: Labels, places: list[int]) -> tuple[int, Labels]:
    """Find the axis along which the labels run, or make it so by tying them."""
    for k, place in enumerate(places):
        rows = np.moveaxis(labels, k, 0).reshape(labels.shape[k], -1)
        if (rows == rows[:, :1]).all():
            return place, rows[:, 0]
    rows = labels.reshape(len(labels), -1)
    for column in rows.T[1:]:
        node.tie(rows[:, 0], column)
    return places[0], rows[:, 0]
