"""From the user's files to an exported model, shared-out samples and a metric."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimize.budgets.budget import Floor
from optimize.budgets.metrics import METRICS, Metric, custom
from optimize.errors import InputError, TimeIsUp, nearest
from optimize.models import data as samples
from optimize.models.data import Array, Dataset
from optimize.models.export import Exported
from optimize.models.model import Model
from optimize.models.source import Source
from optimize.models.usercode import call, is_reference, load_function
from optimize.request import Request
from optimize.results.report import DataReport

Export = Callable[..., Exported]
SYNTHETIC_SAMPLES = 32
DEFAULT_DROP = Floor("drop", 0.01)
DEFAULT_COSINE = Floor("absolute", 0.99, "cosine")


@dataclass(frozen=True, eq=False)
class Prepared:
    """All that variants are made from and judged on.

    Attributes:
        exported: the source as ONNX.
        evaluation: batches that the accuracy is evaluated on.
        calibration: batches that ranges may be estimated from; None without real data.
        training: batches to train on, none of which is judged on; None for those to calibrate on.
        latency: batches that are timed: all of the data, evaluation first.
        labels: of the evaluation's single samples; None without.
        batch: samples a call.
        metric: how outputs are judged.
        floor: what the metric must reach.
        data: the same in figures.
        notes: what a reader must know.
    """

    exported: Exported
    evaluation: Dataset
    calibration: Dataset | None
    latency: Dataset
    labels: Array | None
    batch: int
    metric: Metric
    floor: Floor
    data: DataReport
    notes: tuple[str, ...]
    training: Dataset | None = None

    def per_sample(self, outputs: dict[str, list[Array]]) -> dict[str, list[Array]]:
        """Split each call's outputs into single samples, without the batch axis.

        Raises:
            InputError: an output does not hold one entry for each sample of a batch.
        """
        if not self.evaluation.batch_first:
            return outputs
        return {name: self._rows(name, arrays) for name, arrays in outputs.items()}

    def _rows(self, name: str, arrays: list[Array]) -> list[Array]:
        if all(array.ndim > 0 and array.shape[0] == self.batch for array in arrays):
            return [row for array in arrays for row in array]
        if self.batch == 1:
            return arrays
        raise InputError(f"output {name} has no batch axis; its samples need --batch 1")


def check(request: Request) -> None:
    """Refuse what can be told to be wrong before anything is loaded.

    Raises:
        InputError: a metric is unknown, or samples are not there.
    """
    given = {
        "--data": request.data,
        "--calibration": request.calibration,
        "--train": request.train,
    }
    for option, where in given.items():
        if where:
            samples.check_there(where, option)
    if request.pre:
        load_function(request.pre, "--pre")
    _metric(request, _Clock(None, 0.0))


def prepare(request: Request, source: Source, folder: Path, export: Export) -> Prepared:
    """Load, export and check the source, and share the samples out.

    Args:
        request: the run.
        source: what ``request.model`` is.
        folder: receives the exported model.
        export: :func:`load_and_export`, wherever it runs.

    Raises:
        InputError: anything given does not fit.
    """
    clock = _Clock(request.time_limit_s, time.monotonic())
    metric, floor = _metric(request, clock)
    raw = samples.read_data(request.data) if request.data else None
    real = _processed(raw, request.pre, "--data", clock) if raw else None
    probe = samples.representative(real) if real else None
    exported = export(source, request.arch, request.trust_pickle, probe, request.inputs, folder)
    data = real or samples.synthetic(exported.specs, SYNTHETIC_SAMPLES, request.seed)
    data = samples.fit(data, exported.model.signature.inputs)
    calibration = _further(request.calibration, "--calibration", request.pre, exported, clock)
    lessons = _further(request.train, "--train", request.pre, exported, clock)
    evaluation, own, notes = data, None, list[str]()
    latency = raw if request.pre else None
    if real and calibration is None:
        if len(data) > 1:
            own, evaluation = samples.split(data, request.seed)
            calibration = own
            if raw and request.pre:
                latency = _joined(*reversed(samples.split(raw, request.seed)))
        else:
            notes.append("one sample cannot be shared: passes that need calibration are left out")
    if calibration is not None:
        calibration = _without_nan(calibration, notes)
    metric, floor = _defaults(metric, floor, data)
    _refuse_unknown_output(metric, exported)
    if real is None:
        notes.append(
            "no data was given: the accuracy was judged on synthetic inputs, which says "
            "little about real ones"
        )
    prepared = _assemble(request, exported, evaluation, calibration, own, metric, floor, notes)
    if calibration is not None and (request.calibration or _trains(request)):
        prepared = _taught(prepared, calibration, evaluation, "calibrate")
    if lessons is not None:
        samples.batched(lessons, prepared.batch)  # which refuses too few
        prepared = _taught(prepared, lessons, evaluation, "train")
    return prepared if latency is None else replace(prepared, latency=latency)


def load_rival(
    request: Request, source: Source, prepared: Prepared, folder: Path, export: Export
) -> Model:
    """Load another model that takes the same samples as the prepared one.

    Raises:
        InputError: it cannot be loaded, or takes other inputs.
    """
    probe = samples.representative(prepared.evaluation)
    path = source.path
    try:
        exported = export(source, request.arch, request.trust_pickle, probe, (), folder)
        samples.fit(prepared.evaluation, exported.model.signature.inputs)
    except InputError as error:
        raise InputError(
            f"{path}: {error}" if str(path) not in str(error) else str(error)
        ) from error
    takes = sorted(spec.name for spec in exported.model.signature.inputs)
    given = sorted(prepared.evaluation.inputs)
    if takes != given:  # the only input of a model takes samples of any name
        raise InputError(
            f"{path} takes {', '.join(takes)}, {request.model} takes {', '.join(given)}: "
            "they cannot be given the same samples"
        )
    outputs = [spec.name for spec in exported.model.signature.outputs]
    wanted = [spec.name for spec in prepared.exported.model.signature.outputs]
    if prepared.metric.output in outputs:
        outputs = wanted  # the others are not compared
    if sorted(outputs) != sorted(wanted) and prepared.metric.name == "cosine":
        raise InputError(
            f"{path} gives {', '.join(outputs)}, {request.model} gives {', '.join(wanted)}: "
            "they cannot be compared by cosine"
        )
    return exported.model


@dataclass(frozen=True)
class _Clock:
    """How much of the time limit is left for what a user's functions take."""

    limit_s: float | None
    begun: float

    @property
    def up(self) -> bool:
        """Whether the limit has passed."""
        return self.limit_s is not None and time.monotonic() > self.begun + self.limit_s

    def __str__(self) -> str:
        return f"the time limit of {self.limit_s:g} s was up"


