"""The result folder: written whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimize.errors import InputError, OptimizeError
from optimize.models.model import FILE_NAME, Model, Signature, file_digest
from optimize.processes.scratch import made, scratch_folder

MANIFEST = "manifest.json"
REPORT = "report.json"
_MARK = "tailfit"


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written or is not ours, before any work is done.

    Raises:
        InputError: it is a file, holds something else, or its parent cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"--out {folder} exists and is no folder; name another")
    if folder.is_dir() and any(folder.iterdir()) and not _ours(folder):
        raise InputError(
            f"--out {folder} exists and holds something else, which is not touched; "
            "name another folder"
        )
    if folder.resolve() == Path.cwd():
        raise InputError(f"--out {folder} is the folder that you are in; name another")
    _recover(folder)
    parent = _existing_parent(folder)
    try:
        tempfile.TemporaryFile(dir=parent).close()  # permissions do not tell of everything
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be created: {parent} is not a writable folder"
        ) from error


def write(
    folder: Path,
    report_json: str,
    manifest: dict[str, Any],
    artefact: Model | None,
    extra: Mapping[str, str | bytes],
) -> Path | None:
    """Write the folder beside its place, then move it there in one step.

    Args:
        folder: its place; an earlier result there is replaced.
        report_json: the text of ``report.json``.
        manifest: what the result was made of; digests of the files are added.
        artefact: the chosen model; None if none was kept.
        extra: further files by name.

    Returns:
        The path of the model in the folder; None without one.

    Raises:
        OptimizeError: the disk is full or not writable; the earlier result is left as it was.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder.parent, _staging(folder)) as staging:
            _fill(staging / "new", report_json, manifest, artefact, extra)
            _swap(staging / "new", folder)
    except OSError as error:
        raise OptimizeError(f"{folder} cannot be written: {error.strerror}") from error
    return folder / file_name(artefact) if artefact else None


def _fill(
    folder: Path,
    report_json: str,
    manifest: dict[str, Any],
    artefact: Model | None,
    extra: Mapping[str, str | bytes],
) -> None:
    folder.mkdir()
    if artefact is not None:
        _copy(artefact, folder)
    for name, content in {REPORT: report_json + "\n", **extra}.items():
        _write(folder / name, content)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    entries = {"tool": _MARK, **manifest, "files": digests}
    _write(folder / MANIFEST, json.dumps(entries, indent=2) + "\n")


def file_name(artefact: Model) -> str:
    """What the file to load is called in a result folder."""
    return FILE_NAME if artefact.format == "onnx" else f"model{artefact.path.suffix}"


def is_result(folder: Path) -> bool:
    """Whether a folder was written by :func:`write`."""
    return folder.is_dir() and _ours(folder)


def changed(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Which of the files, given with their digests, a folder does not hold as they were written."""
    return [
        name
        for name, digest in files.items()
        if Path(name).is_absolute()
        or ".." in Path(name).parts
        or not (folder / name).is_file()
        or file_digest(folder / name) != digest
    ]


def check_evidence(folder: Path, names: Sequence[str]) -> None:
    """See to it that these files are as the run wrote them.

    Raises:
        InputError: one was changed since, or the folder is no result.
    """
    if not is_result(folder):
        raise InputError(
            f"{folder} holds no {MANIFEST} of a result; name a folder that optimize has written"
        )
    written = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("files")
    digests = written if isinstance(written, dict) else {}
    for name in changed(folder, {name: str(digests.get(name, "")) for name in names}):
        raise InputError(f"{folder} is damaged: {name} is missing or was changed since")


def remove(folder: Path) -> None:
    """Remove a folder if it was written by :func:`write`."""
    if is_result(folder):
        shutil.rmtree(folder, ignore_errors=True)


def read_artefact(folder: Path, signature: Signature) -> tuple[Model, str]:
    """The model in a result folder, with its options, and the runtime that serves it.

    Args:
        folder: for which :func:`is_result` holds.
        signature: of the source, for formats that do not tell.

    Raises:
        InputError: it holds no model, or a damaged one.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    name = manifest.get("model", FILE_NAME)
    if manifest.get("chain") is None or not (folder / name).is_file():
        raise InputError(f"{folder} holds no model: no variant was kept when it was made")
    if manifest.get("format", "onnx") == "onnx":
        model = Model.read(folder / name)
    else:
        members = [folder / file for file in manifest["members"]]
        model = Model.of(manifest["format"], members, signature)
    if model.digest != manifest["model_digest"]:
        raise InputError(f"{folder} is damaged: {name} was changed since")
    return model.configured(manifest.get("config", {})), str(manifest["runtime"])


def members(artefact: Model) -> list[str]:
    """Names in the result folder of all files of a model."""
    return [_name(artefact, file) for file in artefact.files]


def _name(artefact: Model, file: Path) -> str:
    if file == artefact.path:
        return file_name(artefact)
    if artefact.format != "onnx":
        return f"model{file.suffix}"
    # External data stays where the graph says it is, relative to the graph.
    return file.relative_to(artefact.path.parent).as_posix()


def add(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Put files into a folder; a result's manifest learns their digests.

    Each file is replaced in one step. One that is cut short by a full disk is not left behind.

    Raises:
        OptimizeError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _replace(folder / name, content)
        if _ours(folder):
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            manifest["files"] |= {name: file_digest(folder / name) for name in files}
            _replace(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    except OSError as error:
        raise OptimizeError(f"{folder} cannot be written: {error.strerror}") from error


def _replace(file: Path, content: str | bytes) -> None:
    staging = file.with_name(f".{file.name}.new")
    try:
        _write(staging, content)
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)


def _write(file: Path, content: str | bytes) -> None:
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        file.write_bytes(content)


def _copy(artefact: Model, folder: Path) -> None:
    for file in artefact.files:
        name = _name(artefact, file)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``, whose content is left in the place of ``new``.

    Linux exchanges them in one step; elsewhere, a failure between two moves is undone.
    """
    if not folder.exists():
        new.rename(folder)
        return
    if _exchanged(new, folder):
        return
    old = new.with_name("old")
    folder.rename(old)  # killed here, `_recover` brings it back
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise


def _recover(folder: Path) -> None:
    """Put an earlier result back that a killed run had moved out of the way."""
    for staging in [] if folder.exists() else made(folder.parent, _staging(folder)):
        if (staging / "old").is_dir():
            (staging / "old").rename(folder)
            return


def _staging(folder: Path) -> str:
    return f".{folder.name}.writing-"


def _exchanged(first: Path, second: Path) -> bool:
    """Whether renameat2(2) has exchanged two paths."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def _ours(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return isinstance(content, dict) and content.get("tool") == _MARK
    return False


def _existing_parent(folder: Path) -> Path:
    parent = folder.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    return parent
