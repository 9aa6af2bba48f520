"""Plan, build, measure, judge, choose, confirm: one run from a request to a result."""

from __future__ import annotations

import os
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from optimize import mixed, output, search, tune
from optimize.bound import Bounder, changes_architecture
from optimize.build import Builder, Execute, Sources, Variant
from optimize.child import ChildDied, Children, say
from optimize.choose import nearest_miss, rank
from optimize.errors import InputError, PassFailed, first_cause
from optimize.feasibility import judge_feasibility
from optimize.measure import Limits
from optimize.models.export import Exported, load_and_export
from optimize.models.model import FILE_NAME, Model
from optimize.models.runtimes import DEFAULT_RUNTIME, find_runtime
from optimize.models.source import Source, detect
from optimize.models.usercode import check_function, is_reference
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain
from optimize.passes.session import Session
from optimize.plan import built_in, trained
from optimize.prepare import Prepared, load_rival, prepare
from optimize.records import Records
from optimize.remember import Remembered, RememberedExport
from optimize.report import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_KEPT,
    EXIT_NONE,
    EXIT_UNDECIDED,
    BudgetReport,
    DataReport,
    FloorReport,
    Report,
    Result,
    SettingsReport,
    SourceReport,
    VariantReport,
)
from optimize.reports import folder as reports
from optimize.reports.command import command
from optimize.request import Request, spec_text
from optimize.scratch import run_folder
from optimize.screen import Screening
from optimize.serve import SCRIPT, script
from optimize.store import TRAINING, Store
from optimize.targets.base import Device, Settings, Target
from optimize.targets.local import LocalTarget
from optimize.trial import Trial
from optimize.worker import granted_cpus

CHECK_SAMPLES = 4
# Shares of the time limit: building ends in time to measure, measuring in time to confirm.
BUILD_SHARE, SCREEN_SHARE = 0.5, 0.8
# A pass may load torch, a quantizer and a few copies of a model.
JOB_BYTES, MOST_JOBS = 4 << 30, 8
LEAST_TIME_FOR_PEAKS_S = 30.0  # they take a tenth of it, once
_PACKAGES = (
    "tailfit onnxruntime onnx onnxscript torch transformers numpy openvino nncf neural-compressor "
    "torchao torch-pruning onnxruntime-tools"
).split()


