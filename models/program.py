"""A torch module between passes: kept with what is needed to run and export it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimize.models.data import Dataset
from optimize.models.model import Model, Signature
from optimize.models.source import Loaded
from optimize.models.usercode import code_digest, load_function

PROGRAM_FILE, ARCH_FILE = "module.pt", "arch.txt"


@dataclass(frozen=True)
class Example:
    """What the exporters are given: named tensors, and which of their axes may vary.

    Attributes:
        names: of the inputs, in the order in which ``forward`` takes them.
        args: one tensor for each, two samples in a batch where the batch may vary.
        dynamic: the axes of each that may vary.
        output_names: of the flattened outputs; empty for the exporter's own.
    """

    names: tuple[str, ...]
    args: tuple[Any, ...]
    dynamic: tuple[tuple[int, ...], ...]
    output_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """A torch module and what is needed to run and export it.

    Attributes:
        loaded: the module in ``loaded.program``, in evaluation mode.
        samples: those that its export was checked on, named and shaped as it takes them.
        example: what exporters are given.
    """

    loaded: Loaded
    samples: Dataset
    example: Example

    @property
    def module(self) -> Any:
        """The ``torch.nn.Module``."""
        return self.loaded.program

    def with_module(self, module: Any) -> Program:
        """The same with another module of the same inputs and outputs."""
        return replace(self, loaded=replace(self.loaded, program=module.eval()))


def save_program(program: Program, folder: Path, signature: Signature) -> Model:
    """Save a module for later passes; the classes in it are pickled by name."""
    import torch

    path = folder / PROGRAM_FILE
    arch = program.loaded.arch
    torch.save(program, path)
    # In full: it may be read again by another run, started elsewhere. The pickle names classes;
    # what they compute is part of the model, too.
    lines = [str(Path(arch).resolve()) if arch else "", code_digest(program.module)]
    (folder / ARCH_FILE).write_text("\n".join(lines))
    return Model.of("torch", (path, folder / ARCH_FILE), signature)


def load_program(path: Path) -> Program:
    """Read what :func:`save_program` wrote; only ever a file of our own, for it runs code.

    Raises:
        InputError: the user's architecture file is gone.
    """
    import torch

    arch = (path.parent / ARCH_FILE).read_text().splitlines()[0]
    if arch:
        load_function(arch, "--arch")  # registers the classes that the pickle names
    program: Program = torch.load(path, weights_only=False)
    return program


def dynamic_shapes(loaded: Loaded, example: Example) -> Any:
    """The axes that may vary, as ``torch.export`` takes them."""
    # A Hugging Face wrapper takes *args, which torch.export sees as one argument.
    shapes = flat_dynamic_shapes(example)
    return (shapes,) if loaded.source.kind == "huggingface" else shapes


def flat_dynamic_shapes(example: Example) -> tuple[Any, ...]:
    """The same for a graph that takes one argument an input."""
    import torch

    return tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in example.dynamic)
