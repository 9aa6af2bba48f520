"""What the user's file is, told by its content, and how it becomes something to export."""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optimize.errors import InputError, first_cause
from optimize.models.checkpoint import build, load_checkpoint, load_into, load_safetensors
from optimize.models.model import Model, file_digest
from optimize.models.usercode import load_function

Kind = Literal[
    "onnx", "torchscript", "exported_program", "checkpoint", "safetensors", "huggingface"
]


@dataclass(frozen=True)
class Source:
    """The user's model as a file.

    Attributes:
        path: a file, or a folder for Hugging Face models.
        kind: what it is by content; ``checkpoint`` is any ``torch.save`` file.
        digest: SHA-256 of its content (of the weights and configuration for a folder).
        size_bytes: of the same files.
        model: what was read of it, for ONNX; None for what must be exported.
        stamps: of its files when it was read, by which a later change shows.
    """

    path: Path
    kind: Kind
    digest: str
    size_bytes: int
    model: Model | None = None
    stamps: tuple[tuple[str, int, int, int], ...] = ()

    @property
    def unchanged(self) -> bool:
        """Whether its files are still those that were read."""
        return self.stamps == _stamps([Path(name) for name, *_ in self.stamps])

    def check(self) -> None:
        """Refuse a source that is not what its digest tells any more.

        Raises:
            InputError: a file of it was replaced, written to or removed.
        """
        if not self.unchanged:
            raise InputError(f"{self.path} changed while it was in use; run the command again")


@dataclass(frozen=True)
class Loaded:
    """A source in memory, ready to export.

    Attributes:
        program: an ``nn.Module``, ``ScriptModule`` or ``ExportedProgram``; a ``Model`` for ONNX.
        inputs: names of the inputs it takes, in order.
        required: those without a default value.
        arch: the user's ``file.py:factory`` that defines its classes; None for none.
    """

    source: Source
    program: Any
    inputs: tuple[str, ...]
    required: tuple[str, ...]
    arch: str | None = None


