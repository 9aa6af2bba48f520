"""A folder with a small model and its samples, and devices that are not this one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimize.gate.config import Declared, read
from optimize.targets.base import Device

EPYC = Device(
    cpu="AMD EPYC 9654",
    architecture="x86_64",
    isa=("avx2", "avx512_vnni"),
    cores=96,
    granted_cores=2,
    memory_bytes=16 * 10**9,
    os="Linux 6.1",
    python="3.11.7",
)


@pytest.fixture
def epyc() -> Device:
    return EPYC


Declare = Callable[..., Declared]


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    """Write a file and read it."""

    def write(text: str, name: str = "optimize.toml") -> Declared:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return read(file)

    return write


@pytest.fixture
def place(tmp_path: Path, digits_onnx: Path, digits_npz: Path) -> Path:
    """A project: ``net.onnx`` and ``data.npz``, and a declaration that every machine meets."""
    shutil.copy(digits_onnx, tmp_path / "net.onnx")
    shutil.copy(digits_npz, tmp_path / "data.npz")
    (tmp_path / "optimize.toml").write_text(
        '[defaults]\nthreads = 1\ntime_limit = "2m"\nmax_samples = 1000\nchains = ["source"]\n'
        'tolerance = "100%"\n'
        'data = "data.npz"\n\n'
        '[models.net]\nsource = "net.onnx"\nbudget = "p50=100s"\n'
    )
    return tmp_path


Slow = Callable[[Path, Path, int], None]


@pytest.fixture(scope="session")
def slow() -> Slow:
    """Append layers that change nothing to a model's output."""

    def append(source: Path, out: Path, layers: int) -> None:
        model = onnx.load(str(source))
        graph = model.graph
        for node in graph.node:
            node.output[:] = ["slow_0" if name == "logits" else name for name in node.output]
        eye = np.eye(10, dtype=np.float32)
        graph.initializer.append(numpy_helper.from_array(eye, "eye"))
        for index in range(layers):
            after = "logits" if index == layers - 1 else f"slow_{index + 1}"
            graph.node.append(helper.make_node("MatMul", [f"slow_{index}", "eye"], [after]))
        onnx.save(model, str(out))

    return append


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def optimize() -> Run:
    """Run ``python -m optimize`` with the given words in a folder."""

    def run(folder: Path, *words: object, **environment: str) -> Any:
        import os

        clean = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
        return subprocess.run(
            [sys.executable, "-m", "optimize", *map(str, words)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            env={**clean, **environment},
        )

    return run
