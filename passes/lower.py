"""From one format to the next: what a chain needs between its passes, and at its end."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from optimize.errors import NotApplicable, NotNow, first_cause
from optimize.models.model import Model
from optimize.models.runtimes import Format
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import silent

_ROUNDING = 0.05


@dataclass(frozen=True)
class Export(Pass):
    """A torch module becomes an ONNX graph, checked against the module's own outputs."""

    name: ClassVar[str] = "export"
    summary: ClassVar[str] = "torch module to ONNX"
    takes: ClassVar[tuple[Format, ...]] = ("torch",)

    def apply(self, model: Model, context: Context) -> PassResult:
        """Export by the first route whose outputs are the module's."""
        from optimize.models.export import export_program

        exported = export_program(model, context.folder)
        note = f"by {exported.route}, outputs {exported.difference}"
        return PassResult(exported.model, True, (note,))


@dataclass(frozen=True)
class Compile(Pass):
    """A torch module becomes a package of compiled code for this CPU."""

    name: ClassVar[str] = "compile"
    summary: ClassVar[str] = "torch module to a package of AOTInductor"
    needs: ClassVar[str] = "a C++ compiler"
    takes: ClassVar[tuple[Format, ...]] = ("torch", "onnx")
    runtimes: ClassVar[tuple[str, ...]] = ("inductor",)

    def apply(self, model: Model, context: Context) -> PassResult:
        """Compile with the weights frozen into the package."""
        if model.format != "torch":
            raise NotApplicable(
                "torch's AOTInductor compiles torch modules; this chain holds an ONNX graph"
            )
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise NotNow("torch's AOTInductor needs a C++ compiler, and there is none")
        import torch

        from optimize.models.program import dynamic_shapes, load_program

        program = load_program(model.path)
        path = context.folder / "model.pt2"
        with silent(), torch.no_grad():
            exported = torch.export.export(
                program.module,
                program.example.args,
                dynamic_shapes=dynamic_shapes(program.loaded, program.example),
            )
            compile_package(exported, path)
        return PassResult(Model.of("inductor", (path,), model.signature), True)


def compile_package(exported: Any, path: Path) -> None:
    """Compile an ``ExportedProgram`` into a package at ``path``, and check its outputs.

    With frozen weights integer kernels are used, but torch miscompiles some quantized
    convolutions then; such a program is compiled again without.

    Raises:
        NotApplicable: torch cannot compile it, or compiles something else.
    """
    import torch

    for freezing in (True, False):
        try:
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs={"freezing": freezing}
            )
            faithful = _faithful(exported, path)
        except Exception as error:
            kind = NotNow if _may_pass(error) else NotApplicable
            raise kind(f"AOTInductor cannot compile it: {first_cause(error)}") from error
        if faithful:
            return
    raise NotApplicable("AOTInductor compiles it into something with other outputs")


def _may_pass(error: BaseException) -> bool:
    """Whether the machine was short of something, so that the next attempt may go well."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    short = any(isinstance(cause, OSError | MemoryError) for cause in causes)
    return short or any(word in str(error) for word in ("No space left", "Killed", "signal"))


def _faithful(exported: Any, path: Path) -> bool:
    """Whether the package computes what the program does, up to rounding in 8 bits."""
    import torch

    args, kwargs = exported.example_inputs
    leaves = torch.utils._pytree.tree_leaves
    wanted = leaves(exported.module()(*args, **kwargs))
    with torch.inference_mode():
        got = leaves(torch._inductor.aoti_load_package(str(path))(*args, **kwargs))
    pairs = zip(got, wanted, strict=True)
    return all(
        bool((a.double() - b.double()).norm() <= _ROUNDING * b.double().norm()) for a, b in pairs
    )
