"""The ways from a torch program to an ONNX file, of which none works for every program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from optimize.errors import InputError
from optimize.models.program import Example, dynamic_shapes
from optimize.models.source import Loaded

_SIDE_FILE_ABOVE = 2**31 - 2**26  # protobuf's limit is 2 GiB
Route = Callable[[Loaded, Example, Path], None]


def routes(loaded: Loaded) -> list[tuple[str, Route]]:
    """What may export a source, by name, the likeliest first; each raises whatever it meets."""
    if loaded.source.kind == "torchscript":
        return [
            ("torch.onnx.export of the script", _script_route),
            ("torch.onnx.export of the script converted to a program", _converted_route),
        ]
    if loaded.source.kind == "exported_program":
        return [("torch.onnx.export of the exported program", _dynamo_route)]
    return [
        ("torch.onnx.export (dynamo)", _dynamo_route),
        ("torch.onnx.export (trace)", _script_route),
    ]


def _dynamo_route(loaded: Loaded, example: Example, path: Path) -> None:
    import torch

    if loaded.source.kind == "exported_program":
        program = torch.onnx.export(loaded.program, (), dynamo=True, verbose=False)
    else:
        program = torch.onnx.export(
            loaded.program,
            example.args,
            input_names=list(example.names),
            output_names=list(example.output_names) or None,
            dynamic_shapes=dynamic_shapes(loaded, example),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise InputError("torch.onnx.export gave no program")
    size = sum(
        value.const_value.nbytes
        for value in program.model.graph.initializers.values()
        if value.const_value is not None
    )
    program.save(str(path), external_data=size > _SIDE_FILE_ABOVE)


def _script_route(loaded: Loaded, example: Example, path: Path) -> None:
    import torch

    axes = {
        name: {axis: f"{name}_{axis}" for axis in dynamic}
        for name, dynamic in zip(example.names, example.dynamic, strict=True)
    }
    batched = all(0 in dynamic for dynamic in example.dynamic)
    axes.update({name: {0: "batch"} for name in example.output_names if batched})
    torch.onnx.export(
        loaded.program,
        example.args,
        str(path),
        input_names=list(example.names),
        output_names=list(example.output_names) or None,
        dynamic_axes=axes,
        dynamo=False,
        opset_version=18,
    )


def _converted_route(loaded: Loaded, example: Example, path: Path) -> None:
    from torch._export.converter import TS2EPConverter

    program = TS2EPConverter(loaded.program, example.args, {}).convert()
    source = replace(loaded.source, kind="exported_program")
    _dynamo_route(replace(loaded, source=source, program=program), example, path)
