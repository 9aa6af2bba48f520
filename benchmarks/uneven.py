"""A twin of a convolutional network that computes the same with uneven channels, and its INT8.

Training with batch normalization can leave a depthwise network with channels whose ranges differ
by factors of hundreds, which one scale for a whole tensor cannot resolve; ours, trained for
minutes, has none. So every output channel that only homogeneous functions part from the next layer
is scaled by a random power of two and the next layer's input channel by its inverse: exact, and as
uneven as asked for. Then ``optimize compare`` judges static INT8 on it: one scale for each tensor,
one for each channel, and both after ``equalize``.

    python -m benchmarks.workloads.mobilenet OUT
    python -m benchmarks.uneven OUT/mobilenet [--octaves 4] [--seconds 10m]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from optimize.passes.equalize import fold_batch_norms, pairs
from optimize.results.report import Report

CHAINS = (
    "fold,fuse,int8{mode=static,per=tensor}",
    "fold,fuse,int8{mode=static}",
    "fold,equalize,fuse,int8{mode=static,per=tensor}",
    "fold,equalize,fuse,int8{mode=static}",
)


def main() -> None:
    """Write the twin, compare the strategies on both networks, print what each loses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with model.onnx and data.npz")
    parser.add_argument("--octaves", type=float, default=4, help="channels differ by 2**±octaves")
    parser.add_argument("--seconds", default="10m", help="time limit of each comparison")
    arguments = parser.parse_args()
    twin = arguments.folder / "uneven.onnx"
    original = arguments.folder / "model.onnx"
    count = write_twin(original, twin, arguments.octaves)
    print(f"{count} pairs of layers scaled; largest difference {_difference(original, twin):.1e}")
    for path in (original, twin):
        report = _compared(path, arguments.folder / "data.npz", arguments.seconds)
        print(path.name)
        for row in report.variants:
            if row.accuracy and row.speedup:
                change = f"{row.accuracy.value:.4f} ({100 * row.accuracy.change:+.2f} points)"
                print(f"  {row.chain:50} {row.accuracy.metric} {change}, {row.speedup:.2f}x")


def write_twin(source: Path, target: Path, octaves: float) -> int:
    """Scale channels by 2**U(-octaves, octaves) without changing what the network computes.

    Returns:
        How many pairs of layers were scaled.
    """
    proto, rng = onnx.load(source), np.random.default_rng(0)
    fold_batch_norms(proto)
    found = list(pairs(proto))
    for pair in found:
        powers = rng.uniform(-octaves, octaves, pair.first.output_ranges().size)
        factor = np.exp2(np.round(powers)).astype(np.float32)
        pair.first.scale_outputs(factor)
        pair.second.scale_inputs(1 / factor)
    for pair in found:
        pair.write()
    onnx.save(proto, target)
    return len(found)


def _difference(one: Path, other: Path) -> float:
    """The largest difference of their outputs on noise."""
    sessions = [onnxruntime.InferenceSession(path) for path in (one, other)]
    given = sessions[0].get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    pixels = np.random.default_rng(1).integers(0, 256, shape)
    feed = pixels.astype(np.uint8 if "uint8" in given.type else np.float32)
    first, second = (session.run(None, {given.name: feed})[0] for session in sessions)
    return float(np.abs(first - second).max())


def _compared(model: Path, data: Path, limit: str) -> Report:
    words = [sys.executable, "-m", "optimize", str(model), "--data", str(data), "--threads", "1"]
    chains = [word for chain in CHAINS for word in ("--chain", chain)]
    words += ["--budget", "p99=1s", "--objective", "accuracy", "--time-limit", limit]
    done = subprocess.run([*words, *chains, "--json"], capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    return Report.from_json(done.stdout)


if __name__ == "__main__":
    main()
