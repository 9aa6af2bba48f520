"""Passes do not import what they do not need: each is seconds of every run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import Context
from optimize.passes.chain import Chain

(step,) = Chain.parse("int8{mode=static}").passes
images = [np.full((1, 1, 8, 8), value, np.float32) for value in np.linspace(0, 1, 8)]
samples = Dataset("images", {"image": images}, batch_first=True)
made = step(Model.read(Path(sys.argv[1])), Context(Path(sys.argv[2]), samples, samples))
assert made.changed
print(*sorted({"torch", "transformers", "nncf"} & sys.modules.keys()))
import onnxruntime.tools
print(onnxruntime.tools.infer_input_info.__name__)
"""


def test_static_quantization_imports_no_torch(digits_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, digits_onnx, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Whoever imports onnxruntime's tools after us has them whole.
    assert done.stdout.splitlines()[-2:] == ["", "infer_input_info"]
