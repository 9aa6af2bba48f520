"""Judge a result folder again: the same artefact, budgets and floor, on the machine at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from optimize.budgets.budget import Budget, Floor
from optimize.budgets.metrics import METRICS
from optimize.errors import InputError
from optimize.installed import versions
from optimize.models.model import FILE_NAME
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.models.source import detect
from optimize.models.usercode import is_reference
from optimize.observer import Observer
from optimize.passes.chain import SOURCE
from optimize.request import Request, parse_input
from optimize.results.choose import Objective
from optimize.results.output import MANIFEST, REPORT, changed
from optimize.results.report import Report, Result
from optimize.run.pipeline import run
from optimize.targets.base import Target
from optimize.targets.local import LocalTarget
from optimize.worker import granted_cpus


@dataclass(frozen=True)
class Overrides:
    """What may be said anew; None keeps what the folder says.

    Attributes:
        unlimited: whether there is no time limit, whatever the folder says.
        trust_pickle: whether the source may run code; a folder cannot say that of itself.
        cache: where the source's export may be kept; what is measured is measured again.
    """

    source: str | None = None
    data: str | None = None
    metric: str | None = None
    threads: int | None = None
    time_limit_s: float | None = None
    unlimited: bool = False
    trust_pickle: bool = False
    cache: Path | None = None


@dataclass(frozen=True)
class _Arguments:
    """What was asked for; files are relative to the result folder's parent."""

    model: str
    data: str | None
    calibration: str | None
    metric: str | None
    arch: str | None
    inputs: tuple[str, ...]
    pre: str | None
    post: str | None
    strict_floor: bool
    max_samples: int
    time_limit_s: float | None
    objective: Objective
    cpus: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _Manifest:
    """What a result folder says of itself, as far as a second verdict needs it."""

    tool: Literal["tailfit"]
    schema: Literal[1]
    files: dict[str, str]
    arguments: _Arguments
    chain: str | None
    runtime: str
    threads: int
    batch: int
    seed: int
    source_digest: str
    data_digest: str
    model: str | None = FILE_NAME
    format: str | None = "onnx"


def verify(
    folder: Path,
    overrides: Overrides,
    observer: Observer | None = None,
    target: Target | None = None,
) -> Result:
    """Measure and judge the folder's model again, beside the source if that is at hand.

    Without the source, a floor that is a drop is held against the value that the source had when
    the folder was made.

    Raises:
        InputError: the folder is not ours, damaged, holds no model, or its data are not at hand.
    """
    manifest, report = _read(folder)
    target = target or LocalTarget()
    request = _request(folder, manifest, report, overrides)
    result = run(request, observer, target)
    notes = _differences(manifest, report, result.report, target, request.reference_only)
    if not request.reference_only:
        notes.append("the source is not at hand as it was: its recorded value is the standard")
    return replace(result, report=replace(result.report, notes=(*notes, *result.report.notes)))


def _read(folder: Path) -> tuple[_Manifest, Report]:
    manifest = _read_manifest(folder)
    for name in changed(folder, {REPORT: "", **manifest.files}):
        raise InputError(f"{folder} is damaged: {name} is missing or was changed since")
    if manifest.chain is None or manifest.model not in manifest.files:
        raise InputError(f"{folder} holds no model: no variant was kept when it was made")
    report = Report.from_json((folder / REPORT).read_text(encoding="utf-8"))
    if not report.budgets:
        raise InputError(
            f"{folder} was made without a budget, so that there is nothing to verify; judge its "
            f"model by optimize profile {folder / manifest.model} --budget p99=20ms"
        )
    return manifest, report


def _read_manifest(folder: Path) -> _Manifest:
    from pydantic import TypeAdapter, ValidationError

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one that optimize has written")
    try:
        return TypeAdapter(_Manifest).validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    raise InputError(f"{folder} holds no {MANIFEST} of a result ({reason}); name a result folder")


def _request(folder: Path, manifest: _Manifest, report: Report, overrides: Overrides) -> Request:
    arguments = _placed(manifest.arguments, folder.resolve().parent)
    _refuse_another_metric(folder, arguments.metric, report, overrides)
    source = Path(overrides.source or arguments.model)
    if overrides.source and not source.exists():
        raise InputError(f"--source {source} does not exist")
    request = _as_it_was(folder, arguments, manifest, report, overrides)
    unchanged = source.exists() and detect(source).digest == manifest.source_digest
    if overrides.source or unchanged:
        floor = request.floor if unchanged else _absolute(request.floor, report, source)
        return replace(
            request,
            floor=floor,
            model=source,
            rivals=(folder,),
            labels=("source", _label(manifest)),
            reference_only=True,
        )
    if manifest.format != "onnx" or manifest.runtime != DEFAULT_RUNTIME:
        raise InputError(
            f"{folder} is served by {manifest.runtime} and compared with its source, "
            f"and {source} is not here as it was; give --source"
        )
    floor = _absolute(request.floor, report, source)
    return replace(request, labels=(str(manifest.chain),), floor=floor)