class Observer(Protocol):
    """Who is told how a run goes on."""

    def stage(self, name: str, total: int) -> None:
        """A stage with ``total`` steps begins; 0 if their number is unknown."""

    def step(self, done: float, text: str) -> None:
        """``done`` steps of the stage are done; ``text`` is what happens now."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str, total: int) -> None:
        """Do nothing."""

    def step(self, done: float, text: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


@dataclass
class _Run:
    """What is known so far, so that a run that is cut short can still report it."""

    request: Request
    target: Target
    device: Device
    settings: Settings
    folder: Path
    started: float
    children: Children = field(default_factory=Children)
    source: Source | None = None
    prepared: Prepared | None = None
    screening: Screening | None = None
    unbuilt: list[VariantReport] = field(default_factory=list)
    artefacts: dict[str, Model] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    builder: Builder | None = None
    store: Store | None = None
    served: dict[tuple[str, str] | None, str] = field(default_factory=dict)
    bounder: Bounder | None = None
    bounds: dict[str, float | None] = field(default_factory=dict)
    infeasible: str | None = None

    def limits(self, share: float) -> Limits:
        limit = self.request.time_limit_s
        deadline = None if limit is None else self.started + share * limit
        return Limits(deadline=deadline, max_samples=self.request.max_samples)


def run(request: Request, observer: Observer | None = None, target: Target | None = None) -> Result:
    """Carry out a request.

    An internal error or an interruption does not raise: the result then carries it as ``error``,
    and the report holds whatever was finished.

    Raises:
        InputError: what was given cannot be used; nothing is written.
    """
    observer, target = observer or Silent(), target or LocalTarget()
    if request.trials:
        search.check_installed()
    if request.folder is not None:
        output.check_writable(request.folder)
    device = target.device()
    settings = Settings(
        threads=request.threads or min(device.granted_cores, len(request.cpus or ()) or 10**6),
        cpus=request.cpus or tuple(granted_cpus()),
    )
    with run_folder() as folder:
        state = _Run(request, target, device, settings, folder, time.monotonic())
        state.children = Children(_jobs(request, device))
        if request.cache is not None:
            state.store = Store(request.cache, report=state.notes.append)
        try:
            return _finish(state, _attempt(state, folder, observer))
        finally:
            state.children.close()
            if state.bounder:
                state.bounder.close()
            if state.screening:
                state.screening.close()
            if state.store:
                state.store.close()


def _jobs(request: Request, device: Device) -> int:
    """How many passes may run at once: as many as there are cores, and memory for their models."""
    memory = (device.memory_bytes or 8 << 30) // JOB_BYTES
    return request.jobs or max(1, min(device.granted_cores, memory, MOST_JOBS))


def _attempt(state: _Run, folder: Path, observer: Observer) -> BaseException | None:
    """Go through all stages; what cuts them short is returned, bad input is raised."""
    try:
        _stages(state, folder, observer)
    except InputError:
        raise
    except OSError as problem:
        _refuse_full_disk(problem, folder)
        return problem
    except BaseException as problem:  # noqa: BLE001  reported, whatever it was
        return problem
    return None


def _stages(state: _Run, folder: Path, observer: Observer) -> None:
    observer.stage("load and export", 0)
    request = state.request
    state.source = detect(request.model)
    for reference, option in ((request.distill, "--distill"), (request.student, "--student")):
        if reference:
            state.children.call(check_function, reference, option)
    state.prepared = prepare(state.request, state.source, folder, _exporter(state))
    state.notes += state.prepared.notes
    exported = state.prepared.exported
    observer.note(f"{state.source.kind} by {exported.route}, outputs {exported.difference}")
    if not request.as_is and _infeasible(state, observer):
        return
    variants = (_as_they_are if request.as_is else _build)(state, folder, observer)
    judged = [variant for variant in variants if not variant.step]
    mixes = not request.as_is and request.chains is None
    contenders = len(judged) + (mixed.reserve(v.chain for v in judged) if mixes else 0)
    contenders += len(_sessions(state)) + request.trials
    screening = Screening(
        state.target, state.settings, state.prepared, request, contenders, folder, _records(state)
    )
    state.screening = screening
    screening.measure(variants, state.limits(SCREEN_SHARE), observer)
    if mixes:
        _mix(state, screening, observer)
    if request.tune_session:
        _tune(state, screening, observer)
    if request.trials:
        _search(state, screening, observer)
    screening.close()
    if not request.as_is:
        observer.stage("explain", 0)
        screening.explain(state.children, state.device.isa, state.limits(SCREEN_SHARE))
        _bound(state)
    screening.confirm(state.limits(1.0), observer)


def _infeasible(state: _Run, observer: Observer) -> bool:
    """Whether no variant can meet the budget; known in seconds, before anything is built."""
    prepared, request = state.prepared, state.request
    assert prepared is not None  # set just before
    observer.stage("lower bound", 0)
    limit = request.time_limit_s
    state.bounder = Bounder(
        state.device, state.settings.threads, versions(), prepared.evaluation, state.store,
        state.notes, hurried=limit is not None and limit < LEAST_TIME_FOR_PEAKS_S,
    )  # fmt: skip
    bounds = state.bounder.judge_source(prepared.exported.model)
    found = judge_feasibility(request.budgets, bounds) if bounds else None
    if found is None:
        return False
    chains = _plan(request, prepared)
    if request.force or request.everything or any(map(changes_architecture, chains)):
        state.notes.append(f"{found.budget} is out of reach of this architecture: {found.reason}")
        return False
    state.infeasible = found.reason
    state.order = [str(chain) for chain in chains]
    state.unbuilt += state.bounder.skipped(chains, found)
    return True


def _bound(state: _Run) -> None:
    """Find out how fast each artefact could be at best."""
    if state.bounder is not None:
        for name, model in state.artefacts.items():
            state.bounds[name] = state.bounder.bound(model, Chain.parse(name))
        state.bounder.close()


def _build(state: _Run, folder: Path, observer: Observer) -> list[Variant]:
    """Build every chain of the plan; what has no artefact becomes a row at once."""
    prepared = state.prepared
    assert prepared is not None  # set just before
    chains = _plan(state.request, prepared)
    context = Context(
        folder=folder,
        samples=prepared.evaluation.take(range(min(CHECK_SAMPLES, len(prepared.evaluation)))),
        calibration=prepared.calibration,
        seed=state.request.seed,
        isa=frozenset(state.device.isa),
        teacher=prepared.exported.program,
        deadline=state.limits(BUILD_SHARE).deadline,
        threads=state.settings.threads,
        training=prepared.training,
        checkpoints=state.request.cache and state.request.cache / TRAINING,
        bench=_bench(state, prepared, chains),
    )
    sources = Sources(prepared.exported.model, prepared.exported.program)
    builder = Builder(sources, context, _executor(state))
    state.builder = builder
    state.order = [str(chain) for chain in chains]
    observer.stage("build", len(chains))
    built = []
    seen: list[str] = []
    state.children.listen(lambda text: observer.step(len(seen), text))
    for variant in _each(state, builder, chains):
        seen.append(variant.name)
        observer.step(len(seen), str(variant.chain))
        if _taken(state, variant):
            built.append(variant)
    return built + _steps(state, builder, built)


def _bench(state: _Run, prepared: Prepared, chains: Sequence[Chain]) -> Trial | None:
    """What passes that search for a budget time their candidates by; None if there is none."""
    if not any(map(_times, chains)):
        return None
    request = state.request
    limits = {str(b.quantity): b.limit for b in request.budgets if b.tail is not None}
    # In full: passes run in folders of their own.
    pre, post = (ref and str(Path(ref).resolve()) for ref in (request.pre, request.post))
    return Trial(state.target, state.settings, prepared.latency, limits, pre, post, request.seed)


def _times(chain: Chain) -> bool:
    return any(step.times for step in chain.passes)


def _each(state: _Run, builder: Builder, chains: Sequence[Chain]) -> Iterator[Variant]:
    """Build chains on all cores that are to help, in their order.

    Those that time candidates come last, one by one: nothing else may run beside them.
    """
    build = partial(_built, builder, state.limits(BUILD_SHARE))
    together = [chain for chain in chains if not _times(chain)]
    with state.children.threads(len(together)) as pool:
        yield from pool.map(build, together)
    yield from map(build, filter(_times, chains))


def _executor(state: _Run) -> Execute:
    """Run passes in the child, through the cache if there is one."""

    def execute(step: Pass, model: Model, context: Context) -> PassResult:
        return _run_pass(state.children, step, model, context)

    return Remembered(state.store, execute, versions()) if state.store else execute


def _exporter(state: _Run) -> Callable[..., Exported]:
    """Export in the child, through the cache if there is one."""

    def export(*given: Any) -> Exported:
        return state.children.call(load_and_export, *given)

    return RememberedExport(state.store, export, versions()) if state.store else export


def _records(state: _Run) -> Records:
    """What was measured on this device before."""
    common = {"device": asdict(state.device), "versions": versions()}
    return Records(state.store, common, fresh=state.request.fresh)


def _built(builder: Builder, limits: Limits, chain: Chain) -> Variant:
    if limits.expired and chain != Chain():  # all is relative to the source
        return Variant(chain, None, "skipped", "the time limit left no time to build it")
    return builder.build(chain)


def _taken(state: _Run, variant: Variant) -> bool:
    """Whether a variant is to be measured; what gives no new artefact becomes a row at once."""
    served = (variant.chain.runtime, variant.model.identity) if variant.model else None
    if served in state.served:
        reason = f"the same artefact as {state.served[served]}"
        variant = replace(variant, model=None, problem="skipped", reason=reason)
    if variant.model is None or served is None:
        state.unbuilt.append(_unbuilt(variant))
        return False
    state.served[served] = variant.name
    state.artefacts[variant.name] = variant.model
    return True


def _steps(state: _Run, builder: Builder, built: Sequence[Variant]) -> list[Variant]:
    """What stands between a chain's passes, to show what each of them changes."""
    prefixes = {str(p): p for variant in built for p in variant.chain.prefixes()}
    wanted = [prefix for name, prefix in prefixes.items() if name not in state.artefacts]
    steps: list[Variant] = []
    for step in _each(state, builder, wanted):
        served = (step.chain.runtime, step.model.identity) if step.model else None
        if served is not None and served not in state.served:
            state.served[served] = step.name
            steps.append(replace(step, step=True))
    return steps


