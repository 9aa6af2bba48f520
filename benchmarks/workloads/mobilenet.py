"""A depthwise network like MobileNetV2 (1.1M parameters), trained here on Fashion-MNIST.

Writes OUT/mobilenet/: model.safetensors, arch.py:factory, data.npz (3,000 of the test images) and
model.onnx. Training takes some ten minutes on two cores. Metric: top-1 accuracy.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads.common import export_onnx, load_source, output_folder, write_text
from benchmarks.workloads.fetch import debian

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
EPOCHS, IMAGES = 4, 3000

ARCH = '''"""Inverted residuals with depthwise convolutions, for 28x28 grey images."""

import torch
from torch import nn

WIDTHS = ((24, 1, 1), (40, 2, 2), (80, 2, 2), (128, 2, 2))  # channels, blocks, first stride


class Block(nn.Module):
    """Expand six times, filter each channel, project; residual where shapes allow."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        wide = 6 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Images uint8 or float (N, 1, 28, 28) in 0..255 -> logits (N, 10)."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(1, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6()]
        inputs = 24
        for outputs, blocks, stride in WIDTHS:
            for index in range(blocks):
                layers.append(Block(inputs, outputs, stride if index == 0 else 1))
                inputs = outputs
        layers += [nn.Conv2d(inputs, 1024, 1, bias=False), nn.BatchNorm2d(1024), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(1024, 384)
        self.head = nn.Linear(384, 10)

    def forward(self, image):
        x = self.features((image.float() - 73.0) / 90.0).mean((2, 3))
        return self.head(torch.relu(self.hidden(x)))


def factory():
    """Return the module that the weights are loaded into."""
    return MobileNet()
'''


def main() -> None:
    """Train if there are no weights yet, and write OUT/mobilenet."""
    folder = output_folder("mobilenet", __doc__)
    data = debian("dataset-fashion-mnist") / "usr" / "share" / "datasets" / "fashion-mnist"
    sys.path.insert(0, str(EXAMPLE))
    example = load_source(EXAMPLE / "train.py")
    write_text(folder / "arch.py", ARCH)
    model = load_source(folder / "arch.py").factory()
    images, labels = example.load(data, "t10k")
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        torch.manual_seed(0)
        model = model.to(memory_format=torch.channels_last)
        example.train(
            model,
            *example.load(data, "train"),
            argparse.Namespace(epochs=EPOCHS, batch=128, lr=0.1),
        )
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, weights)
        print(f"{example.accuracy(model, images, labels):.4f} on 10,000 test images")
    chosen = np.random.default_rng(0).permutation(len(images))[:IMAGES]
    np.savez_compressed(
        folder / "data.npz",
        image=images.numpy()[chosen].astype(np.float32),
        labels=labels.numpy()[chosen],
    )
    from safetensors.torch import load_file

    model = load_source(folder / "arch.py").factory()
    model.load_state_dict(load_file(weights))
    dynamic = {"image": {0: "batch"}}
    export_onnx(
        model.eval(), {"image": torch.zeros(2, 1, 28, 28)}, ["logits"], dynamic,
        folder / "model.onnx",
    )  # fmt: skip
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    print(folder)


if __name__ == "__main__":
    main()
