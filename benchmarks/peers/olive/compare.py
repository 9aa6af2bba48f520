"""Ours against Olive: the same source, data and strategies, in turns on one machine.

    python benchmarks/peers/olive/compare.py --olive OLIVE/bin/python LAB [--rounds 1]
        [--only minilm] [--calls 100] [--samples 200]

LAB is the folder that benchmarks/workloads/ writes. Prints, for each workload, wall times from
start to verdict, the stages of ours, and the p99s of both chosen models timed side by side by
``optimize profile``. Targets: our wall time and our p99 at most 1.0 times Olive's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CALIBRATION = 128
_ATTENTION = "fold,session{without=SkipLayerNormFusion}"


@dataclass(frozen=True)
class Workload:
    """What both tools are given.

    Attributes:
        name: of the folder in LAB.
        data: its file of samples.
        metric: ``file.py:function`` in that folder; empty for top-1 accuracy.
        samples: to judge on, besides those to calibrate on.
        budget: of ours; with room to spare, because Olive has none to prove at 99%.
        threads: of both.
        chains: ours for the strategies fusion, dynamic, static and FP16.
    """

    name: str
    data: str
    metric: str
    samples: int
    budget: str
    threads: int
    chains: tuple[str, ...]


WORKLOADS = (
    Workload(
        "minilm", "data128.npz", "metric.py:probe", 872, "p99=200ms", 2,
        (
            "fold,fuse", f"{_ATTENTION},int8{{mode=dynamic}}",
            f"{_ATTENTION},int8{{mode=static}}", "fold,fuse,fp16",
        ),
    ),
    Workload(
        "mobilenet", "data.npz", "", 2000, "p99=2ms", 1,
        (
            "fold,fuse", "fold,fuse,int8{mode=dynamic}",
            "fold,fuse,int8{mode=static}", "fold,fuse,fp16",
        ),
    ),
    Workload(
        "digits", "data.npz", "", 4872, "p99=10ms", 1,
        (
            "fold,fuse", "fold,fuse,int8{mode=dynamic}",
            "fold,fuse,int8{mode=static}", "fold,fuse,fp16",
        ),
    ),
)  # fmt: skip


def main() -> None:
    """Run the workloads and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lab", type=Path)
    parser.add_argument("--olive", required=True, help="Olive's own Python")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--only")
    parser.add_argument("--samples", type=int, help="to judge on, in place of each workload's")
    given = parser.parse_args()
    for workload in WORKLOADS:
        if given.only in (None, workload.name):
            with tempfile.TemporaryDirectory() as folder:
                samples = given.samples or workload.samples
                compare(replace(workload, samples=samples), given, Path(folder))


def compare(workload: Workload, given: Any, folder: Path) -> None:
    """Run both in turns, then time the models that they chose side by side."""
    job = _job(workload, given.lab.resolve() / workload.name, given.calls, folder)
    programs = {"ours": (sys.executable, "ours.py"), "olive": (given.olive, "search.py")}
    walls: dict[str, list[float]] = {name: [] for name in programs}
    results: dict[str, Any] = {}
    for number in range(given.rounds):
        for name in sorted(programs, reverse=number % 2 == 1):
            python, script = programs[name]
            place = folder / f"{name}-{number}"
            place.mkdir()
            (place / "job.json").write_text(json.dumps({**job, "folder": str(place)}))
            wall = _run([python, str(HERE / script), str(place / "job.json")], place)
            walls[name].append(wall)
            results[name] = json.loads((place / "result.json").read_text())
    _print(workload, results, walls)
    if results["ours"]["chosen"] is None:
        print("  ours kept none")
        return
    models = [results["olive"]["model"], str(Path(results["ours"]["model"]).parent)]
    _side_by_side(workload, job, models, folder)