def detect(path: Path) -> Source:
    """Tell what ``path`` is by its content.

    Raises:
        InputError: it does not exist, is empty, cut short or no model.
    """
    if path.is_dir():
        return _detect_folder(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty")
    before, kind = _stamps([path]), _kind(path)
    if kind == "onnx":
        model = Model.read(path)
        found = Source(path, kind, model.digest, model.size_bytes, model, _stamps(model.members))
    else:
        found = Source(path, kind, file_digest(path), path.stat().st_size, stamps=before)
    if not set(before) <= set(found.stamps):
        raise InputError(f"{path} changed while it was in use; run the command again")
    return found


def _stamps(files: Sequence[Path]) -> tuple[tuple[str, int, int, int], ...]:
    """Name, size, time of change and number of every file; -1 for what is not there."""
    stamps = []
    for file in files:
        try:
            told = file.stat()
            stamps.append((str(file), told.st_size, told.st_mtime_ns, told.st_ino))
        except OSError:
            stamps.append((str(file), -1, -1, -1))
    return tuple(stamps)


def load(source: Source, arch: str | None, trusted: bool) -> Loaded:
    """Bring a source into memory.

    Args:
        source: from :func:`detect`.
        arch: ``file.py:factory`` for weights without an architecture.
        trusted: whether a pickle may run code.

    Raises:
        InputError: it cannot be loaded, or needs ``--arch`` or ``--trust-pickle``.
    """
    if source.model is not None:
        names = tuple(spec.name for spec in source.model.signature.inputs)
        return Loaded(source, source.model, names, names)
    _require_torch(source)
    if source.kind == "torchscript":
        return _load_torchscript(source)
    if source.kind == "exported_program":
        return _load_exported(source)
    if source.kind == "huggingface":
        from optimize.models.huggingface import load_folder

        module, inputs = load_folder(source.path)
        return Loaded(source, module, inputs, inputs[:1])
    return _load_weights(source, arch, trusted)


def _detect_folder(path: Path) -> Source:
    weights = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file() or not weights:
        raise InputError(
            f"{path} is a folder without config.json and *.safetensors; "
            "name a model file, or a Hugging Face folder"
        )
    files = [path / "config.json", *weights]
    stamps = _stamps(files)
    size = sum(file.stat().st_size for file in files)
    return Source(path, "huggingface", file_digest(*files), size, stamps=stamps)


def _kind(path: Path) -> Kind:
    with path.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(b"PK"):
        return _zip_kind(path)
    if head.startswith(b"\x80"):
        return "checkpoint"  # the legacy format: bare pickles
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return _safetensors_kind(path, int.from_bytes(head[:8], "little"))
    if head[:1] == b"\x08" or path.suffix == ".onnx":
        return "onnx"
    raise InputError(
        f"{path} is no model: neither TorchScript, a torch.save file, .pt2, safetensors nor ONNX"
    )


def _zip_kind(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is cut short or damaged: its zip directory is missing") from error
    tails = {name.partition("/")[2] for name in names}
    if "archive_format" in tails or "serialized_exported_program.json" in names:
        return "exported_program"
    if "constants.pkl" in tails and any(tail.startswith("code/") for tail in tails):
        return "torchscript"
    if "data.pkl" in tails:
        return "checkpoint"
    raise InputError(f"{path} is a zip archive, but no PyTorch file")


def _safetensors_kind(path: Path, length: int) -> Kind:
    with path.open("rb") as stream:
        stream.seek(8)
        header = stream.read(length)
    try:
        json.loads(header)
    except ValueError:
        raise InputError(f"{path} is no complete safetensors file: its header is damaged") from None
    return "safetensors"


def _require_torch(source: Source) -> None:
    try:
        import torch  # noqa: F401  only to find out, early, whether it is there
    except ImportError:
        raise InputError(f"{source.path} needs PyTorch; install tailfit[torch]") from None


def _load_torchscript(source: Source) -> Loaded:
    import torch

    try:
        module: Any = torch.jit.load(  # type: ignore[no-untyped-call]
            str(source.path), map_location="cpu"
        ).eval()
    except Exception as error:
        raise InputError(f"{source.path} cannot be loaded: {first_cause(error)}") from error
    arguments = module.forward.schema.arguments[1:]
    names = tuple(argument.name for argument in arguments)
    required = tuple(a.name for a in arguments if not a.has_default_value())
    return Loaded(source, module, names, required)


def _load_exported(source: Source) -> Loaded:
    import torch

    try:
        program = torch.export.load(str(source.path))
    except Exception as error:
        raise InputError(f"{source.path} cannot be loaded: {first_cause(error)}") from error
    names = tuple(program.graph_signature.user_inputs)
    return Loaded(source, program, names, names)


def _load_weights(source: Source, arch: str | None, trusted: bool) -> Loaded:
    import torch

    factory = load_function(arch, "--arch") if arch else None
    if source.kind == "safetensors":
        saved: Any = load_safetensors(source.path)
    else:
        saved = load_checkpoint(source.path, trusted)
    if isinstance(saved, torch.nn.Module):
        return _module(source, saved.eval())
    if not isinstance(saved, Mapping):
        raise InputError(f"{source.path} holds a {type(saved).__name__}, no model or state_dict")
    if factory is None or arch is None:
        raise InputError(
            f"{source.path} holds weights without an architecture; "
            "add --arch file.py:factory, a function that returns the module"
        )
    loaded = _module(source, load_into(build(factory, arch), saved, source.path))
    file, _, name = arch.rpartition(":")
    return replace(loaded, arch=f"{Path(file).resolve()}:{name}")


def _module(source: Source, module: Any) -> Loaded:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [
        p for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds
    ]
    required = tuple(p.name for p in parameters if p.default is inspect.Parameter.empty)
    return Loaded(source, module, tuple(p.name for p in parameters), required)
