"""Hold a model against its baseline: both run here and now, in turns, on the same samples."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.accuracy import Accuracy, compare
from optimize.budgets.regression import (
    MOST_CHUNKS,
    Loss,
    Ratio,
    chunk_calls,
    decided,
    is_look,
    ratios,
)
from optimize.budgets.scores import Outputs
from optimize.cache.store import Store
from optimize.errors import InputError, WorkerError
from optimize.gate.cases import Gate
from optimize.judging.screen import MEMORY_SHARE
from optimize.models.export import Exported, load_and_export
from optimize.models.model import FILE_NAME, Model, Signature, TensorSpec
from optimize.models.run import run
from optimize.models.source import detect
from optimize.prepare import Prepared, prepare
from optimize.processes.child import Child
from optimize.processes.scratch import run_folder
from optimize.profiling.confirm import FRESH_PROCESSES
from optimize.profiling.measure import (
    Contender,
    Limits,
    block_calls,
    collect_outputs,
    lead_ns,
    open_worker,
    time_block,
    warm_up,
)
from optimize.request import Request
from optimize.results import output
from optimize.results.report import Result
from optimize.targets.base import Settings, Target
from optimize.targets.inputs import write_inputs
from optimize.targets.serving import serving

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
        return self.accuracy is not None and worse(self.accuracy, self.loss)

    def to_json(self) -> str:
        """The comparison as JSON text."""
        states = {ratio.quantity: ratio.state for ratio in self.ratios}
        fields = {"schema": 1, **asdict(self), "states": states, "metric_worse": self.worse}
        return json.dumps(fields, indent=2) + "\n"


def worse(accuracy: Accuracy, loss: float) -> bool:
    """Whether an interval shows that more than ``loss`` of a metric is lost."""
    if accuracy.higher_is_better:
        return accuracy.change_high < -loss
    return accuracy.change_low > loss


@dataclass
class _Side:
    """One of the two models while it is measured."""

    what: str
    model: Model
    contender: Contender
    outputs: Outputs


def find(folder: Path, label: str, name: str, alone: bool) -> Path | None:
    """The result folder of a model in ``folder``, which may be one itself; None if it is not there.

    Raises:
        InputError: there is no folder, it is the result of one of several models, or what is there
            under the model's name is no result.
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
    for choice in (folder / label, folder / name):
        if output.is_result(choice):
            return choice
        if choice.exists():
            raise InputError(
                f"--against {folder}: {choice.name} is no result, or a damaged one; "
                "fetch it again, or remove it and give --allow-new"
            )
    return None


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
        InputError: the baseline holds no model or takes other inputs, or one does not run here.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(run_folder())
        comparison = _Comparison(baseline, request, result, gate, target, say, folder)
        return comparison.run(stack)


