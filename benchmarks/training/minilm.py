"""MiniLM without a quarter of its heads and hidden units, distilled on WordNet's glosses.

The student learns its teacher's token embeddings (squared error over the real tokens) and hidden
layers, without labels; the glosses are those that the probe was fitted to, none of those that
judge. Targets: latency at most 0.85x at a drop of the probe of at most 1 point; with dynamic INT8
at most 0.42x.

    python -m benchmarks.workloads.minilm OUT
    python -m benchmarks.training.minilm OUT [--seconds 150]   # again until it is finished
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.training.common import (
    host_isa,
    latency_ratios,
    outputs,
    parse,
    trained_in_pieces,
    verdict,
)
from benchmarks.workloads.common import load_source
from benchmarks.workloads.minilm import batch_of
from optimize.models.data import Dataset
from optimize.models.huggingface import load_folder
from optimize.models.model import Model
from optimize.passes.base import Context
from optimize.passes.int8 import Int8
from optimize.passes.training.batches import Batches
from optimize.passes.training.options import DistillOptions
from optimize.passes.training.prune import prune_module

RATIO = 0.25
OPTIONS = DistillOptions(
    steps=240, lr=5e-4, features=1.0, outputs=("output_0",), patience=0, evaluations=4
)


def glosses(folder: Path) -> Dataset:
    """Glosses that the probe was fitted to, cut and padded to one length."""
    with np.load(folder / "lessons.npz") as arrays:
        inputs = {name: list(array[:, None]) for name, array in dict(arrays).items()}
    return Dataset("glosses", inputs, None, True)


def main() -> None:
    """Prune, train for a while; when finished, judge."""
    arguments = parse(__doc__)
    folder = Path(arguments.out) / "minilm"
    teacher, names = load_folder(folder)
    data = glosses(folder)
    ordered = Dataset(data.origin, {name: data.inputs[name] for name in names}, None, True)
    batches = Batches(ordered, 48, 0.02)
    example = next(batches.validation()).args
    pruned, notes = prune_module(teacher, example, RATIO)
    print("; ".join(notes))
    student = trained_in_pieces(pruned, teacher, batches, OPTIONS, folder, arguments)
    if student is not None:
        judge({"pruned": pruned, "distilled": student}, names, folder)


def judge(students: dict[str, torch.nn.Module], names: tuple[str, ...], folder: Path) -> None:
    """Export, also as INT8, and compare with the source."""
    example = batch_of([[101, 7592, 102], [101, 102]], 3)
    inputs = {name: torch.from_numpy(example[name]) for name in names}
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    paths = {"source": folder / "model.onnx"}
    for what, module in students.items():
        paths[what] = folder / "distilled" / f"{what}.onnx"
        args = tuple(inputs.values())
        torch.onnx.export(
            module.eval(),
            args,
            str(paths[what]),
            input_names=list(names),
            output_names=["last_hidden_state", "pooler_output"],
            dynamic_shapes=(tuple(axes[name] for name in names),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    paths["int8"] = dynamic_int8(paths["distilled"], folder / "distilled" / "int8")
    compare(paths, names, folder)


def compare(paths: dict[str, Path], names: tuple[str, ...], folder: Path) -> None:
    """Probe on the unpadded glosses, latency at 128 tokens."""
    probe = load_source(folder / "metric.py").probe
    samples = [dict(np.load(path)) for path in sorted((folder / "data").glob("*.npz"))]
    labels = np.array([sample.pop("labels") for sample in samples])
    scores = {what: probe(outputs(path, samples), labels) for what, path in paths.items()}
    print(", ".join(f"{what} {score:.3f}" for what, score in scores.items()), flush=True)
    with np.load(folder / "data128.npz") as data:
        arrays = {name: data[name][:64] for name in names}
    padded = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(64)]
    chosen = [paths[what] for what in ("source", "distilled", "int8")]
    _, ratio, integer = latency_ratios(chosen, padded, 100)
    for what, found, most in (("distilled", ratio, 0.85), ("int8", integer, 0.42)):
        drop = 100 * (scores["source"] - scores[what])
        verdict(f"{what}: probe drop {drop:.1f} points", drop <= 1, "1")
        verdict(f"{what}: latency {found}", found.p99 <= most, f"p99 {most}x")


def dynamic_int8(path: Path, folder: Path) -> Path:
    """Quantize by the pass ``int8{mode=dynamic}``."""
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(folder, Dataset("none", {}), isa=host_isa())
    found: Path = Int8(mode="dynamic").apply(Model.read(path), context).model.path
    return found


if __name__ == "__main__":
    main()
