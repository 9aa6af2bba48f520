"""Is a model that got 30% slower stopped by ``optimize check --against``, and one 1% slower not.

The shipped Fashion-MNIST network gets linear layers that change nothing (an identity on its
logits), as many as make it slower by 1% and by 30% on this machine. Each run is the command as a
build runs it, in a process of its own, against a baseline made once. Target: 20 of 20 stopped, and
20 of 20 let by, on a machine that is not quiet.

    python -m benchmarks.gate [--runs 20] [--slow 1 30] [--baseline MODEL.onnx --data DATA.npz]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from optimize.errors import EXIT_KEPT, EXIT_NONE

FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
PROBE_LAYERS = 100
SAMPLES = 400
CONFIG = """\
[models.net]
source = "net.onnx"
data = "data.npz"
budget = "p99=10s"
chains = ["source"]
threads = 1
time_limit = "5m"
"""


def main() -> None:
    """Run all and print each, then how many were stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--slow", type=float, nargs="+", default=[1, 30], help="percent")
    parser.add_argument("--baseline", type=Path, help="an ONNX model with one output")
    parser.add_argument("--data", type=Path, help="its samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "optimize.toml").write_text(CONFIG)
        original = place / "original.onnx"
        if arguments.baseline:
            shutil.copy(arguments.baseline, original)
            shutil.copy(arguments.data, place / "data.npz")
        else:
            _shipped(original, place / "data.npz")
        layers = _layers(place, original, arguments.slow)
        for percent in arguments.slow:
            print(f"{percent:g}% slower: {layers[percent]} layers", flush=True)
        _make_baseline(place, original)
        found: dict[float, list[int]] = {percent: [] for percent in arguments.slow}
        for number in range(arguments.runs):
            for percent in arguments.slow:
                begun = time.monotonic()
                slowed(original, place / "net.onnx", layers[percent])
                code = _check(place)
                found[percent].append(code)
                seconds = time.monotonic() - begun
                text = f"run {number + 1:2}, {percent:g}% slower: exit {code}, {_ratios(place)}"
                print(f"{text}, {seconds:.0f} s", flush=True)
        for percent, codes in found.items():
            stopped, passed = (codes.count(code) for code in (EXIT_NONE, EXIT_KEPT))
            print(
                f"{percent:g}% slower: {stopped} of {len(codes)} stopped, {passed} let by, "
                f"{len(codes) - stopped - passed} undecided or in error"
            )


def slowed(original: Path, out: Path, layers: int) -> None:
    """Append linear layers that change nothing to a model's first output."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(original))
    graph = model.graph
    name = graph.output[0].name
    width = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    for node in graph.node if layers else ():
        for place, value in enumerate(node.output):
            if value == name:
                node.output[place] = "slow_0"
    if layers:
        identity = np.eye(width, dtype=np.float32)
        graph.initializer.append(numpy_helper.from_array(identity, "slow_identity"))
    for number in range(layers):
        after = name if number == layers - 1 else f"slow_{number + 1}"
        inputs = [f"slow_{number}", "slow_identity"]
        graph.node.append(helper.make_node("MatMul", inputs, [after]))
    onnx.save(model, str(out))


def _layers(place: Path, original: Path, slow: list[float]) -> dict[float, int]:
    """How many layers make the model slower by so many percent here."""
    shutil.copy(original, place / "net.onnx")
    _make_baseline(place, original)
    slowed(original, place / "net.onnx", PROBE_LAYERS)
    _check(place)
    share = (_p50(place) - 1) / PROBE_LAYERS
    print(f"a layer takes {share:.2%} of a call")
    return {percent: max(1, round(percent / 100 / share)) for percent in slow}


def _make_baseline(place: Path, original: Path) -> None:
    shutil.copy(original, place / "net.onnx")
    shutil.rmtree(place / "base", ignore_errors=True)
    code = _optimize(place, "--out", "base")
    if code != EXIT_KEPT:
        sys.exit(f"the baseline was not kept: exit {code}")


def _check(place: Path) -> int:
    (place / "out" / "net" / "regression.json").unlink(missing_ok=True)
    return _optimize(place, "--out", "out", "--against", "base")


def _optimize(place: Path, *words: str) -> int:
    command = [sys.executable, "-m", "optimize", "check", "--no-cache", "--quiet", *words]
    return subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL).returncode


def _p50(place: Path) -> float:
    return float(_regression(place)["ratios"][0]["value"])


def _ratios(place: Path) -> str:
    if not (place / "out" / "net" / "regression.json").is_file():
        return "not compared"
    ratios = _regression(place)["ratios"]
    words = [f"{r['quantity']} {r['value']:.3f} ({r['low']} – {r['high']})" for r in ratios]
    return f"{', '.join(words)} after {ratios[0]['chunks']} chunks"


def _regression(place: Path) -> dict[str, list[dict[str, float]]]:
    text = (place / "out" / "net" / "regression.json").read_text()
    found: dict[str, list[dict[str, float]]] = json.loads(text)
    return found


def _shipped(path: Path, data: Path) -> None:
    """The example as ONNX, and some of its samples."""
    import torch
    from safetensors.torch import load_file

    sys.path.insert(0, str(FASHION))
    from arch import resnet

    network = resnet()
    network.load_state_dict(load_file(FASHION / "resnet.safetensors"))
    image = torch.zeros((1, 1, 28, 28), dtype=torch.uint8)
    torch.onnx.export(
        network.eval(), (image,), str(path), input_names=["image"], output_names=["logits"],
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    with np.load(FASHION / "data.npz") as stored:
        np.savez(data, image=stored["image"][:SAMPLES], labels=stored["labels"][:SAMPLES])


if __name__ == "__main__":
    main()
