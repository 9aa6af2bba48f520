"""Torch programs to ONNX: routes are tried in order, each checked against the source's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimize.errors import InputError, first_cause, nearest
from optimize.models import huggingface
from optimize.models.data import Dataset, fit, labels_hint, synthetic
from optimize.models.model import FILE_NAME, Model, TensorSpec
from optimize.models.program import Example, Program, load_program, save_program
from optimize.models.routes import routes
from optimize.models.run import Difference, difference, run
from optimize.models.source import Loaded, Source, load

# Exporters reorder float32 arithmetic; beyond this share of an output's largest magnitude the
# graph computes something else.
TOLERANCE = 1e-3
CHECKED_SAMPLES = 4


@dataclass(frozen=True)
class Exported:
    """An exported model and how faithful it is.

    Attributes:
        model: the ONNX model.
        program: the torch module that it was exported from, saved for passes that work on modules;
            None if the source is none.
        route: how it was exported.
        difference: to the source's own outputs on real samples.
        specs: the inputs' types and shapes as the user or the source stated them.
        notes: routes that did not work and why.
    """

    model: Model
    route: str
    difference: Difference
    specs: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()
    program: Model | None = None


# Sources whose loaded program is a torch.nn.Module that can be transformed.
MODULES = ("checkpoint", "safetensors", "huggingface")


def load_and_export(
    source: Source,
    arch: str | None,
    trusted: bool,
    probe: Dataset | None,
    stated: Sequence[TensorSpec],
    folder: Path,
) -> Exported:
    """Load a source and export it into ``folder``.

    Args:
        source: from :func:`optimize.models.source.detect`.
        arch: ``file.py:factory`` for weights without an architecture.
        trusted: whether a pickle may run code.
        probe: a few samples that show which axes vary; None to make some up.
        stated: inputs that the user described; they override what the source knows.
        folder: receives ``model.onnx``.

    Raises:
        InputError: it cannot be loaded, does not run on the samples, or no route is faithful.
    """
    loaded = load(source, arch, trusted)
    specs = _specs(loaded, stated)
    data = probe if probe is not None else synthetic(_complete(specs, loaded), CHECKED_SAMPLES, 0)
    return replace(export(loaded, data, specs, folder), specs=tuple(specs))


def export_program(program: Model, folder: Path) -> Exported:
    """Export a saved module again, after a pass has changed it.

    Raises:
        InputError: no route gives a faithful model.
    """
    import torch

    saved = load_program(program.path)
    with torch.no_grad():
        reference = _reference(saved.loaded, saved.samples)
        return _first_route(saved.loaded, saved.samples, reference, saved.example, folder)


def _specs(loaded: Loaded, stated: Sequence[TensorSpec]) -> list[TensorSpec]:
    given = {spec.name: spec for spec in stated}
    strange = sorted(given.keys() - set(loaded.inputs))
    if strange:
        raise InputError(f"--input {strange[0]}: {nearest(strange[0], loaded.inputs)}")
    known = {spec.name: spec for spec in input_specs(loaded)}
    if loaded.source.kind == "onnx":
        for one in given.values():
            if not _agree(one, known[one.name]):
                raise InputError(f"--input {one}: the model takes {known[one.name]}")
    return [spec for name in loaded.inputs if (spec := given.get(name) or known.get(name))]


def _agree(stated: TensorSpec, known: TensorSpec) -> bool:
    """Whether what a user states can be what a graph declares."""
    if stated.dtype != known.dtype or stated.shape is None or known.shape is None:
        return stated.dtype == known.dtype
    return len(stated.shape) == len(known.shape) and all(
        mine == own or not (isinstance(mine, int) and isinstance(own, int))
        for mine, own in zip(stated.shape, known.shape, strict=True)
    )


def _complete(specs: list[TensorSpec], loaded: Loaded) -> list[TensorSpec]:
    missing = [name for name in loaded.required if name not in {spec.name for spec in specs}]
    if missing:
        raise InputError(
            f"{loaded.source.path} does not tell the shape of its input {missing[0]}; "
            f"give --data, or --input {missing[0]}=1x3x224x224:float32 with its shape and type"
        )
    return specs


def input_specs(loaded: Loaded) -> tuple[TensorSpec, ...]:
    """The inputs' types and shapes, where the source itself knows them; else empty."""
    if loaded.source.kind == "onnx":
        known: Model = loaded.program
        return known.signature.inputs
    if loaded.source.kind == "exported_program":
        return tuple(_placeholder_specs(loaded.program))
    if loaded.source.kind == "huggingface" and loaded.inputs[0] == "input_ids":
        return tuple(
            TensorSpec(name, "int64", ("batch", "sequence"))
            for name in loaded.inputs
            if name in ("input_ids", "attention_mask", "token_type_ids")
        )
    return ()


