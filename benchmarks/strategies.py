"""Quantization strategies on real models: every one that applies, the frontier, mixed precision.

Runs ``optimize compare`` on each workload (see benchmarks/workloads) and prints its frontier of
accuracy and speed, and at several floors the fastest uniform INT8 strategy beside the fastest with
layers left in float. Then the targets, as ratios of p99 within one run:

- MiniLM at length 128: the fastest that holds drop=0.01 at most 0.42x of the source on
  onnxruntime, 0.33x with all runtimes; static INT8 at least as fast as onnxruntime's own.
- the depthwise network: 0.55x and 0.45x.

    python -m benchmarks.strategies WORKLOADS [--only minilm mobilenet ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimize.passes.chain import Chain
from optimize.passes.int8 import Int8
from optimize.results.choose import frontier
from optimize.results.report import Report, VariantReport

FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
FLOORS = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02)
NOISE = 1.02  # ratios closer than this are not told apart


@dataclass(frozen=True)
class Workload:
    """One model: its files below the workloads' folder, and a budget that nearly all meet."""

    name: str
    arguments: tuple[str, ...]
    budget: str
    on_onnxruntime: float | None = None
    on_all: float | None = None


WORKLOADS = (
    Workload("minilm", ("minilm", "--data", "minilm/data128.npz",
                        "--metric", "minilm/metric.py:probe"), "p99=200ms", 0.42, 0.33),
    Workload("mobilenet", ("mobilenet/model.safetensors", "--arch", "mobilenet/arch.py:factory",
                           "--data", "mobilenet/data.npz"), "p99=50ms", 0.55, 0.45),
    Workload("crepe", ("crepe/tiny.pth", "--arch", "crepe/arch.py:tiny", "--data",
                       "crepe/data.npz", "--metric", "crepe/metric.py:pitch"), "p99=50ms"),
    Workload("silero", ("silero/silero_vad_16k_op15.onnx", "--data", "silero/data.npz",
                        "--metric", "silero/metric.py:speech"), "p99=20ms"),
    Workload("digits", ("digits/model.pth", "--arch", "digits/arch.py:factory",
                        "--data", "digits/data.npz"), "p99=20ms"),
    Workload("fashion", (f"{FASHION}/resnet.safetensors", "--arch", f"{FASHION}/arch.py:resnet",
                         "--data", f"{FASHION}/data.npz"), "p99=50ms"),
    Workload("ocr_cls", ("ocr_cls/model.onnx", "--data", "ocr_cls/data.npz"), "p99=50ms"),
)  # fmt: skip


def main() -> None:
    """Compare on every workload and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", type=Path)
    parser.add_argument("--only", nargs="*", default=[w.name for w in WORKLOADS])
    parser.add_argument("--runtime", default="all")
    given = parser.parse_args()
    better = 0
    for workload in WORKLOADS:
        if workload.name in given.only:
            begun = time.monotonic()
            report = compare(workload, given.workloads, given.runtime)
            print(f"\n{workload.name}: {len(report.variants)} rows in "
                  f"{time.monotonic() - begun:.0f} s")  # fmt: skip
            show_frontier(report)
            better += mixed_against_uniform(report)
            targets(workload, report)
    print(f"\nmixed precision strictly better on {better} models (target 2)")


def compare(workload: Workload, folder: Path, runtime: str) -> Report:
    """Run the command as a user would."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "optimize", "compare", *workload.arguments,
                   "--budget", workload.budget, "--threads", "1", "--runtime", runtime,
                   "--out", f"{out}/result", "--quiet"]  # fmt: skip
        subprocess.run(command, cwd=folder, check=False)
        return Report.from_json((Path(out) / "result" / "report.json").read_text())


def show_frontier(report: Report) -> None:
    """Print the rows that no other beats in both accuracy and speed, fastest first."""
    print(f"  {'p50 ms':>8} {'p99 ms':>8} {'speed':>6} {'accuracy':>9}  the frontier")
    for row in frontier(_timed(report)):
        if row.accuracy and row.latency:
            print(f"  {row.latency.p50_ms:8.3f} {row.latency.p99_ms:8.3f} "
                  f"{row.speedup or 1:5.2f}x {row.accuracy.value:9.4f}  {row.chain}")  # fmt: skip


def mixed_against_uniform(report: Report) -> bool:
    """Whether at some floor the fastest variant is mixed, and faster than all that are not.

    It is never slower: the uniform ones are on the same frontier. The floors are fixed ones, and
    those that the mixed variants themselves hold.
    """
    rows = _timed(report)
    gained = False
    own = {max(0.0, -r.accuracy.change) for r in rows if _keeps(r) and r.accuracy}
    for floor in sorted({*FLOORS, *own}):
        able = [r for r in rows if r.accuracy and r.accuracy.change >= -floor - 1e-9]
        uniform = _fastest(r for r in able if not _keeps(r))
        mixed = _fastest(able)
        if mixed is None:
            continue
        speed, other = mixed.speedup or 1, (uniform.speedup or 1) if uniform else 1.0
        gained |= _keeps(mixed) and speed > NOISE * other
        name = uniform.chain if uniform else "none, hence the source"
        print(f"  drop {floor:6.4f}: uniform {other:.2f}x ({name}), "
              f"with mixed {speed:.2f}x ({mixed.chain})")  # fmt: skip
    return gained


def targets(workload: Workload, report: Report) -> None:
    """Print the p99 ratios beside their targets."""
    source = report.variants[0]
    able = [r for r in _timed(report) if r.accuracy and r.accuracy.change >= -0.01]
    for label, rows, target in (
        (
            "on onnxruntime",
            [r for r in able if r.runtime == "onnxruntime"],
            workload.on_onnxruntime,
        ),
        ("on all runtimes", able, workload.on_all),
    ):
        best = _fastest(rows)
        if target and best and best.latency and source.latency:
            ratio = best.latency.p99_ms / source.latency.p99_ms
            verdict = "ok" if ratio <= target else "NOT REACHED"
            print(f"  {label}: p99 {ratio:.2f}x, p50 "
                  f"{best.latency.p50_ms / source.latency.p50_ms:.2f}x (target {target}x) "
                  f"{verdict}: {best.chain}")  # fmt: skip


def _timed(report: Report) -> Sequence[VariantReport]:
    return [row for row in report.variants if row.latency and row.latency.samples >= 50]


def _quantizer(row: VariantReport) -> Int8 | None:
    steps = Chain.parse(row.chain).passes
    return next((step for step in steps if isinstance(step, Int8)), None)


def _keeps(row: VariantReport) -> bool:
    quantizer = _quantizer(row)
    return quantizer is not None and quantizer.keep > 0


def _fastest(rows: Iterable[VariantReport]) -> VariantReport | None:
    return max(rows, key=lambda row: row.speedup or 1, default=None)


if __name__ == "__main__":
    main()