def _processed(data: Dataset, pre: str | None, purpose: str, clock: _Clock) -> Dataset:
    """Turn what ``--pre`` takes into what the model takes, for all that is not timed."""
    if pre is None:
        return data
    function = load_function(pre, "--pre")
    # Copies, so that a function that works in place leaves the raw samples as they are.
    copies = ({k: v.copy() for k, v in data.sample(i).items()} for i in range(len(data)))
    given: list[dict[str, Any]] = []
    for sample in copies:
        if clock.up:
            made = f"{len(given)} of {len(data)} samples of {purpose}"
            raise InputError(f"{clock} when --pre {pre} had made {made}")
        given.append(call(function, f"--pre {pre}", sample))
    if not all(isinstance(sample, dict) for sample in given):
        raise InputError(f"--pre {pre} must return a dictionary of arrays by input name")
    if len({frozenset(sample) for sample in given}) > 1:
        raise InputError(f"--pre {pre} gives other inputs for some samples of {purpose}")
    inputs = {name: [np.asarray(sample[name]) for sample in given] for name in given[0]}
    return replace(data, inputs=inputs)


def _further(
    where: str | None, purpose: str, pre: str | None, exported: Exported, clock: _Clock
) -> Dataset | None:
    """Samples beside those of ``--data``, as the model takes them; None if none are given."""
    if where is None:
        return None
    read = _processed(samples.read_data(where, purpose), pre, purpose, clock)
    return samples.fit(read, exported.model.signature.inputs, purpose)


def _trains(request: Request) -> bool:
    """Whether a pass may train."""
    asked = request.prune or request.distill or request.student
    steps = (step for chain in request.chains or () for step in chain.passes)
    return bool(asked) or any("torch" in step.takes for step in steps)


def _taught(prepared: Prepared, lessons: Dataset, judged: Dataset, purpose: str) -> Prepared:
    """Train on what is not judged on: of the rest, accuracy would tell nothing."""
    known = set(samples.shared(lessons, judged))
    notes = prepared.notes
    if known:
        effect = "no training is done on them"
        if purpose == "calibrate":
            effect += ", but what is calibrated or refitted on them may look better than it is"
        told = (
            f"{len(known)} of {len(lessons)} samples to {purpose} on are judged on, too: {effect}"
        )
        notes = (*notes, told)
    rest = lessons.take(index for index in range(len(lessons)) if index not in known)
    if len(rest) < prepared.batch:  # none rather than those to calibrate on
        return replace(prepared, training=rest.take(()), notes=notes)
    return replace(prepared, training=samples.batched(rest, prepared.batch), notes=notes)