def export(loaded: Loaded, data: Dataset, specs: Sequence[TensorSpec], folder: Path) -> Exported:
    """Export a loaded source into ``folder``, or take an ONNX source as it is.

    Axis 0 stays dynamic where the samples are batched, as does every axis along which the samples
    differ or that a specification names by a symbol.

    Args:
        loaded: the source.
        data: samples that name the inputs; their shapes need not be fitted yet.
        specs: types and shapes of the inputs, where known.
        folder: receives ``model.onnx``.

    Raises:
        InputError: the data does not fit, or no route gives a faithful model.
    """
    if loaded.source.kind == "onnx":
        fit(data, loaded.program.signature.inputs)
        return Exported(loaded.program, "as given", Difference())
    import torch

    with torch.no_grad():
        bound, reference = _bind(loaded, data, specs)
        example = _example(loaded, bound, specs)
        exported = _first_route(loaded, bound, reference, example, folder)
    if loaded.source.kind not in MODULES:
        return exported
    saved = Program(loaded, bound, example)
    try:
        program = save_program(saved, folder, exported.model.signature)
        load_program(program.path)  # its classes must be found by name, too
    except Exception as error:  # noqa: BLE001  the exported graph is enough for all other passes
        note = f"passes on torch modules are left out: {first_cause(error, 160)}"
        return replace(exported, notes=(*exported.notes, note))
    return replace(exported, program=program)


def _first_route(
    loaded: Loaded,
    data: Dataset,
    reference: list[list[Any]],
    example: Example,
    folder: Path,
) -> Exported:
    notes: list[str] = []
    path = folder / FILE_NAME
    for name, route in routes(loaded):
        try:
            route(loaded, example, path)
            model = Model.read(path)
            fitted = fit(data, model.signature.inputs)
            checked = run(model, fitted)
        except Exception as error:  # noqa: BLE001  a route that fails is a note
            notes.append(f"{name}: {first_cause(error, 160)}")
            continue
        outputs = [spec.name for spec in model.signature.outputs]
        distance = difference(checked, [_named(outputs, values) for values in reference])
        if distance.relative <= TOLERANCE:
            return Exported(model, name, distance, notes=tuple(notes))
        notes.append(f"{name}: its outputs differ by {distance}")
    tried = "; ".join(notes)
    raise InputError(f"{loaded.source.path} cannot be exported to ONNX: {_why(loaded)}{tried}")


def _why(loaded: Loaded) -> str:
    """Say what is known to defeat every route."""
    if loaded.source.kind == "torchscript" and "prim::SetAttr" in str(loaded.program.inlined_graph):
        return (
            "the script keeps state in its own attributes, which ONNX cannot hold; "
            "script a module that takes the state as an input and returns it. "
        )
    return ""


def _named(names: list[str], values: list[Any]) -> dict[str, Any]:
    # A length that differs shows as a missing output, hence as an infinite difference.
    more = [f"output {number}" for number in range(len(names), len(values))]
    padded = [*values, *[None] * (len(names) - len(values))]
    return dict(zip([*names, *more], padded, strict=True))


