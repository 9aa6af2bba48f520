"""Checkpoints that a kill cannot damage, and the fingerprints that tell whose they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimize.passes.base import Context
from optimize.processes.locks import lock

NAME = "distill.pt"
_UNFINISHED = "unfinished"
_FORGOTTEN_S = 14 * 24 * 3600  # after which an unfinished training is no longer waited for


@contextlib.contextmanager
def checkpoint_folder(context: Context, *parts: str) -> Iterator[Path]:
    """Where one training's checkpoints are, so that a later run goes on where this one was killed.

    It is removed at the end, unless the training says by ``leave_unfinished`` that it was cut
    short.

    Args:
        context: of the pass; without a folder that is kept, its own.
        parts: what tells this training from others, besides its data and seed.
    """
    root, lessons = context.checkpoints, context.lessons
    if root is None or lessons is None or not _writable(root):
        yield context.folder
        return
    _sweep(root)
    text = "|".join([*parts, lessons.digest, str(context.seed)])
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:32]
    with _held(folder):
        (folder / _UNFINISHED).unlink(missing_ok=True)
        yield folder
        if not is_unfinished(folder):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Make a folder, and keep others from clearing it away meanwhile, where there are locks."""
    descriptor = None
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        while (descriptor := lock(folder, shared=True, wait=True)) is None:
            folder.mkdir(exist_ok=True)  # it was just cleared away
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def leave_unfinished(folder: Path) -> None:
    """Say that a later run goes on with what is in ``folder``."""
    (folder / _UNFINISHED).touch()


def is_unfinished(folder: Path) -> bool:
    """Whether the training in ``folder`` was cut short."""
    return (folder / _UNFINISHED).exists()


def _writable(root: Path) -> bool:
    """A cache that cannot be written must not stop training."""
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
    return os.access(root, os.W_OK)


def _sweep(root: Path) -> None:
    """Remove what nobody has gone on with for a long time."""
    for folder in root.glob("*"):
        with contextlib.suppress(OSError):
            forgotten = time.time() - folder.stat().st_mtime > _FORGOTTEN_S
            if forgotten and (descriptor := lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to a file beside the old one, then put it in its place in one step."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{NAME}.new"
    with fresh.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(folder / NAME)


def load_checkpoint(folder: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """Return the saved state, or None where there is none or it belongs to another training."""
    import torch

    if folder is None or not (folder / NAME).is_file():
        return None
    try:
        state = torch.load(folder / NAME, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001  an unreadable file is as good as none: training begins anew
        return None
    same = isinstance(state, dict) and state.get("fingerprint") == fingerprint
    return dict(state) if same else None


def digest_of(module: Any) -> str:
    """SHA-256 over a module's parameters and buffers with their names and shapes."""
    import torch

    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if hasattr(value, "detach"):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
            digest.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
