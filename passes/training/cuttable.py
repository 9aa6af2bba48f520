"""A torch module whose groups can be made narrower: what the search for a budget works on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from optimize.models.model import Model, Signature
from optimize.models.program import Program, save_program
from optimize.passes.pruning.cuttable import relative_error
from optimize.passes.pruning.search import Widths, levels
from optimize.passes.training.batches import Batch
from optimize.passes.training.groups import outputs_of
from optimize.passes.training.prune import Prunable, least_important, step_of, without


@dataclass(frozen=True, eq=False)
class ModuleCut:
    """A module and its groups.

    Attributes:
        program: the module so far, with what it takes to export it.
        found: its groups; they are found anew after every recovery, whose weights are others.
        multiple: what channels are rounded to.
        batch: what outputs are compared on.
        wanted: the source's outputs of it, shape (numbers,) for each sample.
        lower: turns a saved module into what the runtime loads, in a folder.
        prepare: finds the groups of a module.
        train: recovers a module.
        folder: receives candidates.
        signature: of the inputs and outputs.
    """

    program: Program
    found: Prunable
    multiple: int
    batch: Batch
    wanted: Sequence[Any]
    lower: Callable[[Model, Path], Model]
    prepare: Callable[[Any], Prunable]
    train: Callable[[Any], Any]
    folder: Path
    signature: Signature

    @cached_property
    def levels(self) -> Sequence[Widths]:
        """See :class:`search.Cuttable`."""
        return [levels(group.units, step_of(group, self.multiple)) for group in self.found.groups]

    def module(self, widths: Widths) -> Any:
        """A copy with these widths."""
        groups = self.found.groups
        plan = {
            group.root: least_important(group, group.units - width)
            for group, width in zip(groups, widths, strict=True)
        }
        return without(self.found, plan)

    def cut(self, widths: Widths) -> Model:
        """See :class:`search.Cuttable`."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="candidate-"))
        program = self.program.with_module(self.module(widths))
        return self.lower(save_program(program, folder, self.signature), folder)

    def alike(self, widths: Widths) -> Hashable:
        """Equal numbers of parameters and of multiplications: layers that repeat, as in BERT."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        module = self.module(widths).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            module(*self.found.example)
        return counted.get_total_flops(), sum(p.numel() for p in module.parameters())

    def loss(self, widths: Widths) -> float:
        """See :class:`search.Cuttable`."""
        return relative_error(numbers(self.module(widths), self.batch), self.wanted)

    def recovered(self, widths: Widths) -> Self:
        """Trained, with its groups scored anew."""
        module = self.train(self.module(widths))
        return replace(self, program=self.program.with_module(module), found=self.prepare(module))

    def described(self) -> dict[str, int]:
        """Units of each group, by the name of its root."""
        return {group.root: group.units for group in self.found.groups}


def numbers(module: Any, batch: Batch) -> list[Any]:
    """All floating-point outputs of each sample, end to end, float64."""
    outputs = outputs_of(module, batch.args).values()
    rows = [value.double().numpy() for value in outputs if value.is_floating_point()]
    if all(row.ndim and len(row) == len(batch) for row in rows):
        return list(np.concatenate([row.reshape(len(batch), -1) for row in rows], 1))
    return [np.concatenate([row.ravel() for row in rows])]