def _job(workload: Workload, source: Path, calls: int, folder: Path) -> dict[str, Any]:
    """Share the samples out as both shall use them, and describe the work."""
    arrays = dict(np.load(source / workload.data))
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    shares = {
        "calibration": order[:CALIBRATION],
        "evaluation": order[CALIBRATION:][: workload.samples],
    }
    for name, indices in shares.items():
        np.savez(folder / f"{name}.npz", **{k: v[indices] for k, v in arrays.items()})
    return {
        "model": str(source / "model.onnx"),
        "evaluation": str(folder / "evaluation.npz"),
        "calibration": str(folder / "calibration.npz"),
        "metric": str(source / workload.metric) if workload.metric else "",
        "threads": workload.threads,
        "calls": calls,
        "drop": 0.01,
        "budget": workload.budget,
        "chains": workload.chains,
    }


def _run(command: list[str], place: Path, code: int | None = 0) -> float:
    """Seconds of a whole process, which must end with ``code``, or with any."""
    quiet = {"CI": "1", "OLIVE_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    if "search.py" in command[1]:
        del quiet["PYTHONPATH"]
    started = time.monotonic()
    with (place / "log.txt").open("wb") as log:
        done = subprocess.run(
            command, cwd=place, stdout=log, stderr=log, env={**os.environ, **quiet}, check=False
        )
    if code is not None and done.returncode != code:
        sys.exit(f"{' '.join(command)} failed:\n{(place / 'log.txt').read_text()[-2000:]}")
    return time.monotonic() - started


def _print(workload: Workload, results: dict[str, Any], walls: dict[str, list[float]]) -> None:
    print(
        f"\n{workload.name}, {workload.threads} threads, {workload.samples} samples, "
        f"{workload.budget}"
    )
    for name in ("olive", "ours"):
        for point in results[name]["points"]:
            reduced = {True: " 7 bits", False: " 8 bits"}.get(point.get("reduce_range"), "")
            p99, accuracy = (
                "-" if point[key] is None else f"{point[key]:.3f}" for key in ("p99_ms", "accuracy")
            )
            status = point.get("status", "goals met" if point.get("met") else "goals missed")
            print(f"  {name:5} {point['pass']}{reduced}: p99 {p99} ms, {accuracy}, {status}")
    ours = results["ours"]
    stages = ", ".join(f"{name} {s:.1f}" for name, s in ours["stages"].items())
    print(f"  our stages, s: {stages}; passes {ours['passes']:.1f}")
    middle = {name: statistics.median(seconds) for name, seconds in walls.items()}
    listed = "; ".join(f"{n} {', '.join(f'{s:.1f}' for s in walls[n])}" for n in walls)
    ratio = middle["ours"] / middle["olive"]
    print(f"  wall time, s: {listed}: {ratio:.2f} of Olive's, {_met(ratio)}", flush=True)


def _side_by_side(workload: Workload, job: Any, models: list[str], folder: Path) -> None:
    out = folder / "profile"
    options = {
        "--data": job["evaluation"], "--budget": workload.budget, "--threads": workload.threads,
        "--metric": job["metric"] or "top1", "--floor": "drop=0.5", "--out": out,
        "--max-samples": 1000,
    }  # fmt: skip
    texts = [str(text) for pair in options.items() for text in pair]
    # A thousand calls of each tell which is faster, even where they leave the budget open.
    _run([sys.executable, "-m", "optimize", "profile", *models, *texts, "--no-cache"], folder, None)
    rows = json.loads((out / "report.json").read_text())["variants"]
    theirs, mine = (row["latency"]["p99_ms"] for row in rows)
    print(f"  p99 side by side: Olive's {theirs:.3f} ms, ours {mine:.3f} ms:", end=" ")
    print(f"{mine / theirs:.2f} of Olive's, {_met(mine / theirs)}", flush=True)


def _met(ratio: float) -> str:
    return f"target 1.0: {'met' if ratio <= 1.0 else 'MISSED'}"


if __name__ == "__main__":
    main()
