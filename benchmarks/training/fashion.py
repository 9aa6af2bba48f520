"""The shipped Fashion-MNIST ResNet, pruned, distilled on the training images, quantized.

Judged on all 10,000 test images; trained without their labels or any other. Targets: p99 at most
0.5x of the unpruned at a drop of at most 1 point, within 10 minutes on 2 cores; chained with
static INT8 at most 0.30x.

    python -m benchmarks.training.fashion OUT [--seconds 150]   # again until it is finished
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.training.common import (
    host_isa,
    int8_static,
    latency_ratios,
    outputs,
    parse,
    trained_in_pieces,
    verdict,
)
from benchmarks.workloads.common import export_onnx, load_source
from benchmarks.workloads.fetch import debian
from optimize.models.data import Dataset
from optimize.passes.pruning.select import convolution_block
from optimize.passes.training.batches import Batches
from optimize.passes.training.options import DistillOptions
from optimize.passes.training.prune import prune_module

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
RATIOS = (0.6, 0.75)
OPTIONS = DistillOptions(steps=1600, lr=3e-3, patience=0)


def source() -> torch.nn.Module:
    """The shipped network with its weights."""
    net: torch.nn.Module = load_source(EXAMPLE / "arch.py").resnet()
    net.load_state_dict(load_file(EXAMPLE / "resnet.safetensors"))
    return net.eval()


def images(split: str) -> Dataset:
    """The Debian package's images: ``train`` (60,000) or ``t10k`` (10,000), with labels."""
    folder = debian("dataset-fashion-mnist") / "usr" / "share" / "datasets" / "fashion-mnist"
    read = load_source(EXAMPLE / "train.py").load
    pixels, labels = read(folder, split)
    return Dataset(split, {"image": list(pixels.numpy()[:, None])}, labels.numpy(), True)


def accuracy(path: Path, data: Dataset) -> float:
    """Share of images whose class is right, by onnxruntime."""
    feeds = [
        {"image": np.concatenate(data.inputs["image"][i : i + 100])}
        for i in range(0, len(data), 100)
    ]
    scores = np.concatenate(outputs(path, feeds))
    return float((scores.argmax(1) == data.labels).mean())


def export(module: torch.nn.Module, path: Path) -> Path:
    """Export with a dynamic batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    example = {"image": torch.zeros(2, 1, 28, 28, dtype=torch.uint8)}
    export_onnx(module, example, ["logits"], {"image": {0: "n"}}, path)
    return path


def main() -> None:
    """Prune by each ratio, train for a while; when all are finished, judge."""
    import sys

    sys.path.insert(0, str(EXAMPLE))  # the example's train.py imports its arch.py
    arguments = parse(__doc__)
    teacher = source()
    train, test = images("train"), images("t10k")
    batches = Batches(train, 128, 0.02)
    example = next(batches.validation()).args
    folder = Path(arguments.out) / "fashion"
    paths = {"source": export(teacher, folder / "source.onnx")}
    for ratio in RATIOS:
        scratch = folder / f"{ratio:g}"
        scratch.mkdir(parents=True, exist_ok=True)
        block = convolution_block(host_isa())
        pruned, notes = prune_module(teacher, example, ratio, multiple=block)
        print("; ".join(notes))
        student = trained_in_pieces(pruned, teacher, batches, OPTIONS, scratch, arguments)
        if student is None:
            return
        path = export(student, scratch / "distilled.onnx")
        paths[f"pruned {ratio:g}"] = path
        paths[f"pruned {ratio:g}, int8"] = int8_static(path, train.take(range(128)), scratch / "i8")
    judge(paths, test)


def judge(paths: dict[str, Path], test: Dataset) -> None:
    """Accuracy and latency of all beside the source's."""
    scores = {what: accuracy(path, test) for what, path in paths.items()}
    feeds = [{"image": image} for image in test.inputs["image"][:256]]
    ratios = latency_ratios(list(paths.values()), feeds, 4000)
    for (what, score), ratio in zip(scores.items(), ratios, strict=True):
        drop = 100 * (scores["source"] - score)
        most = 0.3 if "int8" in what else 0.5
        text = f"{what}: top1 {score:.4f}, drop {drop:.2f} points, {ratio}"
        if what == "source":
            print(text)
        else:
            verdict(text, drop <= 1 and ratio.p99 <= most, f"drop 1, p99 {most}x")


if __name__ == "__main__":
    main()
