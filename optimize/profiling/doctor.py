"""What this device is, how quiet it is, and how sharp a verdict can be here."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimize.budgets.profile import Profile, paired_ratio
from optimize.budgets.verdict import Requirement
from optimize.models.data import Dataset
from optimize.processes.scratch import run_folder
from optimize.profiling.measure import Contender, Limits, open_worker, time_in_turns, warm_up
from optimize.targets.base import Device, Job, Settings
from optimize.targets.inputs import write_inputs
from optimize.targets.local import LocalTarget
from optimize.worker import CPU_FREQUENCY_GOVERNOR, canary, counters


@dataclass(frozen=True)
class Examination:
    """Facts, figures and advice about this machine.

    Attributes:
        device: its fingerprint.
        providers: onnxruntime's execution providers that are installed.
        timer_ns: smallest step of the clock, and what reading it costs.
        canary_spread: p99 over the median of a fixed piece of work.
        disturbed: share of blocks that something disturbed; None if none was timed.
        reasons: what disturbed them, and how often.
        watched: counters that this platform has; what else could be watched is left out.
        ratio, ratio_low, ratio_high: the same model against itself, timed in turns.
        advice: what to change.
    """

    device: Device
    providers: tuple[str, ...]
    timer_ns: tuple[float, float]
    canary_spread: float
    disturbed: float | None
    reasons: tuple[tuple[str, int], ...]
    watched: tuple[str, ...]
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    advice: tuple[str, ...]


def examine(seconds: float, say: Callable[[str], None]) -> Examination:
    """Measure this machine for about ``seconds``.

    Args:
        seconds: how long to time the same model against itself.
        say: told what is being done.
    """
    import onnxruntime

    target = LocalTarget()
    say("clock and fixed work")
    timer = _timer()
    spread = _canary_spread()
    say("the same model twice, in turns")
    one, two = same_twice(target, seconds)
    blocks = [*one.blocks, *two.blocks]
    reasons: dict[str, int] = {}
    for block in blocks:
        if block.disturbance:
            kind = re.split(r"\s*\d", block.disturbance)[0]  # without its figures
            reasons[kind] = reasons.get(kind, 0) + 1
    disturbed = sum(reasons.values()) / len(blocks) if blocks else None
    device = target.device()
    ratio, low, high = paired_ratio(one, two, 0.99)
    return Examination(
        device=device,
        providers=tuple(onnxruntime.get_available_providers()),
        timer_ns=timer,
        canary_spread=spread,
        disturbed=disturbed,
        reasons=tuple(sorted(reasons.items(), key=lambda item: -item[1])),
        watched=tuple(sorted(counters())),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        advice=tuple(_advice(device, spread, disturbed)),
    )


def _timer() -> tuple[float, float]:
    stamps = [time.perf_counter_ns() for _ in range(20_000)]
    steps = np.diff(stamps)
    return float(steps[steps > 0].min()), float(np.median(steps))


def _canary_spread() -> float:
    samples = sorted(canary() for _ in range(2000))
    return samples[int(0.99 * len(samples))] / statistics.median(samples)


def same_twice(target: LocalTarget, seconds: float) -> tuple[Profile, Profile]:
    """Time one small model in two processes in turns, for about ``seconds``."""
    limits = Limits(deadline=time.monotonic() + seconds, max_samples=10**6)
    with run_folder() as folder:
        inputs = write_inputs(_samples(), folder / "inputs")
        model = _write_model(folder)
        pair = [
            Contender(label, Job(model, inputs, folder / label, Settings()), reference=True)
            for label in ("one", "two")
        ]
        try:
            for contender in pair:
                open_worker(target, contender, limits)
                warm_up(contender, limits)
            endless = Requirement((), None)
            rng = np.random.default_rng(0)
            while not limits.expired:
                time_in_turns(pair, endless, 8, limits, rng, lambda _: None)
        finally:
            for contender in pair:
                contender.close()
    return pair[0].profile, pair[1].profile


def _samples() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset("random", {"x": [rng.standard_normal((64, 512), np.float32) for _ in range(8)]})


def _write_model(folder: Path) -> Path:
    """Four matrix products, about a millisecond: long enough to be disturbed, short to repeat."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((512, 512), np.float32) / 32 for _ in range(4)]
    names = ["x", "a", "b", "c", "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(4)]
    graph = helper.make_graph(
        nodes,
        "doctor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 512])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    path = folder / "model.onnx"
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


def _advice(device: Device, spread: float, disturbed: float | None) -> list[str]:
    advice = []
    if disturbed is None:
        advice.append("nothing was timed: give it more --seconds")
    governor = CPU_FREQUENCY_GOVERNOR
    if governor.is_file() and (now := governor.read_text().strip()) != "performance":
        advice.append(f"the frequency governor is {now}: set it to performance while measuring")
    if device.granted_cores < device.cores:
        advice.append(
            f"{device.granted_cores} of {device.cores} cores are granted: measure with the quota "
            "and affinity that the service will have"
        )
    if not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"} & set(device.isa):
        advice.append("no integer dot products: INT8 gains little here")
    if disturbed and disturbed > 0.2:
        advice.append(
            "other work disturbs this machine: stop it, or pin it to cores that the service has not"
        )
    if spread > 1.5:
        advice.append("fixed work varies by more than half: expect undecided near the budget")
    return advice or ["nothing: this machine is fit to measure on"]
