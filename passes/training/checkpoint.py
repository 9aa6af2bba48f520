"""Checkpoints that a kill cannot damage, and the fingerprints that tell whose they are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

NAME = "distill.pt"


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
