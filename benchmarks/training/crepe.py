"""Another architecture from random weights: CREPE tiny learns from CREPE full, without labels.

Trained on synthetic tones of other seeds than those it is judged on (benchmarks.workloads.crepe).
Targets: within 3 points of the teacher at 50 cents, latency at most 0.15x.

    python -m benchmarks.workloads.crepe OUT
    python -m benchmarks.training.crepe OUT [--seconds 150]   # again until it is finished

Each call trains for so many seconds and leaves a checkpoint in OUT/crepe/distilled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.training.common import (
    latency_ratios,
    outputs,
    parse,
    trained_in_pieces,
    verdict,
)
from benchmarks.workloads.common import export_onnx, load_source
from benchmarks.workloads.crepe import WINDOW, tone
from optimize.models.data import Dataset
from optimize.passes.training.batches import Batches
from optimize.passes.training.options import DistillOptions

SAMPLES = 12_000
OPTIONS = DistillOptions(epochs=8, lr=3e-3, patience=0, evaluations=8)


def tones(count: int, seed: int) -> Dataset:
    """Unlabelled frames as the workload makes them."""
    rng = np.random.default_rng(seed)
    frequencies = 50 * 20 ** rng.uniform(0, 1, count)
    frames = [tone(rng, float(frequency))[None] for frequency in frequencies]
    return Dataset("tones", {"x": frames}, None, True)


def main() -> None:
    """Train for a while; when finished, judge."""
    arguments = parse(__doc__)
    folder = Path(arguments.out) / "crepe"
    arch = load_source(folder / "arch.py")
    teacher = arch.full()
    teacher.load_state_dict(torch.load(folder / "full.pth", weights_only=True))
    torch.manual_seed(0)
    student = trained_in_pieces(
        arch.tiny(), teacher, Batches(tones(SAMPLES, 1), 64, 0.05), OPTIONS, folder, arguments
    )
    if student is not None:
        judge(student, folder)


def judge(student: torch.nn.Module, folder: Path) -> None:
    """Accuracy and latency beside the teacher's and the package's own tiny model."""
    metric = load_source(folder / "metric.py").pitch
    path = folder / "distilled" / "model.onnx"
    export_onnx(student, {"x": torch.randn(2, WINDOW)}, ["bins"], {"x": {0: "batch"}}, path)
    with np.load(folder / "data.npz") as data:
        feeds = [{"x": frame[None]} for frame in data["x"]]
        labels = data["labels"]
    paths = [folder / "full.onnx", path, folder / "tiny.onnx"]
    full, distilled, tiny = (float(metric(outputs(p, feeds), labels)) for p in paths)
    ratio = latency_ratios(paths[:2], feeds, 150)[1]
    print(f"teacher {full:.3f}, the package's own tiny {tiny:.3f}, distilled {distilled:.3f}")
    points = 100 * (full - distilled)
    verdict(f"distilled tiny is {points:.1f} points below its teacher", points <= 3, "3")
    verdict(f"latency {ratio}", ratio.p99 <= 0.15, "p99 0.15x")


if __name__ == "__main__":
    main()
