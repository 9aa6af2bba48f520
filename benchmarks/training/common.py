"""What the training benchmarks share: export, alternating latency, pieces under a time limit."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optimize.passes.training.batches import Batches
from optimize.passes.training.distill import distill
from optimize.passes.training.options import DistillOptions

Feed = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ratio:
    """Latency of a model relative to the first one's, by alternating one-thread runs."""

    p50: float
    p99: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.3f}x, p99 {self.p99:.3f}x ({self.p50_ms:.3f} ms)"


def session(path: Path, threads: int = 1) -> Any:
    """Open a model in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def latency_ratios(paths: Sequence[Path], feeds: Sequence[Feed], rounds: int = 400) -> list[Ratio]:
    """Time the models in turns, one call each, on one thread; ratios to the first.

    Args:
        paths: ONNX models that take the same inputs.
        feeds: inputs, used in rotation.
        rounds: calls of each model.
    """
    sessions = [session(path) for path in paths]
    times = np.empty((len(paths), rounds))
    for feed in list(feeds)[:8]:
        for opened in sessions:
            opened.run(None, feed)
    for turn in range(rounds):
        feed = dict(feeds[turn % len(feeds)])
        for place, opened in enumerate(sessions):
            start = time.perf_counter()
            opened.run(None, feed)
            times[place, turn] = time.perf_counter() - start
    p50, p99 = np.quantile(times, 0.5, axis=1), np.quantile(times, 0.99, axis=1)
    return [
        Ratio(float(a / p50[0]), float(b / p99[0]), 1000 * float(a), 1000 * float(b))
        for a, b in zip(p50, p99, strict=True)
    ]


def outputs(path: Path, feeds: Sequence[Feed], threads: int = 2) -> list[np.ndarray]:
    """First output of every feed."""
    opened = session(path, threads)
    return [opened.run(None, dict(feed))[0] for feed in feeds]


def verdict(text: str, reached: bool, target: str) -> None:
    """Print one measured figure beside its target."""
    print(f"{'ok  ' if reached else 'MISS'} {text}; target {target}", flush=True)


def int8_static(path: Path, calibration: Any, folder: Path) -> Path:
    """Quantize by the pass ``int8{mode=static}``."""
    from optimize.models.model import Model
    from optimize.passes.base import Context
    from optimize.passes.int8 import Int8

    folder.mkdir(parents=True, exist_ok=True)
    context = Context(folder, calibration.take(range(4)), calibration, isa=host_isa())
    result = Int8(mode="static")(Model.read(path), context)
    found: Path = result.model.path
    return found


def host_isa() -> frozenset[str]:
    """The CPU's instruction sets as Linux names them."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    line = next((item for item in lines if item.startswith(("flags", "Features"))), ": ")
    return frozenset(line.partition(":")[2].split())


def parse(description: str | None) -> argparse.Namespace:
    """Read the command line of a benchmark that trains."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path, help="folder that holds the workload's folder")
    parser.add_argument("--seconds", type=float, default=150, help="train so long at most")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--judge", action="store_true", help="judge what there is, finished or not")
    return parser.parse_args()


def trained_in_pieces(
    student: Any,
    teacher: Any,
    batches: Batches,
    options: DistillOptions,
    folder: Path,
    arguments: argparse.Namespace,
    train: Callable[..., tuple[Any, tuple[str, ...]]] = distill,
) -> Any:
    """Go on training in FOLDER/distilled; return the student once finished (or to judge)."""
    torch.set_num_threads(arguments.threads)
    scratch = folder / "distilled"
    start = time.monotonic()
    result, notes = train(
        student,
        teacher,
        batches,
        options,
        progress=lambda now: print(now, flush=True),
        checkpoint_folder=scratch,
        deadline=start + arguments.seconds,
    )
    print("; ".join(notes))
    clock = scratch / "seconds"
    spent = time.monotonic() - start + (float(clock.read_text()) if clock.is_file() else 0)
    clock.write_text(str(spent))
    if any("time limit" in note for note in notes):
        print(f"unfinished after {spent:.0f} s; run it again")
        return result.eval() if arguments.judge else None
    print(f"trained for {spent:.0f} s in all")
    return result.eval()
