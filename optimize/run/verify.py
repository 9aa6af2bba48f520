"""Judge a result folder again: the same artefact, budgets and floor, on the machine at hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optimize.budgets.accuracy import METRICS
from optimize.budgets.budget import Budget, Floor
from optimize.errors import InputError
from optimize.installed import versions
from optimize.models.model import FILE_NAME, file_digest
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.models.source import detect
from optimize.models.usercode import is_reference
from optimize.observer import Observer
from optimize.request import Request, parse_input
from optimize.results.output import MANIFEST, REPORT
from optimize.results.report import AccuracyReport, Report, Result
from optimize.run.pipeline import run
from optimize.targets.base import Target
from optimize.targets.local import LocalTarget
from optimize.worker import granted_cpus


@dataclass(frozen=True)
class Overrides:
    """What may be said anew; None keeps what the folder says.

    Attributes:
        unlimited: whether there is no time limit, whatever the folder says.
        cache: where the source's export may be kept; what is measured is measured again.
    """

    source: str | None = None
    data: str | None = None
    metric: str | None = None
    threads: int | None = None
    time_limit_s: float | None = None
    unlimited: bool = False
    cache: Path | None = None


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
    notes = _differences(manifest, report, result.report, target)
    if not request.reference_only:
        notes.append("the source is not at hand as it was: its recorded value is the standard")
    return replace(result, report=replace(result.report, notes=(*notes, *result.report.notes)))


def _read(folder: Path) -> tuple[dict[str, Any], Report]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name one that optimize has written")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["tool"] != "tailfit" or manifest["schema"] != 1:
            raise KeyError("tool")
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} holds no manifest.json of a result; name a result folder"
        ) from None
    for name, digest in files.items():
        file = folder / name
        inside = not Path(name).is_absolute() and ".." not in Path(name).parts
        if not inside or not file.is_file() or file_digest(file) != digest:
            raise InputError(f"{folder} is damaged: {name} is missing or was changed since")
    if manifest["chain"] is None or manifest.get("model", FILE_NAME) not in files:
        raise InputError(f"{folder} holds no model: no variant was kept when it was made")
    report = Report.from_json((folder / REPORT).read_text(encoding="utf-8"))
    if not report.budgets:
        raise InputError(
            f"{folder} was made without a budget, so that there is nothing to verify; judge its "
            f"model by optimize profile {folder / manifest['model']} --budget p99=20ms"
        )
    return manifest, report


def _request(
    folder: Path, manifest: dict[str, Any], report: Report, overrides: Overrides
) -> Request:
    arguments = _placed(manifest["arguments"], folder.resolve().parent)
    _refuse_another_metric(folder, arguments["metric"], report, overrides)
    source = Path(overrides.source or arguments["model"])
    if overrides.source and not source.exists():
        raise InputError(f"--source {source} does not exist")
    request = _as_it_was(folder, arguments, manifest, report, overrides)
    unchanged = source.exists() and detect(source).digest == manifest["source_digest"]
    if overrides.source or unchanged:
        return replace(
            request,
            model=source,
            rivals=(folder,),
            labels=("source", manifest["chain"]),
            reference_only=True,
        )
    if manifest.get("format", "onnx") != "onnx" or manifest["runtime"] != DEFAULT_RUNTIME:
        raise InputError(
            f"{folder} is served by {manifest['runtime']} and compared with its source, "
            f"and {source} is not here as it was; give --source"
        )
    floor = _absolute(request.floor, report, source)
    return replace(request, labels=(manifest["chain"],), floor=floor)


def _refuse_another_metric(
    folder: Path, was: str | None, report: Report, overrides: Overrides
) -> None:
    """Another file may hold the metric now, but not another metric."""
    if not overrides.metric or overrides.metric == was:
        return
    if Path(overrides.metric.rpartition(":")[0]).name != _file_name(was):
        judged = report.floor.metric if report.floor else "no metric"
        raise InputError(
            f"{folder} was judged by {judged}; judge another metric with optimize profile"
        )


def _as_it_was(
    folder: Path,
    arguments: dict[str, Any],
    manifest: dict[str, Any],
    report: Report,
    overrides: Overrides,
) -> Request:
    """The folder's model alone, asked what it was asked when it was made."""
    data = overrides.data or arguments["data"]
    if data is not None:
        file = data.rpartition(":")[0] if is_reference(data) else data
        if not Path(file).exists():
            raise InputError(f"the data {file} are not here; give --data")
    return Request(
        model=folder / FILE_NAME,
        budgets=tuple(Budget.parse(budget.text) for budget in report.budgets),
        floor=_floor(report),
        data=data,
        calibration=arguments["calibration"],
        metric=overrides.metric or arguments["metric"],
        objective=arguments["objective"],
        threads=overrides.threads or manifest["threads"],
        batch=manifest["batch"],
        confidence=report.settings.confidence,
        time_limit_s=_time_limit(overrides, arguments),
        cpus=_cpus(arguments),
        inputs=tuple(map(parse_input, arguments["inputs"])),
        arch=arguments["arch"],
        trust_pickle=arguments["trust_pickle"],
        seed=manifest["seed"],
        strict_floor=arguments["strict_floor"],
        max_samples=arguments["max_samples"],
        pre=arguments["pre"],
        post=arguments["post"],
        as_is=True,
        cache=overrides.cache,
        records=False,
    )


