"""Hold a model against its baseline: both run here and now, in turns, on the same samples."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optimize import output
from optimize.budgets.accuracy import Accuracy, Outputs, compare
from optimize.budgets.regression import (
    MOST_CHUNKS,
    Loss,
    Ratio,
    chunk_calls,
    decided,
    is_look,
    ratios,
)
from optimize.child import Child
from optimize.errors import InputError, WorkerError
from optimize.gate.cases import Gate
from optimize.measure import (
    Contender,
    Limits,
    block_calls,
    collect_outputs,
    open_worker,
    time_block,
    warm_up,
)
from optimize.models.model import FILE_NAME, Model, Signature, TensorSpec
from optimize.models.run import run
from optimize.models.runtimes import find_runtime
from optimize.models.source import detect
from optimize.prepare import Prepared, prepare
from optimize.report import Result
from optimize.request import Request
from optimize.screen import FRESH_PROCESSES, MEMORY_SHARE
from optimize.targets.base import Job, Settings, Target
from optimize.targets.inputs import write_inputs

FILE = "regression.json"
COSINE = "cosine"  # the metric that compares with the source
Say = Callable[[float, str], None]
Array = NDArray[np.int64]


@dataclass(frozen=True)
class Regression:
    """How a model compares with its baseline.

    Attributes:
        baseline: digest of the baseline's model.
        ratios: how many times as long it takes, for every percentile that is judged.
        accuracy: its metric beside the baseline's; None if that is not compared.
        loss: how much of the metric may be lost, in its unit.
        gap: why the metric could not be compared although that was asked for; None if it was.
        calls: timed calls of each.
    """

    baseline: str
    ratios: tuple[Ratio, ...]
    accuracy: Accuracy | None
    loss: float
    gap: str | None
    calls: int

    @property
    def worse(self) -> bool:
        """Whether more of the metric than allowed is shown to be lost."""
        if self.accuracy is None:
            return False
        if self.accuracy.higher_is_better:
            return self.accuracy.change_high < -self.loss
        return self.accuracy.change_low > self.loss

    def to_json(self) -> str:
        """The comparison as JSON text."""
        states = {ratio.quantity: ratio.state for ratio in self.ratios}
        fields = {"schema": 1, **asdict(self), "states": states, "metric_worse": self.worse}
        return json.dumps(fields, indent=2) + "\n"


@dataclass
class _Side:
    """One of the two models while it is measured."""

    what: str
    model: Model
    contender: Contender
    outputs: Outputs


def find(folder: Path, label: str, name: str, alone: bool) -> Path:
    """The result folder of a model in ``folder``, which may be one itself.

    Raises:
        InputError: there is none, or one for several models.
    """
    if not folder.is_dir():
        raise InputError(
            f"--against {folder} is no folder; name a result folder, or one of several"
        )
    if output.is_result(folder):
        if alone:
            return folder
        raise InputError(
            f"--against {folder} is the result of one model and several are checked; "
            f"name the one that it belongs to, or a folder with one result for each"
        )
    for choice in (label, name):
        if output.is_result(folder / choice):
            return folder / choice
    raise InputError(f"--against {folder} holds no result called {label}")


def hold_against(
    baseline: Path, request: Request, result: Result, gate: Gate, target: Target, say: Say
) -> Regression:
    """Measure the result's model and the baseline's side by side.

    Args:
        baseline: a result folder.
        request: of the run that gave ``result``.
        result: with a model that was kept.
        gate: how much worse it may be.
        target: where both run.
        say: is told how far it is, of 1, and what happens.

    Raises:
        InputError: the baseline holds no model, takes other inputs, or does not run here.
        WorkerError: the result's own model does not run any more.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="optimize-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        child = Child()
        stack.callback(child.close)
        say(0.0, "the baseline")
        return _compare(baseline, request, result, gate, target, say, folder, child, stack)


def _compare(
    baseline: Path,
    request: Request,
    result: Result,
    gate: Gate,
    target: Target,
    say: Say,
    folder: Path,
    child: Child,
    stack: ExitStack,
) -> Regression:
    standard = _standard(request, result)
    prepared = prepare(standard, detect(standard.model), folder, child)
    signature = prepared.exported.model.signature
    old, old_runtime = output.read_artefact(baseline, signature)
    assert result.folder is not None  # a model that was kept is written
    new, new_runtime = output.read_artefact(result.folder, signature)
    _same_interface(old.signature, new.signature, baseline)
    inputs = write_inputs(prepared.latency, folder / "inputs")
    limits = _limits(request)
    sides = []
    for what, model, runtime in (("baseline", old, old_runtime), ("model", new, new_runtime)):
        job = _job(request, model, runtime, inputs, folder / what, target)
        side = _Side(what, model, Contender(what, job), {})
        stack.callback(side.contender.close)
        _start(side, prepared, target, limits)
        sides.append(side)
    accuracy, gap = _accuracy(sides[0], sides[1], baseline, request, prepared, gate)
    chunks = _time(sides[0], sides[1], len(prepared.latency), request, gate, limits, say)
    return Regression(
        baseline=old.digest,
        ratios=ratios(*chunks, gate.tolerance, request.confidence),
        accuracy=accuracy,
        loss=(gate.loss or Loss(0.0)).of(accuracy.source_value if accuracy else 0.0),
        gap=gap,
        calls=chunks[0].size,
    )


def _standard(request: Request, result: Result) -> Request:
    """What the samples are read for: the model itself, which needs no export, where that does."""
    floor, model = result.report.floor, result.model
    if model is None or model.name != FILE_NAME or (floor and floor.metric == COSINE):
        return request
    return replace(request, model=model, arch=None)


