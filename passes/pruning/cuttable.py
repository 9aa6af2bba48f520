"""A graph whose groups of channels can be made narrower: what the search for a budget works on."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from optimize.models.data import Dataset
from optimize.models.model import FILE_NAME, Model
from optimize.passes.pruning.graph import Array, Shapes, values
from optimize.passes.pruning.groups import Dependencies, Keep, layer_name
from optimize.passes.pruning.importance import Order
from optimize.passes.pruning.search import Widths, levels
from optimize.passes.pruning.select import step_of
from optimize.passes.pruning.shrink import shrink

LOSS_SAMPLES = 32  # that a candidate's outputs are compared on


@dataclass(frozen=True, eq=False)
class GraphCut:
    """A plain graph, and how wide its groups are.

    The refit is exact for any widths and needs no steps on the way: it is done once, at the end,
    from the original weights.

    Attributes:
        proto: the graph with all its channels.
        found: these channels.
        shapes: of all its tensors.
        orders: in which the channels of each group go.
        multiples: what widths are rounded to, for each group.
        samples: what outputs are compared on.
        folder: receives candidates.
        config: session options that go with them.
        now: the present widths; None for all channels.
    """

    proto: Any
    found: Dependencies
    shapes: Shapes
    orders: Sequence[Order]
    multiples: Sequence[int]
    samples: Dataset
    folder: Path
    config: tuple[tuple[str, str], ...] = ()
    now: Widths | None = None

    @cached_property
    def levels(self) -> Sequence[Widths]:
        """See :class:`search.Cuttable`."""
        sizes = [len(group.channels) for group in self.found.groups]
        steps = [
            step_of(group, multiple)
            for group, multiple in zip(self.found.groups, self.multiples, strict=True)
        ]
        return [levels(*pair) for pair in zip(self.now or sizes, steps, strict=True)]

    def keep(self, widths: Widths) -> Keep:
        """Which channels stay: shape (number of channels,)."""
        keep = np.ones(self.found.count, bool)
        for order, width in zip(self.orders, widths, strict=True):
            keep[order.channels[: len(order.channels) - width]] = False
        return keep

    def cut(self, widths: Widths) -> Model:
        """See :class:`search.Cuttable`."""
        import onnx

        path = Path(tempfile.mkdtemp(dir=self.folder, prefix="candidate-")) / FILE_NAME
        onnx.save(shrink(self.proto, self.found, self.shapes, self.keep(widths)), str(path))
        return replace(Model.read(path), config=self.config)

    def alike(self, widths: Widths) -> Hashable:
        """Timing costs little more than telling layers of the same shapes apart."""
        return widths

    def loss(self, widths: Widths) -> float:
        """See :class:`search.Cuttable`."""
        cut = shrink(self.proto, self.found, self.shapes, self.keep(widths))
        return relative_error(self._outputs(cut), self._wanted)

    def recovered(self, widths: Widths) -> Self:
        """The same graph at these widths."""
        return replace(self, now=widths)

    def described(self, widths: Widths) -> list[str]:
        """What became narrower, by the name of a layer of each group."""
        nodes = self.proto.graph.node
        return [
            f"{layer_name(nodes[group.layers[0]])} {len(group.channels)} -> {width}"
            for group, width in zip(self.found.groups, widths, strict=True)
            if width < len(group.channels)
        ]

    @cached_property
    def _wanted(self) -> list[Array]:
        return self._outputs(self.proto)

    def _outputs(self, proto: Any) -> list[Array]:
        """All numbers of each sample's outputs, end to end."""
        names = [value.name for value in proto.graph.output]
        few = self.samples.first(LOSS_SAMPLES)
        return [
            np.concatenate([np.ravel(value).astype(np.float64) for value in found])
            for found in values(proto, names, few)
        ]


def relative_error(given: Sequence[Array], wanted: Sequence[Array]) -> float:
    """Squared error as a share of the variance over samples; infinite for other shapes or NaN.

    Args:
        given: numbers of each sample, shape (n,) each.
        wanted: the same of the source.
    """
    if any(a.shape != b.shape for a, b in zip(given, wanted, strict=True)):
        return float("inf")
    alike = len({array.shape for array in wanted}) == 1 and len(wanted) > 1
    mean = np.mean(wanted, 0) if alike else 0.0
    errors = sum(float(np.square(a - b).sum()) for a, b in zip(given, wanted, strict=True))
    spread = sum(float(np.square(array - mean).sum()) for array in wanted)
    found = errors / max(spread, np.finfo(float).tiny)
    return found if np.isfinite(found) else float("inf")
