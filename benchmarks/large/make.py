"""Write a large ONNX model with random weights: a stack of residual blocks, its data in a file.

    python benchmarks/large/make.py FOLDER [--bytes 2.5e9]

Writes FOLDER/model.onnx, FOLDER/model.onnx.data and FOLDER/data.npz (a few samples of the input).
One block's weights are in memory at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, EXPANSION, ROWS, SAMPLES = 2048, 4, 4, 6
SIDE_FILE = "model.onnx.data"


def main() -> None:
    """Write the model and its samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=float, default=2.5e9)
    parser.add_argument("--width", type=int, default=WIDTH)
    given = parser.parse_args()
    make(given.folder, int(given.bytes), given.width)


def make(folder: Path, size_bytes: int, width: int = WIDTH) -> Path:
    """Write a model of at least ``size_bytes``, and samples for it; return the model's path.

    Each block is ``x / 2 + swish(x / 2 @ up) @ down``: what transformers spend most weights on,
    with a few nodes that can be folded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    blocks = max(1, -(-size_bytes // (2 * EXPANSION * width * width * 4)))
    nodes, weights = [], []
    with (folder / SIDE_FILE).open("wb") as side:
        for number in range(blocks):
            nodes += _block(number)
            for name, shape in _shapes(number, width).items():
                values = rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[0]))
                weights.append(_external(name, values, side))
    one = numpy_helper.from_array(np.float32(1.0), "one")
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", ROWS, width])],
        [helper.make_tensor_value_info(f"x{blocks}", TensorProto.FLOAT, ["batch", ROWS, width])],
        [*weights, one],
    )
    opset = [helper.make_opsetid("", 17)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    samples = rng.standard_normal((SAMPLES, ROWS, width), np.float32)
    np.savez(folder / "data.npz", x0=samples)
    return path


def _shapes(number: int, width: int) -> dict[str, tuple[int, ...]]:
    wide = EXPANSION * width
    return {f"up{number}": (width, wide), f"down{number}": (wide, width)}


def _block(number: int) -> list[Any]:
    def name(what: str) -> str:
        return f"{what}{number}"

    return [
        helper.make_node("Add", ["one", "one"], [name("two")]),  # foldable
        helper.make_node("Div", [f"x{number}", name("two")], [name("halved")]),
        helper.make_node("MatMul", [name("halved"), name("up")], [name("h")]),
        helper.make_node("Sigmoid", [name("h")], [name("gate")]),
        helper.make_node("Mul", [name("h"), name("gate")], [name("active")]),
        helper.make_node("MatMul", [name("active"), name("down")], [name("y")]),
        helper.make_node("Add", [name("halved"), name("y")], [f"x{number + 1}"]),
    ]


def _external(name: str, values: Any, side: Any) -> Any:
    """Append the values to the side file, and return the tensor that points there."""
    side.write(b"\0" * (-side.tell() % 4096))  # pages, so that it can be mapped
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": SIDE_FILE, "offset": side.tell(), "length": values.nbytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    side.write(values.tobytes())
    return tensor


if __name__ == "__main__":
    main()