def _limits(request: Request) -> Limits:
    limit = request.time_limit_s
    return Limits(deadline=None if limit is None else time.monotonic() + limit)


def _same_interface(old: Signature, new: Signature, baseline: Path) -> None:
    for kind, before, now in (
        ("takes", old.inputs, new.inputs),
        ("gives", old.outputs, new.outputs),
    ):
        fits = len(before) == len(now) and all(map(_alike, before, now))
        if not fits:
            have, want = (", ".join(map(str, specs)) for specs in (before, now))
            raise InputError(
                f"the baseline {baseline} is of another interface: it {kind} {have}, "
                f"the model {kind} {want}"
            )


def _alike(one: TensorSpec, two: TensorSpec) -> bool:
    """Whether two tensors have the same name, type and known lengths."""
    if (one.name, one.dtype) != (two.name, two.dtype):
        return False
    if one.shape is None or two.shape is None:
        return True
    fixed = zip(one.shape, two.shape, strict=False)
    return len(one.shape) == len(two.shape) and not any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in fixed
    )


def _job(
    request: Request, model: Model, runtime: str, inputs: Path, scratch: Path, target: Target
) -> Job:
    provider = find_runtime(runtime).provider
    cores = min(target.device().granted_cores, len(request.cpus or ()) or 10**6)
    settings = Settings(runtime, provider, request.threads or cores, request.cpus, model.config)
    signature = model.signature
    names = (tuple(s.name for s in signature.inputs), tuple(s.name for s in signature.outputs))
    return Job(model.path, inputs, scratch, settings, names, request.pre, request.post)


def _start(side: _Side, prepared: Prepared, target: Target, limits: Limits) -> None:
    """Load a model in processes of its own, take its outputs, and warm it up."""
    contender = side.contender
    try:
        open_worker(target, contender, limits)
        found = collect_outputs(contender, len(prepared.evaluation), limits)
        side.outputs = prepared.per_sample(found)
        memory = target.device().memory_bytes or 8 << 30
        spare = MEMORY_SHARE * memory / 2 - contender.rss_bytes * FRESH_PROCESSES
        # A process may be slow by the chance of where its memory lies; three average that out.
        for _ in range(FRESH_PROCESSES - 1 if spare > 0 else 0):
            open_worker(target, contender, limits)
        warm_up(contender, limits)
    except WorkerError as error:
        if side.what == "baseline":
            raise InputError(f"the baseline does not run here: {error}") from error
        raise


def _accuracy(
    old: _Side, new: _Side, baseline: Path, request: Request, prepared: Prepared, gate: Gate
) -> tuple[Accuracy | None, str | None]:
    """The metric of both on the same samples, or why that says nothing."""
    metric = prepared.metric
    if gate.loss is None:
        return None, None
    standard: Outputs = {}
    if metric.name == COSINE:
        manifest = json.loads((baseline / output.MANIFEST).read_text(encoding="utf-8"))
        if manifest["source_digest"] != detect(request.model).digest:
            return None, (
                "cosine compares with the source, which is another one now; "
                'declare a metric with labels, or metric_tolerance = "none"'
            )
        standard = _reference(prepared)
    scores = [metric.score(side.outputs, prepared.labels, standard) for side in (new, old)]
    return compare(metric, scores[0], scores[1], request.confidence), None


def _reference(prepared: Prepared) -> Outputs:
    """The source's own outputs."""
    rows = run(prepared.exported.model, prepared.evaluation)
    return prepared.per_sample({name: [row[name] for row in rows] for name in rows[0]})


def _time(
    old: _Side,
    new: _Side,
    samples: int,
    request: Request,
    gate: Gate,
    limits: Limits,
    say: Say,
) -> tuple[Array, Array]:
    """Time both chunk by chunk until it is decided who is slower, or the limits are reached.

    Returns:
        Latencies of the baseline and of the model, each of shape (chunks, calls).
    """
    pair = (old.contender, new.contender)
    call_ns = max(contender.call_ns for contender in pair)
    for contender in pair:
        contender.call_ns = call_ns  # so that their blocks are of the same number of calls
    blocks = max(2, math.ceil(chunk_calls(call_ns) / block_calls(call_ns)))
    rng = np.random.default_rng(request.seed)
    canaries: list[int] = []
    found: list[tuple[Array, Array]] = []
    while len(found) < MOST_CHUNKS and not limits.expired:
        for _ in range(blocks):
            seed = int(rng.integers(2**32))
            for index in rng.permutation(2):
                # The same seed for both: the same inputs in the same order.
                time_block(pair[index], samples, limits, np.random.default_rng(seed), canaries)
        for side in (old, new):
            if side.contender.error is not None:
                raise InputError(f"the {side.what} failed while it was timed: "
                                 f"{side.contender.error}")  # fmt: skip
        found.append((_last(pair[0], blocks), _last(pair[1], blocks)))
        say(len(found) / MOST_CHUNKS, f"{len(found) * blocks} blocks of each, in turns")
        if is_look(len(found)):
            so_far = _stacked(found)
            if decided(ratios(*so_far, gate.tolerance, request.confidence)):
                return so_far
    if not found:
        raise InputError("the time limit left no time to compare with the baseline")
    return _stacked(found)


def _last(contender: Contender, blocks: int) -> Array:
    return np.concatenate([block.samples_ns for block in contender.profile.blocks[-blocks:]])


def _stacked(found: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.stack([old for old, _ in found]), np.stack([new for _, new in found])