def _without_nan(calibration: Dataset, notes: list[str]) -> Dataset | None:
    """The samples that ranges can be estimated from; one NaN would spoil them all, unseen."""
    usable = [
        index
        for index in range(len(calibration))
        if not any(
            a.dtype.kind == "f" and np.isnan(a).any() for a in calibration.sample(index).values()
        )
    ]
    lost = len(calibration) - len(usable)
    if lost:
        notes.append(f"{lost} of {len(calibration)} samples to calibrate on hold NaN: left out")
    return calibration.take(usable) if usable else None


def _assemble(
    request: Request,
    exported: Exported,
    evaluation: Dataset,
    calibration: Dataset | None,
    own: Dataset | None,
    metric: Metric,
    floor: Floor,
    notes: list[str],
) -> Prepared:
    """Batch the shares; ``own`` is a calibration share that came from the data itself."""
    fixed = samples.static_batch(exported.model.signature.inputs)
    if not evaluation.batch_first:
        fixed = None  # each sample holds a whole call already
    batch = request.batch or fixed or 1
    if fixed and fixed != batch:
        raise InputError(f"--batch {batch} does not fit: the model's batch is fixed to {fixed}")
    whole = samples.batched(evaluation, batch)
    if rest := len(evaluation) % batch:
        notes.append(
            f"{rest} of {len(evaluation)} samples to judge on fill no batch of {batch}: left out"
        )
    extra = samples.batched(own, batch) if own and len(own) >= batch else None
    fitted = None
    if calibration is not None:
        fitted = samples.batched(calibration, batch) if len(calibration) >= batch else None
    report = DataReport(
        origin=Path(evaluation.origin).name,
        digest=evaluation.digest,
        synthetic=request.data is None,
        samples=len(evaluation) + len(own or ()),
        latency_samples=(len(whole) + len(extra or ())) * batch,
        evaluation_samples=len(whole) * batch,
        calibration_samples=len(calibration or ()),
        calibration_origin=Path(request.calibration).name if request.calibration else None,
        batch=batch,
    )
    return Prepared(
        exported=exported,
        evaluation=whole,
        calibration=fitted,
        latency=_joined(whole, extra),
        labels=None if evaluation.labels is None else evaluation.labels[: len(whole) * batch],
        batch=batch,
        metric=metric,
        floor=floor,
        data=report,
        notes=tuple(notes),
    )


def _joined(first: Dataset, second: Dataset | None) -> Dataset:
    if second is None:
        return first
    inputs = {name: [*arrays, *second.inputs[name]] for name, arrays in first.inputs.items()}
    return replace(first, inputs=inputs, labels=None)


def _metric(request: Request, clock: _Clock) -> tuple[Metric | None, Floor | None]:
    """The metric and floor as far as the request tells, without looking at the data."""
    floor = request.floor
    name = request.metric or (floor.metric if floor else None)
    if name is None:
        return None, floor
    if is_reference(name):
        metric = _custom(name, clock)
    elif name.partition(":")[0] in METRICS:
        base, colon, output = name.partition(":")
        metric = METRICS[base].of(output) if colon else METRICS[base]
    elif ".py" in name:
        raise InputError(f"--metric {name!r} is not of the form file.py:function")
    else:
        choices = [*METRICS, "METRIC:OUTPUT", "file.py:function"]
        where = "--metric" if request.metric else f"floor {floor}:"
        raise InputError(f"{where} {name} is unknown; {nearest(name, choices)}")
    if floor and floor.metric and floor.metric != metric.name:
        raise InputError(f"floor {floor} is not a value of the metric {metric.name}")
    return metric, floor


def _custom(reference: str, clock: _Clock) -> Metric:
    function = load_function(reference, "--metric")

    def checked(outputs: Any, labels: Any) -> float:
        if clock.up:
            raise TimeIsUp(f"{clock} while --metric {reference} was computed")
        value = call(function, f"--metric {reference}", outputs, labels)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise InputError(
                f"--metric {reference} must return a number, it gave {type(value).__name__}"
            ) from None

    return custom(reference.rpartition(":")[2], checked)


def _refuse_unknown_output(metric: Metric, exported: Exported) -> None:
    names = [spec.name for spec in exported.model.signature.outputs]
    if metric.output is not None and metric.output not in names:
        raise InputError(
            f"--metric {metric.key}: the model has no output {metric.output!r}, "
            f"it gives {', '.join(names)}"
        )


def _defaults(metric: Metric | None, floor: Floor | None, data: Dataset) -> tuple[Metric, Floor]:
    labelled = data.labels is not None
    metric = metric or METRICS["top1" if labelled else "cosine"]
    if metric.needs_labels and not labelled:
        raise InputError(
            f"metric {metric.name} needs labels; {data.origin} holds none. "
            "Add an array named labels, or use --metric cosine"
        )
    default = DEFAULT_COSINE if metric.name == "cosine" else DEFAULT_DROP
    return metric, floor or default
