"""Runs of the command in a process of its own, and what each leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Running
from shipped import FASHION


@dataclass(frozen=True)
class Done:
    """A finished run.

    Attributes:
        left: what this project left in the folder for temporary files, which was empty before.
    """

    code: int
    stdout: str
    stderr: str
    left: tuple[str, ...]


Run = Callable[..., Done]


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"}


@pytest.fixture(scope="session")
def optimize(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run ``optimize`` with the given words; its temporary files go to a folder of their own."""

    def run(*words: Any, **options: Any) -> Done:
        temporary = tmp_path_factory.mktemp("tmp")
        done = subprocess.run(
            [sys.executable, "-m", "optimize", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            env=environment(temporary),
            **options,
        )
        left = tuple(path.name for path in temporary.glob("optimize-*"))
        return Done(done.returncode, done.stdout, done.stderr, left)

    return run


@pytest.fixture(scope="session")
def digits_script(digits_net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network as TorchScript."""
    import torch

    path = tmp_path_factory.mktemp("script") / "digits.pt"
    torch.jit.script(digits_net).save(str(path))
    return path


@pytest.fixture(scope="session")
def digits_weights(digits_net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights alone."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(digits_net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images for the shipped network to evaluate on, with labels, and 60 to calibrate on."""
    folder = tmp_path_factory.mktemp("fashion")
    with np.load(FASHION / "data.npz") as stored:
        image, labels = stored["image"], stored["labels"]
    np.savez(folder / "val.npz", image=image[:400], labels=labels[:400])
    np.savez(folder / "cal.npz", image=image[400:460])
    return folder


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    running: list[Running] = []

    def begin(*words: Any) -> Running:
        (tmp_path / "tmp").mkdir(exist_ok=True)
        running.append(Running(list(words), tmp_path / "tmp"))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
