"""The command as a user runs it, on the shipped model and its real data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shipped import FASHION, Command


@pytest.fixture(scope="session")
def optimize() -> Command:
    """Run ``python -m optimize`` with the given words."""

    def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "optimize", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "COLUMNS": "200"},
            **options,  # type: ignore[call-overload]
        )

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 labelled images to evaluate on, beside 60 others to calibrate on."""
    folder = tmp_path_factory.mktemp("data")
    with np.load(FASHION / "data.npz") as stored:
        image, labels = stored["image"], stored["labels"]
    np.savez(folder / "val.npz", image=image[:400], labels=labels[:400])
    np.savez(folder / "cal.npz", image=image[400:460])
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped network as ONNX, exported by torch without this project."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    sys.path.insert(0, str(FASHION))
    try:
        from arch import resnet  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FASHION))
    network = resnet()
    network.load_state_dict(load_file(FASHION / "resnet.safetensors"))
    path = tmp_path_factory.mktemp("model") / "fashion.onnx"
    torch.onnx.export(
        network.eval(),
        (torch.zeros((2, 1, 28, 28), dtype=torch.uint8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path