def _mix(state: _Run, screening: Screening, observer: Observer) -> None:
    """Go on from the uniform strategies: leave layers in float where that pays."""
    limits = state.limits(SCREEN_SHARE)
    builder = state.builder
    assert builder is not None  # set by _build
    builder.until(limits.deadline)

    def attempt(chain: Chain) -> VariantReport | None:
        observer.step(0, str(chain))
        state.order.append(str(chain))
        variant = _built(builder, limits, chain)
        return screening.evaluate(variant, limits) if _taken(state, variant) else None

    observer.stage("mixed precision", 0)
    for ladder in mixed.ladders(screening.rows(), state.request.everything):
        mixed.climb(ladder, attempt)
    screening.time_rest(limits, observer)


def _sessions(state: _Run, quantized: bool = False) -> list[Session]:
    """The session options to try."""
    if not state.request.tune_session:
        return []
    return list(tune.sessions(state.settings.threads, _most_threads(state), quantized))


def _most_threads(state: _Run) -> int:
    """As many as there are cores for the model."""
    return min(state.device.granted_cores, len(state.settings.cpus or ()) or 10**6)


def _tune(state: _Run, screening: Screening, observer: Observer) -> None:
    """Serve the best variant so far with other threads and session options."""
    assert state.prepared is not None  # set before anything is measured
    better_up = state.prepared.metric.higher_is_better
    base = tune.base(screening.rows(), state.request.objective, better_up)
    if base is None:
        state.notes.append("no session was tuned: no variant comes near the budgets and the floor")
        return
    limits = state.limits(SCREEN_SHARE)
    observer.stage("tune session", 0)
    chains = [tune.tuned(base, s) for s in _sessions(state, state.artefacts[str(base)].quantized)]
    screening.measure_more(_more(state, chains, limits), limits, observer)


