"""Plan, build, measure, judge, choose, confirm: one run from a request to a result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from threading import Thread

from optimize.building.build import Variant
from optimize.cache.records import Records
from optimize.cache.store import Store
from optimize.errors import InputError
from optimize.feasibility.bound import Bounder, changes_architecture, own_threads
from optimize.installed import versions
from optimize.judging.screen import Screening
from optimize.models.model import FILE_NAME
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.models.source import detect
from optimize.models.usercode import check_function
from optimize.observer import Observer, Silent
from optimize.passes.chain import Chain
from optimize.prepare import check, load_rival, prepare
from optimize.processes.child import Children
from optimize.processes.scratch import run_folder
from optimize.reports import pictures
from optimize.request import Request
from optimize.results import output
from optimize.results.report import Result
from optimize.run.beyond import mix, search_on, session_threads, sessions, tune_session
from optimize.run.clock import Clock
from optimize.run.state import RunState
from optimize.run.summary import finish
from optimize.run.variants import SCREEN_SHARE, build_all, exporter, planned
from optimize.search import mixed, study
from optimize.targets.base import Device, Settings, Target
from optimize.targets.local import LocalTarget
from optimize.worker import granted_cpus

# A pass may load torch, a quantizer and a few copies of a model.
JOB_BYTES, MOST_JOBS = 4 << 30, 8


LEAST_TIME_FOR_PEAKS_S = 30.0  # they take a tenth of it, once


def run(request: Request, observer: Observer | None = None, target: Target | None = None) -> Result:
    """Carry out a request.

    An internal error or an interruption does not raise: the result then carries it as ``error``,
    and the report holds whatever was finished.

    Raises:
        InputError: what was given cannot be used; nothing is written.
    """
    check(request)
    clock, target = Clock(observer or Silent()), target or LocalTarget()
    if request.trials:
        study.check_installed()
    if request.folder is not None:
        output.check_writable(request.folder)
    device = target.device()
    settings = Settings(
        threads=request.threads or min(device.granted_cores, len(request.cpus or ()) or 10**6),
        cpus=request.cpus or tuple(granted_cpus()),
    )
    with run_folder() as folder:
        state = RunState(request, target, device, settings, folder, time.monotonic(), clock=clock)
        state.children = Children(_jobs(request, device), folder)
        if settings.threads > device.granted_cores:
            state.notes.append(
                f"{settings.threads} threads share {device.granted_cores} cores here, so that they "
                "wait for each other"
            )
        if request.cache is not None:
            state.store = Store(request.cache, report=state.notes.append)
        try:
            return finish(state, _attempt(state, folder, clock))
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


def _attempt(state: RunState, folder: Path, observer: Observer) -> BaseException | None:
    """Go through all stages; what cuts them short is returned, bad input is raised."""
    try:
        _stages(state, folder, observer)
        for source in state.sources:
            source.check()
    except InputError:
        raise
    except OSError as problem:
        _refuse_full_disk(problem, folder)
        return problem
    except BaseException as problem:  # noqa: BLE001  reported, whatever it was
        return problem
    return None


def _stages(state: RunState, folder: Path, observer: Observer) -> None:
    observer.stage("load and export", 0)
    _load_ahead(state, import_module, "scipy.special")  # what judges
    request = state.request
    if not request.as_is:
        state.bounder = _bounder(state)
        state.bounder.prepare()
    state.source = detect(request.model)
    state.sources.append(state.source)
    if state.store:
        state.store.keep_while(lambda: all(source.unchanged for source in state.sources))
    for reference, option in ((request.distill, "--distill"), (request.student, "--student")):
        if reference:
            state.children.call(check_function, reference, option)
    state.prepared = prepare(state.request, state.source, folder, exporter(state))
    state.notes += state.prepared.notes
    if request.prune or request.distill or request.student:
        state.notes += state.prepared.exported.notes  # such as why nothing can be trained
    exported = state.prepared.exported
    observer.note(f"{state.source.kind} by {exported.route}, outputs {exported.difference}")
    if not request.as_is and _infeasible(state, observer):
        return
    variants = (_as_they_are if request.as_is else build_all)(state, folder, observer)
    judged = [variant for variant in variants if not variant.step]
    mixes = not request.as_is and request.chains is None
    contenders = len(judged) + (mixed.reserve(v.chain for v in judged) if mixes else 0)
    contenders += len(sessions(state)) + request.trials
    screening = Screening(
        state.target, state.settings, state.prepared, request, contenders, folder, _records(state)
    )
    state.screening = screening
    screening.measure(variants, state.limits(SCREEN_SHARE), observer)
    if mixes:
        mix(state, screening, observer)
    if request.tune_session:
        tune_session(state, screening, observer)
    if request.trials:
        search_on(state, screening, observer)
    screening.close()
    if not request.as_is:
        observer.stage("explain", 0)
        screening.explain(state.children, state.device.isa, state.limits(SCREEN_SHARE))
    screening.confirm(state.limits(1.0), observer)
    screening.close()
    if not request.as_is:
        observer.stage("lower bound of each variant", 0)
        _bound(state)


def _infeasible(state: RunState, observer: Observer) -> bool:
    """Whether no variant can meet the budget; known in seconds, before anything is built."""
    prepared, request = state.prepared, state.request
    assert prepared is not None  # set just before
    assert state.bounder is not None
    observer.stage("lower bound", 0)
    state.bounder.judge_source(prepared.exported.model, prepared.evaluation)
    chains = planned(request, prepared)
    threads = max(state.settings.threads, *map(own_threads, chains), *session_threads(state))
    found = state.bounder.infeasible(request.budgets, threads)
    if found is None:
        return False
    smaller = any(map(changes_architecture, chains)) or request.trials > 0  # a trial may prune
    if request.force or request.everything or smaller:
        state.notes.append(f"{found.budget} is out of reach of this architecture: {found.reason}")
        return False
    state.infeasible = found.reason
    state.order = [str(chain) for chain in chains]
    state.unbuilt += state.bounder.skipped(chains, found)
    return True


def _bounder(state: RunState) -> Bounder:
    limit = state.request.time_limit_s
    return Bounder(
        state.device, state.settings.threads, versions(), state.store, state.notes,
        hurried=limit is not None and limit < LEAST_TIME_FOR_PEAKS_S, temporary=state.folder,
    )  # fmt: skip


def _bound(state: RunState) -> None:
    """Find out how fast each artefact could be at best."""
    if state.bounder is not None:
        state.bounder.hurried |= state.limits(1.0).expired
        if state.bounder.glanced and state.request.folder is not None:
            _load_ahead(state, pictures.load)
        state.bounder.settle()
        for name, model in state.artefacts.items():
            state.bounds[name] = state.bounder.bound(model, Chain.parse(name))
        state.bounder.close()


def _load_ahead(state: RunState, load: Callable[..., object], *given: str) -> None:
    """Import what is needed later while this process waits for another, or for a disk."""
    if state.device.granted_cores > 1:
        Thread(target=load, args=given, daemon=True).start()


def _records(state: RunState) -> Records:
    """What was measured on this device before."""
    common = {"device": asdict(state.device), "versions": versions()}
    request = state.request
    return Records(state.store, common, fresh=request.fresh, keeps=request.records)


def _as_they_are(state: RunState, folder: Path, observer: Observer) -> list[Variant]:
    """Take every model that the request names as a variant, the first as the reference."""
    prepared, request = state.prepared, state.request
    assert prepared is not None  # set just before
    labels = _labels(request)
    first, signature = prepared.exported.model, prepared.exported.model.signature
    home, runtime = request.model.parent, DEFAULT_RUNTIME
    if output.is_result(home) and request.model.name == FILE_NAME:
        first, runtime = output.read_artefact(home, signature)  # as it is to be served
    variants = [Variant(Chain((), runtime), first, label=labels[0])]
    for number, path in enumerate(request.rivals):
        observer.step(number, str(path))
        runtime = DEFAULT_RUNTIME
        if output.is_result(path):
            model, runtime = output.read_artefact(path, signature)
        else:
            own = folder / f"rival-{number}"
            own.mkdir()
            state.sources.append(detect(path))
            model = load_rival(request, state.sources[-1], prepared, own, exporter(state))
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
