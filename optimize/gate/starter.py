"""A first ``optimize.toml``, from what a model and the folder around it tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from optimize.errors import InputError
from optimize.gate.names import FILE
from optimize.models.model import Model
from optimize.models.source import Source, detect
from optimize.targets.base import Device

_KINDS = {
    "onnx": "ONNX",
    "torchscript": "TorchScript",
    "exported_program": "an exported program (.pt2)",
    "checkpoint": "a torch.save file",
    "safetensors": "weights (safetensors)",
    "huggingface": "a Hugging Face folder",
}
# Beside the model, or in these folders beside it.
_PLACES = ("", "data", "val", "validation", "test")
_NAMES = ("data", "val", "valid", "validation", "test", "eval", "samples")


@dataclass(frozen=True)
class _Data:
    """Samples that seem to fit a model."""

    path: Path
    labels: bool


def starter(model: Path, written: Path, device: Device) -> str:
    """The text of a file that declares ``model``, with what could be found out filled in.

    Args:
        model: where it lies.
        written: the same as the file is to name it, from its own folder.
        device: this machine.

    Raises:
        InputError: it is no model.
    """
    return "\n".join(_lines(model, written, detect(model), device)) + "\n"


def _lines(model: Path, written: Path, source: Source, device: Device) -> Iterator[str]:
    onnx = Model.read(source.path) if source.kind == "onnx" else None
    inputs = [spec.name for spec in onnx.signature.inputs] if onnx else []
    data = _data(model, inputs)
    stem = model.resolve().name.partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "model"
    yield f"# What `optimize check` judges. Paths are relative to the folder of {FILE}."
    yield ""
    yield "[defaults]"
    yield "threads = 1             # of the runtime, as the service will have"
    yield 'time_limit = "10m"      # of each model'
    yield ""
    yield f"[models.{name}]         # {_KINDS[source.kind]}"
    yield f"source = {_quoted(written)}"
    if source.kind in ("checkpoint", "safetensors"):
        yield from _arch(model, written.parent)
    if onnx:
        yield from (f"# input {spec}" for spec in onnx.signature.inputs)
    if data:
        yield f"data = {_quoted(_seen(data.path, model, written))}"
    else:
        yield '# data = "val.npz"      # one array an input, and labels'
    if data and data.labels:
        yield '# metric = "top1"       # or f1, mae, ..., or "file.py:function"'
        yield 'floor = "drop=1%"       # at most this much worse than the source'
    else:
        yield '# floor = "cosine=0.99" # how near to the source\'s outputs, as there are no labels'
    yield 'budget = "p99=20ms"     # CHANGE THIS: what you promise; also ["p99=20ms", "size=25MB"]'
    yield ""
    yield "# To bind budgets to a device, and never have them judged on another one:"
    yield f'# budget = {{ any = "size=25MB", prod = "p99=20ms" }}'  # noqa: F541
    yield "# [targets.prod]        # this machine is:"
    yield f"# cpu = {json.dumps(device.cpu, ensure_ascii=False)}"
    yield f"# cores = {device.granted_cores}"


def _arch(model: Path, folder: Path) -> Iterator[str]:
    files = sorted(file.name for file in model.parent.glob("*.py"))
    known = next((file for file in ("arch.py", "model.py", "net.py") if file in files), None)
    file = known or (files[0] if len(files) == 1 else None)
    if file is None:
        yield '# arch = "net.py:build" # weights alone need a function that builds the network'
        return
    factory = _factory(model.parent / file)
    yield f"arch = {_quoted(folder / f'{file}:{factory}')}"


def _factory(file: Path) -> str:
    """The last function of a file that can be called without arguments; it is not imported."""
    import ast

    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return "build"
    names = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and len(node.args.args) == len(node.args.defaults)
    ]
    return names[-1] if names else "build"


def _data(model: Path, inputs: list[str]) -> _Data | None:
    """The likeliest samples: a file with an array for every input, else one that is called so."""
    folders = [model.parent / place for place in _PLACES]
    files = sorted({f for folder in folders if folder.is_dir() for f in folder.glob("*.npz")})
    found = [(file, names) for file in files if (names := _arrays(file)) is not None]
    fitting = [(f, names) for f, names in found if inputs and set(inputs) <= names]
    if not inputs:
        fitting = [(f, names) for f, names in found if f.stem.lower() in _NAMES]
    # Labelled files first, then those whose name says what they are for.
    ranked = sorted(
        fitting, key=lambda pair: ("labels" not in pair[1], pair[0].stem.lower() not in _NAMES)
    )
    return _Data(ranked[0][0], "labels" in ranked[0][1]) if ranked else None


def _arrays(file: Path) -> set[str] | None:
    try:
        with ZipFile(file) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, ValueError, NotImplementedError, BadZipFile):
        return None  # it is none of the samples, or damaged


def _seen(file: Path, model: Path, written: Path) -> Path:
    """A file in or below the model's folder, as the declaration is to name it."""
    return written.parent / file.relative_to(model.parent)


def _quoted(path: Path) -> str:
    return json.dumps(path.as_posix(), ensure_ascii=False)


def refuse_to_overwrite(file: Path) -> None:
    """Leave a file alone that is there already.

    Raises:
        InputError: it is.
    """
    if file.exists() or file.is_symlink():
        raise InputError(f"{file} exists and is not touched; --force overwrites it")