def _time_limit(overrides: Overrides, arguments: dict[str, Any]) -> float | None:
    if overrides.unlimited:
        return None
    limit: float | None = overrides.time_limit_s or arguments["time_limit_s"]
    return limit


def _cpus(arguments: dict[str, Any]) -> tuple[int, ...] | None:
    """The cores that were asked for, if they are granted here, too."""
    asked = tuple(arguments.get("cpus") or ())
    return asked if asked and set(asked) <= set(granted_cpus()) else None


def _placed(arguments: dict[str, Any], parent: Path) -> dict[str, Any]:
    """Make the manifest's files, which are relative to the result folder's parent, reachable."""
    placed = dict(arguments)
    for name in ("model", "data", "calibration", "metric", "arch", "pre", "post"):
        text = arguments[name]
        if text is not None and not (name == "metric" and text in METRICS):
            placed[name] = str(parent / text)
    return placed


def _file_name(reference: str | None) -> str:
    return Path((reference or "").rpartition(":")[0]).name


def _floor(report: Report) -> Floor | None:
    return Floor.parse(report.floor.text) if report.floor else None


def _absolute(floor: Floor | None, report: Report, source: Path) -> Floor | None:
    """Turn a drop into the value it stood for, now that there is no source to compare with."""
    metric = report.floor.metric if report.floor else ""
    if metric == "cosine":
        raise InputError(
            f"cosine compares with the source, and {source} is not here; give --source"
        )
    row = report.variant(report.chosen) if report.chosen else None
    if floor is None or floor.kind == "absolute" or row is None or row.accuracy is None:
        return floor
    return Floor("absolute", _limit(row.accuracy, floor, metric), metric)


def _limit(accuracy: AccuracyReport, floor: Floor, metric: str) -> float:
    value = accuracy.source_value
    drop = floor.value * (abs(value) if floor.kind == "relative" else 1.0)
    known = METRICS.get(metric)
    return value - drop if known is None or known.higher_is_better else value + drop


def _differences(manifest: dict[str, Any], then: Report, now: Report, target: Target) -> list[str]:
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
    asked = manifest["arguments"].get("cpus")
    if asked and _cpus(manifest["arguments"]) is None:
        cores = ",".join(map(str, asked))
        notes.append(f"--cpus was {cores}, which is not granted here: all granted cores are used")
    if manifest["data_digest"] != now.data.digest:
        notes.append("the data are not those of the first verdict")
    return notes