@dataclass
class _Comparison:
    """One comparison: see :func:`hold_against`; ``folder`` is for its files."""

    baseline: Path
    request: Request
    result: Result
    gate: Gate
    target: Target
    say: Say
    folder: Path

    def __post_init__(self) -> None:
        limit = self.request.time_limit_s
        self._limits = Limits(deadline=None if limit is None else time.monotonic() + limit)

    def run(self, stack: ExitStack) -> Regression:
        """Measure both; their processes end with ``stack``."""
        self.say(0.0, "the baseline")
        prepared = self._prepare(stack)
        sides = self._open(prepared, stack)
        accuracy, gap = self._accuracy(*sides, prepared)
        lost = (self.gate.loss or Loss(0.0)).of(accuracy.source_value if accuracy else 0.0)
        stopped = accuracy is not None and worse(accuracy, lost)
        with self._alone():
            chunks = self._time(*sides, len(prepared.latency), stopped)
        return Regression(
            baseline=sides[0].model.digest,
            ratios=ratios(*chunks, self.gate.tolerance, self.request.confidence),
            accuracy=accuracy,
            loss=lost,
            gap=gap,
            calls=chunks[0].size,
        )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Time while no other run on the cache times or builds."""
        if self.request.cache is None:
            yield
            return
        with (
            Store(self.request.cache) as store,
            store.turns.turn(shared=False, deadline=self._limits.deadline),
        ):
            yield

    def _prepare(self, stack: ExitStack) -> Prepared:
        child = Child(self.folder)
        stack.callback(child.close)
        standard = _standard(self.request, self.result)

        def export(*given: Any) -> Exported:
            return child.call(load_and_export, *given)

        return prepare(standard, detect(standard.model), self.folder, export)

    def _open(self, prepared: Prepared, stack: ExitStack) -> tuple[_Side, _Side]:
        """Load both models, and take their outputs."""
        assert self.result.folder is not None  # a model that was kept is written
        signature = prepared.exported.model.signature
        old, old_runtime = output.read_artefact(self.baseline, signature)
        new, new_runtime = output.read_artefact(self.result.folder, signature)
        _same_interface(old.signature, new.signature, self.baseline)
        inputs = write_inputs(prepared.latency, self.folder / "inputs")
        before = self._side("baseline", old, old_runtime, inputs)
        now = self._side("model", new, new_runtime, inputs)
        for side in (before, now):
            stack.callback(side.contender.close)
            self._start(side, prepared)
        return before, now

    def _side(self, what: str, model: Model, runtime: str, inputs: Path) -> _Side:
        request = self.request
        cores = min(self.target.device().granted_cores, len(request.cpus or ()) or 10**6)
        settings = Settings(threads=request.threads or cores, cpus=request.cpus)
        scratch = self.folder / what
        job = serving(model, runtime, settings, inputs, scratch, request.pre, request.post)
        return _Side(what, model, Contender(what, job), {})

    def _start(self, side: _Side, prepared: Prepared) -> None:
        """Load a model in processes of its own, take its outputs, and warm it up."""
        contender = side.contender
        try:
            open_worker(self.target, contender, self._limits)
            found = collect_outputs(contender, len(prepared.evaluation), self._limits)
            side.outputs = prepared.per_sample(found)
            memory = self.target.device().memory_bytes or 8 << 30
            spare = MEMORY_SHARE * memory / 2 - contender.rss_bytes * FRESH_PROCESSES
            # A process may be slow by the chance of where its memory lies; three average that out.
            for _ in range(FRESH_PROCESSES - 1 if spare > 0 else 0):
                open_worker(self.target, contender, self._limits)
            warm_up(contender, self._limits)
        except WorkerError as error:
            raise InputError(f"the {side.what} does not run here: {error}") from error

    def _accuracy(
        self, old: _Side, new: _Side, prepared: Prepared
    ) -> tuple[Accuracy | None, str | None]:
        """The metric of both on the same samples, or why that says nothing."""
        metric = prepared.metric
        if self.gate.loss is None:
            return None, None
        standard: Outputs = {}
        if metric.name == COSINE:
            manifest = json.loads((self.baseline / output.MANIFEST).read_text(encoding="utf-8"))
            if manifest["source_digest"] != self.result.report.source.digest:
                return None, (
                    "cosine compares with the source, which is another one now; "
                    'declare a metric with labels, or metric_tolerance = "none"'
                )
            standard = _reference(prepared)
        scores = [metric.score(side.outputs, prepared.labels, standard) for side in (new, old)]
        return compare(metric, scores[0], scores[1], self.request.confidence), None

    def _time(self, old: _Side, new: _Side, samples: int, stopped: bool) -> tuple[Array, Array]:
        """Time both chunk by chunk until it is decided who is slower, or the limits are reached.

        Args:
            old: the baseline.
            new: the model.
            samples: to draw inputs from.
            stopped: whether the model is stopped anyway; one look then tells enough.

        Returns:
            Latencies of the baseline and of the model, each of shape (chunks, calls).
        """
        pair = (old.contender, new.contender)
        call_ns = max(contender.call_ns for contender in pair)
        for contender in pair:
            contender.call_ns = call_ns  # so that their blocks are of the same number of calls
        blocks = max(2, math.ceil(chunk_calls(call_ns) / block_calls(call_ns)))
        rng = np.random.default_rng(self.request.seed)
        canaries, lead = list[int](), lead_ns(pair)
        found: list[tuple[Array, Array]] = []
        while len(found) < MOST_CHUNKS and not self._limits.expired:
            for _ in range(blocks):
                seed = int(rng.integers(2**32))
                for index in rng.permutation(2):
                    # The same seed for both: the same inputs in the same order.
                    drawn = np.random.default_rng(seed)
                    time_block(pair[index], samples, self._limits, drawn, canaries, lead)
            found.append((_last(old, blocks), _last(new, blocks)))
            self.say(len(found) / MOST_CHUNKS, f"{len(found) * blocks} blocks of each, in turns")
            if is_look(len(found)) and (stopped or self._decided(found)):
                break
        if not found:
            raise InputError("the time limit left no time to compare with the baseline")
        return _stacked(found)

    def _decided(self, found: list[tuple[Array, Array]]) -> bool:
        chunks = _stacked(found)
        return decided(ratios(*chunks, self.gate.tolerance, self.request.confidence))


def _standard(request: Request, result: Result) -> Request:
    """What the samples are read for: the model itself, which needs no export, where that does."""
    floor, model = result.report.floor, result.model
    if model is None or model.name != FILE_NAME or (floor and floor.metric == COSINE):
        return request
    return replace(request, model=model, arch=None)


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


def _reference(prepared: Prepared) -> Outputs:
    """The source's own outputs."""
    rows = run(prepared.exported.model, prepared.evaluation)
    return prepared.per_sample({name: [row[name] for row in rows] for name in rows[0]})


def _last(side: _Side, blocks: int) -> Array:
    """The calls of the last blocks, unless one of them failed."""
    if side.contender.error is not None:
        raise InputError(f"the {side.what} failed while it was timed: {side.contender.error}")
    return np.concatenate([block.samples_ns for block in side.contender.profile.blocks[-blocks:]])


def _stacked(found: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.stack([old for old, _ in found]), np.stack([new for _, new in found])
