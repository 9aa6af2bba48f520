"""In which order the channels of a group should go, and what each removal costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.models.data import Dataset
from optimize.passes.pruning.channels import Labels
from optimize.passes.pruning.graph import Array, constants, values
from optimize.passes.pruning.groups import Dependencies, Group
from optimize.passes.pruning.layers import Layer, layers
from optimize.passes.pruning.rows import channel_rows, some

ROWS = 256  # positions of one sample that enter a covariance
_STEPS = 128  # in which a group could be eliminated as a whole
_RIDGE = 1e-4  # of the mean variance: keeps covariances of dead channels invertible


@dataclass(frozen=True, eq=False)
class Order:
    """The order in which a group's channels go.

    Attributes:
        channels: least important first.
        losses: what each removal costs, in that order; comparable between groups.
    """

    channels: Labels
    losses: Array


def by_magnitude(proto: Any, found: Dependencies) -> list[Order]:
    """Order by the L2 norm of all weights of a channel, into it and out of it.

    Each weight tensor counts by its share of the tensor's mean, as tensors differ in scale.
    """
    scores = np.zeros(found.count)
    parts = np.zeros(found.count)
    weights = constants(proto)
    for (index, position), axes in found.uses.items():
        node = proto.graph.node[index]
        if position != 1 or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        squares = np.square(weights[node.input[position]].astype(np.float64))
        for axis, labels in enumerate(axes):
            if labels is None:
                continue
            norms = squares.sum(tuple(i for i in range(squares.ndim) if i != axis))
            share = norms / max(norms.mean(), np.finfo(float).tiny)
            scores += np.bincount(labels, share, found.count)
            parts += np.bincount(labels, minlength=found.count)
    scores = np.sqrt(scores / np.maximum(parts, 1))
    return [_sorted(group.channels, scores[group.channels]) for group in found.groups]


def by_activation(
    proto: Any, found: Dependencies, samples: Dataset, compensated: bool, share: float, seed: int
) -> list[Order]:
    """Order by what the next layers' outputs lose, estimated on calibration data.

    Args:
        proto: a plain graph.
        found: its channels.
        samples: calibration data.
        compensated: whether a least-squares refit will follow. Then a channel costs only what the
            others cannot stand in for: the optimal brain surgeon's criterion (Hassibi and Stork,
            1993) for a layer's inputs, with channels in place of weights. Else it costs its second
            moment times the squared norm of the weights that read it.
        share: of a group's channels, how many may go at most; later removals are not estimated.
        seed: for the positions that are looked at.
    """
    readers = list(layers(proto, found))
    moments = _moments(proto, readers, samples, compensated, seed)
    weights = constants(proto)
    result = []
    for group, plain in zip(found.groups, by_magnitude(proto, found), strict=True):
        parts = [
            part
            for layer, moment in zip(readers, moments, strict=True)
            if (part := _part(group, layer, moment, weights[layer.node.input[1]])) is not None
        ]
        if not parts:  # nothing sums over these channels; their own weights must do
            result.append(plain)
        elif compensated:
            result.append(_eliminated(group, parts, int(share * len(group.channels))))
        else:
            costs = sum(np.diag(part.gram) * np.diag(part.moment) / part.total for part in parts)
            result.append(_sorted(group.channels, np.asarray(costs)))
    return result


@dataclass(frozen=True, eq=False)
class _Part:
    """A layer that reads a group: (n, n) inner products of its weights and moments of its inputs.

    Attributes:
        gram: of the weights that read each channel.
        moment: second moments or covariances of the channels.
        total: the same measure of the layer's whole output, to make layers comparable.
    """

    gram: Array
    moment: Array
    total: float


def _sorted(channels: Labels, losses: Array) -> Order:
    order = np.argsort(losses, kind="stable")
    return Order(channels[order], losses[order])


def _moments(
    proto: Any, readers: Sequence[Layer], samples: Dataset, centred: bool, seed: int
) -> list[Array]:
    """Second moments or covariances of the channels that each layer reads."""
    rng = np.random.default_rng(seed)
    views = [layer.by_channel()[1] for layer in readers]
    sums = [np.zeros(places.shape[1]) for places in views]
    products = [np.zeros((places.shape[1],) * 2) for places in views]
    counts = np.zeros(len(readers))
    for found in values(proto, [layer.node.input[0] for layer in readers], samples):
        for i, (layer, value) in enumerate(zip(readers, found, strict=True)):
            given = layer.rows(value)
            rows = channel_rows(given[some(len(given), ROWS, rng)], views[i])
            counts[i] += len(rows)
            sums[i] += rows.sum(0)
            products[i] += rows.T @ rows
    means = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
    return [
        product / max(count, 1) - (np.outer(mean, mean) if centred else 0)
        for product, count, mean in zip(products, counts, means, strict=True)
    ]


def _part(group: Group, layer: Layer, moment: Array, weight: Array) -> _Part | None:
    channels, places = layer.by_channel()
    mine = np.isin(group.channels, channels)
    if not mine.any():
        return None
    matrix = layer.matrix(weight)
    padded = np.concatenate([matrix, np.zeros((1, *matrix.shape[1:]))])
    rows = padded[places].transpose(1, 0, 2, 3).reshape(len(channels), -1)
    inner = rows @ rows.T
    total = max(float((inner * moment).sum()), np.finfo(float).tiny)
    at = np.searchsorted(channels, group.channels[mine])
    gram, own = np.zeros((len(mine),) * 2), np.eye(len(mine))
    gram[np.ix_(mine, mine)] = inner[np.ix_(at, at)]
    own[np.ix_(mine, mine)] = moment[np.ix_(at, at)]
    return _Part(gram, own, total)


def _eliminated(group: Group, parts: Sequence[_Part], count: int) -> Order:
    """Remove the cheapest channels, a few at a time, and fold each into those that are left."""
    size = len(group.channels)
    few = max(1, size // _STEPS)
    grams = [part.gram.copy() for part in parts]
    inverses = [np.linalg.inv(_ridged(part.moment)) for part in parts]
    left = np.ones(size, bool)
    order: list[int] = []
    losses: list[float] = []
    while len(order) < min(count, size - 1):
        costs: Array = sum(  # type: ignore[assignment]  # of at least one part
            np.diag(gram) / np.where(left, np.diag(inverse), 1) / part.total
            for gram, inverse, part in zip(grams, inverses, parts, strict=True)
        )
        costs = np.where(left, costs, np.inf)
        gone = np.argsort(costs, kind="stable")[: min(few, count - len(order))]
        order += gone.tolist()
        losses += costs[gone].tolist()
        left[gone] = False
        for gram, inverse in zip(grams, inverses, strict=True):
            _fold(gram, inverse, gone)
    rest = np.flatnonzero(left)
    order += rest[np.argsort(costs[rest], kind="stable")].tolist() if order else rest.tolist()
    losses += [np.inf] * len(rest)
    # A channel that costs nothing after dearer ones went is no cheaper than those.
    return Order(group.channels[order], np.maximum.accumulate(losses))


def _ridged(moment: Array) -> Array:
    scale = max(float(np.trace(moment)) / len(moment), np.finfo(float).tiny)
    ridged: Array = moment + _RIDGE * scale * np.eye(len(moment))
    return ridged


def _fold(gram: Array, inverse: Array, gone: Array) -> None:
    """Update weights and inverse covariance for the removal of channels, in place.

    With u = P[:, c] P[c, c]^-1, least squares turns the weights W into W - u W[c] and P into
    P - u P[c]; only inner products of W are kept.
    """
    factors = inverse[:, gone] @ np.linalg.inv(inverse[np.ix_(gone, gone)])
    inverse -= factors @ inverse[gone]
    rows = gram[gone].copy()
    corner = rows[:, gone]
    gram -= factors @ rows + (factors @ rows).T - factors @ corner @ factors.T
