"""What a run comes to: its report, its manifest, and the result folder."""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from optimize.budgets.budget import PERCENTILES
from optimize.budgets.load import highest_rate
from optimize.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_KEPT,
    EXIT_NONE,
    EXIT_UNDECIDED,
    OptimizeError,
    first_cause,
)
from optimize.installed import versions
from optimize.models.model import Model
from optimize.models.runtimes import find_runtime
from optimize.models.usercode import is_reference
from optimize.passes.chain import SOURCE
from optimize.reports import folder as reports
from optimize.reports.command import command
from optimize.request import Request, spec_text
from optimize.results import output
from optimize.results.choose import nearest_miss
from optimize.results.report import (
    BudgetReport,
    DataReport,
    FloorReport,
    LoadReport,
    Report,
    Result,
    SettingsReport,
    SourceReport,
    VariantReport,
)
from optimize.results.serve import SCRIPT, script
from optimize.run.state import RunState


def finish(state: RunState, error: BaseException | None) -> Result:
    """Report a run, whatever ended it, and write its folder if it has one.

    Raises:
        InputError, OptimizeError: the folder cannot be written, and nothing else ended the run.
    """
    report = _report(state, error)
    folder = state.request.folder
    if folder is None:
        return Result(report, None, None, error)
    if error is None:
        result = _written(state, report, folder, None)
        output.remove(interrupted_folder(folder))  # this run went on from there
        return result
    if output.is_result(folder) and any(folder.glob("model.*")):
        # An earlier verdict stands; what came of this run lies beside it.
        folder = interrupted_folder(folder)
    try:
        output.check_writable(folder)
        return _written(state, report, folder, error)
    except OptimizeError as problem:  # which must not hide what ended the run
        report = replace(report, notes=(*report.notes, f"the report was not written: {problem}"))
        return Result(report, None, None, error)


def _written(state: RunState, report: Report, folder: Path, error: BaseException | None) -> Result:
    """Write everything into a folder."""
    artefact = state.artefacts.get(report.chosen) if report.chosen else None
    manifest = _manifest(state, report, artefact, folder)
    profiles = state.screening.profiles() if state.screening else {}
    shelf = state.screening.records if state.screening else None
    extra, problem = reports.for_run(report, profiles, error is not None, shelf)
    if problem:
        report = replace(report, notes=(*report.notes, problem))
    if artefact is not None:
        text = script(
            artefact,
            manifest["runtime"],
            manifest["provider"],
            state.settings.threads,
            manifest["model"],
            report.data.batch,
        )
        extra = {**extra, SCRIPT: text.encode()}
    if error is not None and not isinstance(error, KeyboardInterrupt):
        extra["error.txt"] = "".join(traceback.format_exception(error)).encode()
    path = output.write(folder, reports.shareable(report).to_json(), manifest, artefact, extra)
    return Result(report, folder, path, error)


def interrupted_folder(folder: Path) -> Path:
    """Where a run that was interrupted leaves its report if an earlier verdict stands."""
    return folder.with_name(f"{folder.name}.interrupted")


def _left_out(request: Request, rows: Sequence[VariantReport]) -> list[str]:
    """Chains that the user named and that gave nothing to measure."""
    named = set(map(str, request.chains or ()))
    return [r.chain for r in rows if r.chain in named and r.digest is None and r.chain != SOURCE]


def _report(state: RunState, error: BaseException | None) -> Report:
    request, prepared = state.request, state.prepared
    state.clock.stop()
    rows = _rows(state)
    screening = state.screening
    chosen = screening.chosen if screening and error is None else None
    floor = prepared.floor if prepared else request.floor
    metric = prepared.metric.name if prepared else request.metric or ""
    if isinstance(error, KeyboardInterrupt):
        state.notes.append("interrupted: what was finished is reported, nothing is chosen")
    recalled = sum(row.recalled for row in rows)
    if recalled:
        state.notes.append(
            f"the timings of {recalled} of {len(rows)} variants are an earlier run's, from the "
            "cache; --fresh measures again"
        )
    if error is not None and not isinstance(error, KeyboardInterrupt):
        state.notes.append(f"internal error: {first_cause(error)}; see error.txt")
    left_out = _left_out(request, rows)
    if left_out and not state.infeasible:
        state.notes.append(f"asked for, but without a model of its own: {', '.join(left_out)}")
    judged = rows[1:] if request.reference_only else rows
    return Report(
        source=_source_report(state),
        device=state.device,
        versions=versions(),
        settings=SettingsReport(
            objective=request.objective,
            confidence=request.confidence,
            provider=state.settings.provider,
            threads=state.settings.threads,
            cpus=state.settings.cpus,
            seed=request.seed,
            time_limit_s=request.time_limit_s,
            strict_floor=request.strict_floor,
        ),
        budgets=tuple(map(BudgetReport.of, request.budgets)),
        floor=FloorReport.of(floor, metric) if floor else None,
        data=prepared.data if prepared else _NO_DATA,
        variants=rows,
        chosen=chosen,
        exit_code=_exit_code(judged, chosen, error),
        infeasible=state.infeasible,
        nearest_miss=None if chosen else nearest_miss(judged, request.budgets, floor),
        notes=tuple(state.notes),
        seconds=time.monotonic() - state.started,
        stages={name: round(spent, 3) for name, spent in state.clock.seconds.items()},
        command=command(request),
        load=_load(state, chosen),
    )