def _label(manifest: _Manifest) -> str:
    """What the folder's model is called beside its source, which it may be itself."""
    chain = str(manifest.chain)
    return f"{chain} as kept" if chain == SOURCE else chain


def _refuse_another_metric(
    folder: Path, was: str | None, report: Report, overrides: Overrides
) -> None:
    """Another folder may hold the metric now, but not another metric."""
    judged = was or (report.floor.metric if report.floor else "")
    asked = _name(overrides.metric or "")
    same = {asked, asked.partition(":")[0]}  # an output may be named that was not
    if overrides.metric and _name(judged) not in same:
        raise InputError(
            f"{folder} was judged by {_name(judged) or 'no metric'}; "
            "judge another metric with optimize profile"
        )


def _name(metric: str) -> str:
    """What tells metrics apart: of a user's own, the names of its file and function."""
    return Path(metric).name if is_reference(metric) else metric


def _as_it_was(
    folder: Path,
    arguments: _Arguments,
    manifest: _Manifest,
    report: Report,
    overrides: Overrides,
) -> Request:
    """The folder's model alone, asked what it was asked when it was made."""
    data = overrides.data or arguments.data
    if data is not None:
        file = data.rpartition(":")[0] if is_reference(data) else data
        if not Path(file).exists():
            if overrides.data:
                raise InputError(f"--data {file} does not exist")
            raise InputError(f"the data {file} are not here; give --data")
    return Request(
        model=folder / FILE_NAME,
        budgets=tuple(Budget.parse(budget.text) for budget in report.budgets),
        floor=report.floor.declared if report.floor else None,
        data=data,
        calibration=arguments.calibration,
        metric=overrides.metric or arguments.metric,
        objective=arguments.objective,
        threads=manifest.threads if overrides.threads is None else overrides.threads,
        batch=manifest.batch,
        confidence=report.settings.confidence,
        time_limit_s=_time_limit(overrides, arguments),
        cpus=_cpus(arguments),
        inputs=tuple(map(parse_input, arguments.inputs)),
        arch=arguments.arch,
        trust_pickle=overrides.trust_pickle,
        seed=manifest.seed,
        strict_floor=arguments.strict_floor,
        max_samples=arguments.max_samples,
        pre=arguments.pre,
        post=arguments.post,
        as_is=True,
        cache=overrides.cache,
        records=False,
    )


def _time_limit(overrides: Overrides, arguments: _Arguments) -> float | None:
    if overrides.unlimited:
        return None
    own = overrides.time_limit_s
    return arguments.time_limit_s if own is None else own


def _cpus(arguments: _Arguments) -> tuple[int, ...] | None:
    """The cores that were asked for, if they are granted here, too."""
    asked = arguments.cpus or ()
    return asked if asked and set(asked) <= set(granted_cpus()) else None


def _placed(arguments: _Arguments, parent: Path) -> _Arguments:
    """Make the manifest's files, which are relative to the result folder's parent, reachable."""
    placed = {}
    for name in ("model", "data", "calibration", "metric", "arch", "pre", "post"):
        text: str | None = getattr(arguments, name)
        built_in = name == "metric" and str(text).partition(":")[0] in METRICS
        if text is not None and not built_in:
            placed[name] = str(parent / text)
    return replace(arguments, **placed)  # type: ignore[arg-type]  # names of texts


def _absolute(floor: Floor | None, report: Report, source: Path) -> Floor | None:
    """Turn a drop into the value that it stood for: another source must not lower it.

    Raises:
        InputError: the metric is cosine, which says nothing without that source.
    """
    metric = report.floor.metric if report.floor else ""
    if metric == "cosine":
        raise InputError(
            f"cosine compares with the source, and {source} is not here as it was; give --source"
        )
    row = report.variant(report.chosen) if report.chosen else None
    if floor is None or floor.kind == "absolute" or row is None or row.accuracy is None:
        return floor
    limit = row.accuracy.judged.limit(floor)
    return Floor("absolute", float(f"{limit:.12g}"), metric)  # 0.8137, not 0.8136999999999999


def _differences(
    manifest: _Manifest, then: Report, now: Report, target: Target, source_given: bool
) -> list[str]:
    """What is not as it was when the folder was made."""
    notes = []
    device = target.device()
    for name in ("cpu", "isa", "cores", "granted_cores", "memory_bytes"):
        old, new = getattr(then.device, name), getattr(device, name)
        if old != new:
            notes.append(f"another device: {name} was {old}, here it is {new}")
    for name, old in then.versions.items():
        new = versions().get(name)
        if new != old:
            notes.append(f"{name} was {old}, here it is {new or 'missing'}")
    asked = manifest.arguments.cpus
    if asked and _cpus(manifest.arguments) is None:
        cores = ",".join(map(str, asked))
        notes.append(f"--cpus was {cores}, which is not granted here: all granted cores are used")
    if source_given and now.source.digest != manifest.source_digest:
        notes.append(
            "the source is not that of the first verdict, from which a drop is counted all the same"
        )
    if manifest.data_digest != now.data.digest:
        notes.append("the data are not those of the first verdict")
    return notes
