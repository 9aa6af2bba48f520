"""Which multiple of channels pays: time of a layer by its width, one thread, by onnxruntime.

Chains of equal 3x3 convolutions and of matrix products are timed at every width from 16 to 64
(convolutions) and 256 to 320 (products) in steps of 4; printed is the time relative to the next
multiple of 16 above, so that anything at or over 1 saves nothing.

    python -m benchmarks.training.widths
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.training.common import latency_ratios

_LAYERS = 4


def convolutions(channels: int, path: Path, size: int = 28) -> Path:
    """Write a chain of 3x3 convolutions with Relu."""
    rng = np.random.default_rng(0)
    shape = (channels, channels, 3, 3)
    nodes, weights, last = [], [], "x"
    for layer in range(_LAYERS):
        scaled = (rng.standard_normal(shape) / (9 * channels) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(scaled, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    return _saved(nodes, weights, [1, channels, size, size], last, path)


def products(width: int, path: Path, rows: int = 128) -> Path:
    """Write a chain of square matrix products with Relu."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(_LAYERS):
        scaled = (rng.standard_normal((width, width)) / width**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(scaled, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"c{layer}"]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    return _saved(nodes, weights, [1, rows, width], last, path)


def _saved(nodes: list, weights: list, shape: list[int], last: str, path: Path) -> Path:
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(last, kind, shape)],
        weights,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, make, first, last in (
            ("convolution 3x3", convolutions, 16, 64),
            ("matrix product", products, 256, 320),
        ):
            times = {}
            for width in range(first, last + 1, 4):
                path = make(width, folder / f"{width}.onnx")
                batch = [1, width, 28, 28] if make is convolutions else [1, 128, width]
                feed = {"x": np.random.default_rng(1).standard_normal(batch).astype(np.float32)}
                times[width] = latency_ratios([path], [feed], 60)[0].p50_ms
            for width, value in times.items():
                above = times[-(-width // 16) * 16]
                print(f"{what}, width {width}: {value:.3f} ms, {value / above:.2f}x of the next 16")


if __name__ == "__main__":
    main()