def _load(state: RunState, chosen: str | None) -> LoadReport | None:
    """What the chosen variant bears where requests do not wait for each other."""
    if chosen is None or state.screening is None:
        return None
    calls = state.screening.profiles()[chosen].samples_ns
    found = [
        (rate, str(budget))
        for budget in state.request.budgets
        if budget.quantity in PERCENTILES
        and (rate := highest_rate(calls, PERCENTILES[budget.quantity], budget.limit)) is not None
    ]
    if not found:
        return None
    rate, name = min(found)
    return LoadReport(name, rate, rate * float(calls.mean()) / 1e9)


_NO_DATA = DataReport("", "", False, 0, 0, 0, 0, None, 1)


def _rows(state: RunState) -> tuple[VariantReport, ...]:
    """All rows in the order of the plan, the source first."""
    rows = {row.chain: row for row in state.unbuilt}
    if state.screening:
        rows |= {row.chain: row for row in state.screening.rows()}
    if state.bounder:
        rows |= {n: state.bounder.checked(rows[n], b) for n, b in state.bounds.items() if n in rows}
    order = state.order or list(rows)
    return tuple(_without_path(rows[name], state.folder) for name in order if name in rows)


def _without_path(row: VariantReport, folder: Path) -> VariantReport:
    """Drop the run's own temporary folder from messages: it is gone, and nobody's concern."""
    own = re.compile(re.escape(f"{folder}/") + r"(pass-\w+/)?")
    return replace(
        row, reason=own.sub("", row.reason), notes=tuple(own.sub("", note) for note in row.notes)
    )


def _exit_code(
    rows: Sequence[VariantReport], chosen: str | None, error: BaseException | None
) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if error is not None:
        return EXIT_INTERNAL
    if chosen is not None:
        return EXIT_KEPT
    return EXIT_UNDECIDED if any(r.status == "undecided" for r in rows) else EXIT_NONE


def _source_report(state: RunState) -> SourceReport:
    source, prepared = state.source, state.prepared
    name = state.request.model.name
    if source is None:
        return SourceReport(name, "unknown", "", 0, "", "")
    if prepared is None:
        return SourceReport(name, source.kind, source.digest, source.size_bytes, "", "")
    exported = prepared.exported
    return SourceReport(
        name=name,
        kind=source.kind,
        digest=source.digest,
        size_bytes=source.size_bytes,
        route=exported.route,
        difference=str(exported.difference),
        notes=exported.notes,
    )


def _manifest(
    state: RunState, report: Report, artefact: Model | None, folder: Path
) -> dict[str, Any]:
    runtime = report.variant(report.chosen).runtime if report.chosen else state.settings.runtime
    default = runtime == state.settings.runtime
    return {
        "schema": 1,
        "chain": report.chosen,
        "runtime": runtime,
        "provider": state.settings.provider if default else find_runtime(runtime).provider,
        "format": artefact.format if artefact else None,
        "model": output.file_name(artefact) if artefact else None,
        "members": output.members(artefact) if artefact else [],
        "config": dict(artefact.config) if artefact else {},
        "threads": state.settings.threads,
        "batch": report.data.batch,
        "source_digest": report.source.digest,
        "data_digest": report.data.digest,
        "model_digest": artefact.digest if artefact else None,
        "seed": report.settings.seed,
        "arguments": _arguments(state.request, folder),
        "device": asdict(report.device),
        "versions": report.versions,
    }


def _arguments(request: Request, folder: Path) -> dict[str, Any]:
    """What ``verify`` needs to judge again; files as seen from the result folder's parent."""

    def seen(text: str | None) -> str | None:
        if text is None:
            return None
        named, colon, name = text.rpartition(":") if is_reference(text) else (text, "", "")
        file = Path(named)
        # Past links to folders, which "..", as verify follows it, does not lead back through.
        real = file.parent.resolve() / file.name
        return os.path.relpath(real, folder.resolve().parent) + colon + name

    metric = request.metric
    return {
        "model": seen(str(request.model)),
        "data": seen(request.data),
        "calibration": seen(request.calibration),
        "metric": seen(metric) if metric and is_reference(metric) else metric,
        "arch": seen(request.arch),
        "inputs": [spec_text(spec) for spec in request.inputs],
        "pre": seen(request.pre),
        "post": seen(request.post),
        "strict_floor": request.strict_floor,
        "max_samples": request.max_samples,
        "time_limit_s": request.time_limit_s,
        "objective": request.objective,
        "cpus": request.cpus,
    }