def _more(state: _Run, chains: Sequence[Chain], limits: Limits) -> list[Variant]:
    """Build further chains; those that are to be measured."""
    assert state.builder is not None  # set by _build
    state.builder.until(limits.deadline)
    new = [chain for chain in chains if str(chain) not in state.order]
    state.order += map(str, new)
    built = [_built(state.builder, limits, chain) for chain in new]
    return [variant for variant in built if _taken(state, variant)]


def _search(state: _Run, screening: Screening, observer: Observer) -> None:
    """Try chains that no plan has, as many as were asked for or the time allows."""
    request, prepared, builder = state.request, state.prepared, state.builder
    assert prepared is not None  # set before anything is measured
    assert builder is not None  # set by _build
    limits, planned = state.limits(SCREEN_SHARE), screening.rows()
    builder.until(limits.deadline)
    tuned = (0, *tune.thread_counts(state.settings.threads, _most_threads(state)))
    space = search.Space.of(
        [Chain.parse(row.chain) for row in planned],
        prepared.exported.model,
        prepared.calibration is not None,
        request.runtimes,
        tuned if request.tune_session else (),
    )
    known = dict.fromkeys(state.order) | {r.chain: screening.outcome(r.chain) for r in planned}
    better_up = prepared.metric.higher_is_better
    walk = search.Search(space, request.seed, better_up, known)
    observer.stage("search", 0)
    made = 0
    while made < request.trials and not limits.expired and (chain := walk.ask()):
        observer.step(0, f"trial {made + 1} of {request.trials}: {chain}")
        state.order.append(str(chain))
        variant = replace(_built(builder, limits, chain), trial=True)
        taken = _taken(state, variant)
        if taken:
            screening.measure_more([variant], limits, observer)
        walk.tell(screening.outcome(variant.name) if taken else None)
        made += taken or variant.problem == "failed"
    ranked = rank(screening.rows(), request.objective, better_up)
    why = "" if made == request.trials else _ended(limits)
    state.notes.append(f"{made} of {request.trials} trials made{why}; {search.gain(ranked)}")


def _ended(limits: Limits) -> str:
    if limits.expired:
        return ", the time limit left none for more"
    return ", hardly any chain is left that was not tried"


def _as_they_are(state: _Run, folder: Path, observer: Observer) -> list[Variant]:
    """Take every model that the request names as a variant, the first as the reference."""
    prepared, request = state.prepared, state.request
    assert prepared is not None  # set just before
    labels = _labels(request)
    first, signature = prepared.exported.model, prepared.exported.model.signature
    home = request.model.parent
    if output.is_result(home) and request.model.name == FILE_NAME:
        first = output.read_artefact(home, signature)[0]  # to be loaded with its own options
    variants = [Variant(Chain(), first, label=labels[0])]
    for number, path in enumerate(request.rivals):
        observer.step(number, str(path))
        runtime = DEFAULT_RUNTIME
        if output.is_result(path):
            model, runtime = output.read_artefact(path, signature)
        else:
            own = folder / f"rival-{number}"
            own.mkdir()
            model = load_rival(request, path, prepared, own, _exporter(state))
        variants.append(Variant(Chain((), runtime), model, label=labels[number + 1]))
    state.order = [variant.name for variant in variants]
    state.artefacts = {v.name: v.model for v in variants if v.model is not None}
    return variants


