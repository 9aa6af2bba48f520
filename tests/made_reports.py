"""Reports of every kind, made up from seeded samples: what the pages and texts are tested on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.budget import Budget, Floor
from optimize.budgets.profile import Block, Profile
from optimize.reports.samples import pack, unpack
from optimize.reports.view import View
from optimize.results.latency import LatencyReport
from optimize.results.report import (
    AccuracyReport,
    BudgetReport,
    DataReport,
    FloorReport,
    OperatorReport,
    Report,
    SettingsReport,
    SourceReport,
    StepReport,
    VariantReport,
)
from optimize.targets.base import Device

HOSTILE = '<img src=x onerror="alert(1)">&amp;</script><b>|`%{x}'


def profile(ms: float, calls: int = 1000, seed: int = 0, begun_s: float = 0.0) -> Profile:
    """Log-normal calls around a median, in blocks of 50; one block in ten is disturbed."""
    rng = np.random.default_rng(seed)
    blocks = []
    for number in range(calls // 50):
        samples = (ms * 1e6 * rng.lognormal(0, 0.12, 50)).astype(np.int64)
        disturbance = "tasks waited for a core" if number % 10 == 9 else None
        started = int((begun_s + 0.5 * number) * 1e9)
        blocks.append(Block(samples, number % 3, started, disturbance))
    return Profile(tuple(blocks), 30_000_000, 9_000_000, 80, True, 123_456_789)


def variant(
    chain: str,
    status: str,
    reason: str,
    made: Profile | None = None,
    value: float = 0.93,
    **more: Any,
) -> VariantReport:
    accuracy = Accuracy(
        "top1",
        value,
        value - 0.012,
        value + 0.011,
        2744,
        0.9333,
        value - 0.9333,
        value - 0.94,
        value - 0.925,
    )
    measured = made is not None
    return VariantReport(
        chain,
        "onnxruntime",
        status,  # type: ignore[arg-type]
        reason,
        latency=LatencyReport.of(made, 0.99) if made else None,
        accuracy=AccuracyReport.of(accuracy) if measured else None,
        size_bytes=250_000 if measured else None,
        digest="ab" * 32 if measured else None,
        **more,
    )


def view(
    variants: list[tuple[VariantReport, Profile | None]],
    chosen: str | None,
    exit_code: int,
    nearest_miss: str | None = None,
    source: str = "resnet.safetensors",
) -> View:
    """A report with its timings, after a trip through the file of samples."""
    report = Report(
        source=SourceReport(source, "safetensors", "cd" * 32, 703_900, "torch.onnx.export", "2.9e-06"),
        device=Device("A processor with a long name", "x86_64", ("avx2", "fma"), 8, 2, 8 << 30, "Linux", "3.11"),
        versions={"tailfit": "0.1.0", "onnxruntime": "1.2.3"},
        settings=SettingsReport("latency", 0.99, "CPUExecutionProvider", 1, 0, 600.0),
        budgets=tuple(BudgetReport.of(Budget.parse(b)) for b in ("p99=20ms", "size=400kB")),
        floor=FloorReport.of(Floor.parse("drop=0.01"), "top1"),
        data=DataReport("data.npz", "ef" * 32, False, 3000, 3000, 2744, 256, None, 1),
        variants=tuple(row for row, _ in variants),
        chosen=chosen,
        exit_code=exit_code,
        nearest_miss=nearest_miss,
        seconds=31.5,
        command="optimize resnet.safetensors --budget p99=20ms --data data.npz",
    )  # fmt: skip
    return View(report, unpack(pack({row.chain: made for row, made in variants if made})))


def one() -> View:
    made = profile(12.0)
    return view([(variant("source", "kept", "p99 holds", made, 0.9333), made)], "source", 0)


def many(count: int = 60) -> View:
    """Every status, the fastest kept one chosen, with steps, explanations and a bound."""
    rng = np.random.default_rng(3)
    statuses = ("kept", "too_slow", "inaccurate", "undecided", "too_large", "failed", "skipped")
    source = profile(14.0, 400)
    rows: list[tuple[VariantReport, Profile | None]] = [
        (variant("source", "too_large", "703.9 kB exceeds size=400kB", source, 0.9333), source)
    ]
    steps = (
        StepReport("fold", 13.6, 18.0, 0.9333, 700_000, "2.1e-07", 0.4),
        StepReport("fuse", 11.0, 15.1, 0.9333, 690_000, "3.0e-07", 1.2),
        StepReport("int8{mode=static}", 6.1, 8.2, 0.9329, 221_500, "cosine 0.9981", 5.0),
    )
    best = profile(6.0, 1500, 1, 12.0)
    rows.append((variant(
        "fold,fuse,int8{mode=static}", "kept", "in 3 fresh processes, p99 holds: 0 of 1500 calls over 20 ms", best, 0.9329,
        speedup=2.3, speedup_low=2.2, speedup_high=2.4, steps=steps, bound_ms=3.9,
        explanation=("72% of the time is in QLinearConv, which already runs in INT8.",
                     "The 4 points of accuracy went with the last convolution."),
        operators=(OperatorReport("QLinearConv", 11, 4.4, 0.72), OperatorReport("QLinearAdd", 4, 0.5, 0.09)),
    ), best))  # fmt: skip
    for number in range(2, count):
        status = statuses[number % len(statuses)]
        name = f"fold,fuse,prune{{sparsity=0.{number:02d}}},int8{{mode=dynamic}}"
        made = None
        if status != "skipped":
            middle = 26.0 if status == "too_slow" else float(rng.uniform(6.5, 16))
            made = profile(middle, 300, number, 3.0)
        value = 0.90 if status == "inaccurate" else float(rng.uniform(0.925, 0.934))
        rows.append(
            (variant(name, status, f"made up to be {status}", made, value, speedup=1.5), made)
        )
    return view(rows, "fold,fuse,int8{mode=static}", 0)


def none_kept() -> View:
    source, slow = profile(40.0, 400), profile(24.0, 400, 1)
    rows: list[tuple[VariantReport, Profile | None]] = [
        (
            variant(
                "source", "too_slow", "p99 exceeds: 400 of 400 calls over 20 ms", source, 0.9333
            ),
            source,
        ),
        (
            variant(
                "fold,fuse",
                "too_slow",
                "p99 exceeds: 380 of 400 calls over 20 ms",
                slow,
                0.9333,
                speedup=1.6,
            ),
            slow,
        ),
        (variant("fold,fuse,fp16", "undecided", "the time limit left no time to build it"), None),
    ]
    return view(rows, None, 1, "fold,fuse: p99 of 32 ms is 1.60x the budget, 12 ms too much")


def undecided() -> View:
    source, near = profile(40.0, 400), profile(15.5, 400, 1)
    rows: list[tuple[VariantReport, Profile | None]] = [
        (
            variant(
                "source", "too_slow", "p99 exceeds: 400 of 400 calls over 20 ms", source, 0.9333
            ),
            source,
        ),
        (
            variant(
                "fold,fuse", "undecided", "p99 is open: 5 of 400 calls over 20 ms", near, 0.9333
            ),
            near,
        ),
    ]
    return view(rows, None, 3, "fold,fuse: p99 is open: 5 of 400 calls over 20 ms")


def hostile() -> View:
    """Names, reasons and files with HTML, Markdown and format codes in them."""
    source, fast = profile(14.0, 400), profile(6.0, 400, 1)
    rows: list[tuple[VariantReport, Profile | None]] = [
        (variant("source", "too_large", f"no {HOSTILE}", source, 0.9333), source),
        (variant(HOSTILE, "kept", f"reason {HOSTILE}", fast, 0.9329, speedup=2.0,
                 explanation=(HOSTILE,), steps=(StepReport(HOSTILE, 6.0, 8.0, None, 1, HOSTILE, 0.1),)), fast),
    ]  # fmt: skip
    made = view(rows, HOSTILE, 0, source=HOSTILE)
    return replace(
        made, report=replace(made.report, command=f"optimize {HOSTILE}", notes=(HOSTILE,))
    )


def unmeasured() -> View:
    """An interrupted run that timed nothing."""
    return view([(variant("fold", "skipped", "no time was left"), None)], None, 130)


def infeasible() -> View:
    """A budget below every bound: nothing was built."""
    rows: list[tuple[VariantReport, Profile | None]] = [
        (
            variant(name, "skipped", "not built: no call can take less than 80 us", bound_ms=0.08),
            None,
        )
        for name in ("source", "fold,fuse")
    ]
    made = view(rows, None, 1)
    sentence = "needs 22.7 MFLOP; 80 us is the floor, 10 us asked (8x less): prune 88% of it"
    return replace(made, report=replace(made.report, infeasible=sentence))


def without_samples() -> View:
    """A result of an earlier version, which wrote no single timings."""
    return View(many(6).report)


EVERY = {
    "one": one,
    "many": many,
    "none_kept": none_kept,
    "undecided": undecided,
    "hostile": hostile,
    "unmeasured": unmeasured,
    "infeasible": infeasible,
    "without_samples": without_samples,
}
