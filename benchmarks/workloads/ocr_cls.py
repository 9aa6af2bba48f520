"""RapidOCR's classifier of upside-down text lines (ONNX) over rendered lines.

Writes OUT/ocr_cls/: model.onnx and data.npz (lines pre-processed as RapidOCR does; label 1
for a line rotated by 180 degrees). Metric: top-1 accuracy.
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.workloads.common import noun_glosses, output_folder
from benchmarks.workloads.fetch import wheel

PACKAGE = "rapidocr_onnxruntime==1.4.4"
HEIGHT, WIDTH = 48, 192
SAMPLES = 1000


def render(text: str, rng: np.random.Generator) -> Image.Image:
    """Draw one line of text: random size, colours, margin, tilt, blur and noise."""
    font = ImageFont.load_default(size=float(rng.integers(16, 40)))
    left, top, right, bottom = font.getbbox(text)
    margin = int(rng.integers(2, 8))
    size = (math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin)
    paper, ink = rng.integers(160, 256, 3), rng.integers(0, 100, 3)
    if rng.random() < 0.3:
        paper, ink = ink, paper
    image = Image.new("RGB", size, tuple(map(int, paper)))
    place = (margin - left, margin - top)
    ImageDraw.Draw(image).text(place, text, font=font, fill=tuple(map(int, ink)))
    tilt = float(rng.uniform(-2, 2))
    image = image.rotate(tilt, Image.Resampling.BILINEAR, fillcolor=tuple(map(int, paper)))
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2))))
    noise = rng.normal(0, rng.uniform(0, 15), (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def preprocess(image: Image.Image) -> np.ndarray:
    """Resize to 48 pixels high and at most 192 wide, scale to [-1, 1], pad by zeros, as BGR."""
    pixels = np.asarray(image)[:, :, ::-1].astype(np.float32)
    width = min(WIDTH, math.ceil(HEIGHT * pixels.shape[1] / pixels.shape[0]))
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    resized = torch.nn.functional.interpolate(planes, (HEIGHT, width), mode="bilinear")
    padded = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    padded[:, :, :width] = (resized[0].numpy() / 255 - 0.5) / 0.5
    return padded


def lines() -> tuple[np.ndarray, np.ndarray]:
    """Return pre-processed lines of a few words of WordNet's glosses, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, SAMPLES)
    arrays = []
    for (_, text), turned in zip(noun_glosses()[:SAMPLES], labels, strict=True):
        words = text.split()
        image = render(" ".join(words[: int(rng.integers(1, 6))]), rng)
        arrays.append(preprocess(image.rotate(180) if turned else image))
    return np.stack(arrays), labels.astype(np.int64)


def main() -> None:
    """Prepare OUT/ocr_cls."""
    folder = output_folder("ocr_cls", __doc__)
    models = wheel(PACKAGE) / "rapidocr_onnxruntime" / "models"
    shutil.copyfile(models / "ch_ppocr_mobile_v2.0_cls_infer.onnx", folder / "model.onnx")
    pixels, labels = lines()
    np.savez_compressed(folder / "data.npz", x=pixels, labels=labels)
    print(folder)


if __name__ == "__main__":
    main()