def _labels(request: Request) -> list[str]:
    """Names of models that are judged as they are: file names, numbered where they repeat."""
    names = list(request.labels) or [path.name for path in (request.model, *request.rivals)]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return names


def _run_pass(children: Children, step: Pass, model: Model, context: Context) -> PassResult:
    context = replace(context, progress=partial(say, str(step)))
    try:
        return children.call(step, model, context)
    except ChildDied as error:
        raise PassFailed(f"{step}: {error}") from error


def _plan(request: Request, prepared: Prepared) -> list[Chain]:
    calibrated = prepared.calibration is not None
    chains = request.chains
    if chains is None:
        model, everything = prepared.exported.model, request.everything
        own = trained(
            model, prepared.exported.program is not None, request.runtimes, request.distill,
            request.student, request.prune,
        )  # fmt: skip
        chains = (*own, *built_in(model, calibrated, request.runtimes, everything))
    return [Chain(), *(chain for chain in chains if chain != Chain())]


def _unbuilt(variant: Variant) -> VariantReport:
    return VariantReport(
        chain=str(variant.chain),
        runtime=variant.chain.runtime,
        status="failed" if variant.problem == "failed" else "skipped",
        reason=variant.reason,
        notes=variant.notes,
        build_s=variant.seconds,
        trial=variant.trial,
    )


def _finish(state: _Run, error: BaseException | None) -> Result:
    report = _report(state, error)
    artefact = state.artefacts.get(report.chosen) if report.chosen else None
    folder = state.request.folder
    if folder is None:
        return Result(report, None, None, error)
    if error is not None and output.is_result(folder) and any(folder.glob("model.*")):
        # An earlier verdict stands; what came of this run lies beside it.
        folder = folder.with_name(f"{folder.name}.interrupted")
        output.check_writable(folder)
    manifest = _manifest(state, report, artefact, folder)
    profiles = state.screening.profiles() if state.screening else {}
    extra, problem = reports.for_run(report, profiles, quick=error is not None)
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
    path = output.write(folder, report.to_json(), manifest, artefact, extra)
    return Result(report, folder, path, error)


def _report(state: _Run, error: BaseException | None) -> Report:
    request, prepared = state.request, state.prepared
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
        exit_code=_exit_code(rows[1:] if request.reference_only else rows, chosen, error),
        infeasible=state.infeasible,
        nearest_miss=None if chosen else nearest_miss(rows, request.budgets, floor),
        notes=tuple(state.notes),
        seconds=time.monotonic() - state.started,
        command=command(request),
    )


_NO_DATA = DataReport("", "", False, 0, 0, 0, 0, None, 1)


def _rows(state: _Run) -> tuple[VariantReport, ...]:
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


def _source_report(state: _Run) -> SourceReport:
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


def _manifest(state: _Run, report: Report, artefact: Model | None, folder: Path) -> dict[str, Any]:
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
        file, colon, name = text.rpartition(":") if is_reference(text) else (text, "", "")
        return os.path.relpath(file, folder.parent) + colon + name

    metric = request.metric
    return {
        "model": seen(str(request.model)),
        "data": seen(request.data),
        "calibration": seen(request.calibration),
        "metric": seen(metric) if metric and is_reference(metric) else metric,
        "arch": seen(request.arch),
        "trust_pickle": request.trust_pickle,
        "inputs": [spec_text(spec) for spec in request.inputs],
        "pre": seen(request.pre),
        "post": seen(request.post),
        "strict_floor": request.strict_floor,
        "max_samples": request.max_samples,
        "time_limit_s": request.time_limit_s,
        "objective": request.objective,
    }


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _refuse_full_disk(problem: OSError, folder: Path) -> None:
    import errno

    # numpy tells of a write that was cut short without an error number.
    cut_short = problem.errno is None and "requested and" in str(problem)
    if cut_short or problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(
            f"the disk is full: {problem.strerror or problem} while writing to {folder.parent}; "
            "free some space, or point TMPDIR elsewhere"
        ) from problem