def _bind(
    loaded: Loaded, data: Dataset, specs: Sequence[TensorSpec]
) -> tuple[Dataset, list[list[Any]]]:
    """Name and fit the samples, and run the source on the first few.

    Where no specification tells whether the first axis of an array is the batch, the source
    itself does: whichever reading it accepts.
    """
    named = _name_inputs(loaded, data)
    if specs:
        fitted = fit(named, [spec for spec in specs if spec.name in named.inputs])
        return fitted, _reference(loaded, fitted)
    sliced = replace(
        named,
        inputs={k: [a[None] for a in arrays] for k, arrays in named.inputs.items()},
        batch_first=True,
    )
    # Samples of one file were cut along its first axis and lack it; those of a folder are complete.
    complete = replace(named, batch_first=_leading_ones(named))
    order = [complete, sliced] if _leading_ones(named) else [sliced, complete]
    errors = []
    for candidate in order:
        try:
            return candidate, _reference(loaded, candidate)
        except Exception as error:  # noqa: BLE001  told below
            errors.append(first_cause(error, 200))
    raise InputError(f"{loaded.source.path} does not run on a sample of {data.origin}: {errors[0]}")


def _leading_ones(data: Dataset) -> bool:
    return all(a.ndim > 0 and a.shape[0] == 1 for arrays in data.inputs.values() for a in arrays)


def _name_inputs(loaded: Loaded, data: Dataset) -> Dataset:
    inputs = dict(data.inputs)
    if len(inputs) == 1 and len(loaded.required) <= 1:
        inputs = {loaded.inputs[0]: next(iter(inputs.values()))}
    given = [name for name in loaded.inputs if name in inputs]
    strange = sorted(inputs.keys() - set(loaded.inputs))
    missing = [name for name in loaded.required if name not in inputs]
    gap = tuple(given) != loaded.inputs[: len(given)]
    if strange or missing or gap:
        raise InputError(
            f"--data {data.origin} holds {', '.join(inputs)}; "
            f"the model takes {', '.join(loaded.inputs)}, of which it needs "
            f"{', '.join(loaded.required)}{labels_hint(strange)}"
        )
    return replace(data, inputs={name: inputs[name] for name in given})


def _reference(loaded: Loaded, data: Dataset) -> list[list[Any]]:
    program = loaded.program
    if loaded.source.kind == "exported_program":
        program = program.module()
    return [_flat(program(*_tensors(data.sample(i)))) for i in range(len(data))]


def _tensors(sample: dict[str, Any]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(np.array(array)) for array in sample.values())


def _flat(result: Any) -> list[Any]:
    import torch

    leaves = torch.utils._pytree.tree_leaves(result)
    return [leaf.detach().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _example(loaded: Loaded, data: Dataset, specs: Sequence[TensorSpec]) -> Example:
    """Two samples in a batch, so that exporters do not take a batch of one for a constant."""
    first = data.sample(0)
    dynamic = {name: _varying(arrays) for name, arrays in data.inputs.items()}
    for spec in specs:
        for axis, dim in enumerate(spec.shape or ()):
            if not isinstance(dim, int) and spec.name in dynamic:
                dynamic[spec.name].add(axis)
    if data.batch_first and all(_dynamic_batch(spec) for spec in specs):
        first = {name: np.concatenate([array, array]) for name, array in first.items()}
        for axes in dynamic.values():
            axes.add(0)
    args = _tensors(first)
    names: tuple[str, ...] = ()
    if loaded.source.kind == "huggingface":
        names = huggingface.output_names(loaded.program, loaded.inputs, args)
    elif loaded.source.kind != "exported_program":
        count = len(_flat(loaded.program(*args)))
        names = ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))
    return Example(tuple(first), args, tuple(tuple(sorted(dynamic[n])) for n in first), names)


def _dynamic_batch(spec: TensorSpec) -> bool:
    return not spec.shape or not isinstance(spec.shape[0], int) or spec.shape[0] == 1


def _varying(arrays: Sequence[Any]) -> set[int]:
    shapes = {array.shape for array in arrays}
    rank = len(arrays[0].shape)
    if any(len(shape) != rank for shape in shapes):
        raise InputError("the samples of one input have different numbers of axes")
    return {axis for axis in range(rank) if len({shape[axis] for shape in shapes}) > 1}


def _placeholder_specs(program: Any) -> Iterator[TensorSpec]:
    values = {
        node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"
    }
    for name in program.graph_signature.user_inputs:
        value = values[name]
        dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
        yield TensorSpec(name, str(value.dtype).removeprefix("torch."), dims)
