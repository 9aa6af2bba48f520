"""Time an ONNX model by a plain onnxruntime loop and measure its accuracy: an oracle.

Reads the same data as the command does but shares no code with it. Prints the latencies
p50 and p99 of single samples, and the metric's value over all samples.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Sample = dict[str, np.ndarray]
LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def open_session(arguments: argparse.Namespace) -> Any:
    """Return a session with the given threads and graph level."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = LEVELS[arguments.level]
    model = str(arguments.model)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_folder(folder: Path) -> tuple[list[Sample], list[Any]]:
    """Read one complete sample from each .npz."""
    samples, labels = [], []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            samples.append({name: arrays[name] for name in arrays.files if name != "labels"})
            labels.append(arrays["labels"] if "labels" in arrays.files else None)
    return samples, labels


def read_file(path: Path, session: Any) -> tuple[list[Sample], list[Any]]:
    """Cut the arrays of one .npz into samples, by the ranks of the model's inputs."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    labels = arrays.pop("labels", None)
    if len(arrays) == 1:
        arrays = {session.get_inputs()[0].name: next(iter(arrays.values()))}
    ranks = {item.name: len(item.shape) for item in session.get_inputs()}
    count = len(next(iter(arrays.values())))
    samples = []
    for index in range(count):
        sample = {}
        for name, array in arrays.items():
            cut = slice(index, index + 1) if array.ndim == ranks[name] else index
            sample[name] = np.asarray(array[cut])
        samples.append(sample)
    return samples, list(labels) if labels is not None else [None] * count


def stacked(arrays: list[np.ndarray]) -> Any:
    """Stack one output over samples (joining batch axes of one), or a list if ragged."""
    if len({array.shape for array in arrays}) > 1:
        return arrays
    return np.concatenate(arrays) if arrays[0].shape[:1] == (1,) else np.stack(arrays)


def accuracy(outputs: Any, labels: np.ndarray) -> float:
    """Return top-1 accuracy."""
    scores = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
    best = scores.reshape(len(labels), -1).argmax(axis=1)
    return float((best == labels.reshape(-1)).mean())


def named_metric(reference: str) -> Callable[[Any, np.ndarray], float]:
    """Return the function that `file.py:function` names, or top-1 accuracy."""
    if reference == "accuracy":
        return accuracy
    path, _, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location("metric", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Any, np.ndarray], float] = getattr(module, name)
    return function


def measure(session: Any, samples: list[Sample], runs: int, warmup: int) -> np.ndarray:
    """Return `runs` latencies in milliseconds, cycling over the samples."""
    taken = []
    for index in range(warmup + runs):
        feed = samples[index % len(samples)]
        start = time.perf_counter_ns()
        session.run(None, feed)
        taken.append((time.perf_counter_ns() - start) / 1e6)
    return np.array(taken[warmup:])


def score(session: Any, samples: list[Sample], labels: list[Any], reference: str) -> float:
    """Return the metric over all samples, each run alone."""
    results = [session.run(None, sample) for sample in samples]
    names = [item.name for item in session.get_outputs()]
    outputs = {name: stacked([row[i] for row in results]) for i, name in enumerate(names)}
    given = next(iter(outputs.values())) if len(outputs) == 1 else outputs
    return float(named_metric(reference)(given, np.stack(labels)))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="an .npz, or a folder of one .npz per sample")
    parser.add_argument("--metric", help="file.py:function or accuracy (default: no metric)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--limit", type=int, help="use the first so many samples only")
    parser.add_argument("--level", choices=LEVELS, default="all", help="graph optimization")
    return parser.parse_args()


def main() -> None:
    """Print the shapes, latencies and, if asked for, the metric."""
    arguments = parse()
    session = open_session(arguments)
    data = arguments.data
    samples, labels = read_folder(data) if data.is_dir() else read_file(data, session)
    samples, labels = samples[: arguments.limit], labels[: arguments.limit]
    first = {name: (array.shape, str(array.dtype)) for name, array in samples[0].items()}
    print(f"samples {len(samples)}, first {first}")
    taken = measure(session, samples, arguments.runs, arguments.warmup)
    p50, p99 = np.percentile(taken, [50, 99])
    print(f"threads {arguments.threads} runs {len(taken)} p50 {p50:.3f} ms p99 {p99:.3f} ms")
    if arguments.metric:
        print(f"{arguments.metric} {score(session, samples, labels, arguments.metric):.6f}")


if __name__ == "__main__":
    main()
