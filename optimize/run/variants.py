"""The variants of a run: planned, built side by side, and taken up if they are new."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from optimize.budgets.verdict import Status
from optimize.building.build import UNBUILT, Builder, Execute, Sources, Variant
from optimize.building.plan import built_in, restricted, trained
from optimize.building.remember import Remembered, RememberedExport
from optimize.cache.store import TRAINING
from optimize.errors import PassFailed
from optimize.installed import versions
from optimize.models.export import Exported, load_and_export
from optimize.models.model import Model
from optimize.observer import Observer
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain
from optimize.prepare import Prepared
from optimize.processes.child import ChildDied, Children, say
from optimize.profiling.measure import Limits
from optimize.profiling.trial import Trial
from optimize.request import Request
from optimize.results.report import VariantReport
from optimize.run.state import RunState

CHECK_SAMPLES = 4
_STATUSES: Mapping[str, Status] = {"failed": "failed", UNBUILT: "undecided"}
# Shares of the time limit: building ends in time to measure, measuring in time to confirm.
BUILD_SHARE, SCREEN_SHARE = 0.5, 0.8


def build_all(state: RunState, folder: Path, observer: Observer) -> list[Variant]:
    """Build every chain of the plan; what has no artefact becomes a row at once."""
    prepared = state.prepared
    assert prepared is not None  # set just before
    chains = planned(state.request, prepared)
    context = Context(
        folder=folder,
        samples=prepared.evaluation.first(CHECK_SAMPLES),
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
        if take_up(state, variant):
            built.append(variant)
            if state.bounder and variant.model and len(state.children) > 1:
                state.bounder.count_ahead(variant.model)
    steps = _steps(state, builder, built)
    if state.bounder:
        state.bounder.rest()
    return built + steps


def _bench(state: RunState, prepared: Prepared, chains: Sequence[Chain]) -> Trial | None:
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


def _each(state: RunState, builder: Builder, chains: Sequence[Chain]) -> Iterator[Variant]:
    """Build chains on all cores that are to help, and give them in their order.

    Those that time candidates come last, one by one: nothing else may run beside them.
    """
    build = partial(build_one, builder, state.limits(BUILD_SHARE))
    together = [chain for chain in chains if not _times(chain)]
    with state.children.threads(len(together)) as pool:
        try:
            builds = {chain: pool.submit(build, chain) for chain in _slow_first(state, together)}
            for chain in together:
                yield builds[chain].result()
        except BaseException:
            if state.store:
                state.store.turns.stop()  # or the pool would wait for what its threads wait for
            raise
    for chain in filter(_times, chains):
        if state.bounder:
            state.bounder.rest()
        yield build(chain)


def _slow_first(state: RunState, chains: Sequence[Chain]) -> Sequence[Chain]:
    """The order in which chains are begun: one that calibrates goes before all others.

    It takes longest, and would leave the other cores idle at the end. The others keep the plan's
    order, which matters where a time limit cuts it short.
    """
    slow = next((chain for chain in chains if chain.needs_calibration), None)
    if slow is None or len(state.children) == 1:
        return chains
    return [slow, *(chain for chain in chains if chain != slow)]


def _executor(state: RunState) -> Execute:
    """Run passes in the child, through the cache if there is one."""

    def execute(step: Pass, model: Model, context: Context) -> PassResult:
        return _run_pass(state.children, step, model, context)

    return Remembered(state.store, execute, versions()) if state.store else execute


def exporter(state: RunState) -> Callable[..., Exported]:
    """Export in the child, through the cache if there is one."""

    def export(*given: Any) -> Exported:
        return state.children.call(load_and_export, *given)

    if state.store is None:
        return export
    return RememberedExport(state.store, export, versions(), state.limits(1.0).deadline)


def build_one(builder: Builder, limits: Limits, chain: Chain) -> Variant:
    """Build a chain, unless the time is up."""
    if limits.expired and chain != Chain():  # all is relative to the source
        return Variant(chain, None, UNBUILT, "the time limit left no time to build it")
    return builder.build(chain)


def take_up(state: RunState, variant: Variant) -> bool:
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


def _steps(state: RunState, builder: Builder, built: Sequence[Variant]) -> list[Variant]:
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


def _run_pass(children: Children, step: Pass, model: Model, context: Context) -> PassResult:
    context = replace(context, progress=partial(say, str(step)))
    try:
        return children.call(step, model, context)
    except ChildDied as error:
        raise PassFailed(f"{step}: {error}") from error


def planned(request: Request, prepared: Prepared) -> list[Chain]:
    """The source and every chain that is asked for, or that the built-in plan has."""
    calibrated = prepared.calibration is not None
    chains = request.chains
    if chains is None:
        model, everything = prepared.exported.model, request.everything
        own = trained(
            model, prepared.exported.program is not None, request.runtimes, request.distill,
            request.student, request.prune,
        )  # fmt: skip
        chains = (*own, *built_in(model, calibrated, request.runtimes, everything))
        if request.strategies:
            chains = restricted(chains, request.strategies)
    return [Chain(), *(chain for chain in chains if chain != Chain())]


def _unbuilt(variant: Variant) -> VariantReport:
    return VariantReport(
        chain=str(variant.chain),
        runtime=variant.chain.runtime,
        status=_STATUSES.get(variant.problem or "", "skipped"),
        reason=variant.reason,
        notes=variant.notes,
        build_s=variant.seconds,
        trial=variant.trial,
    )
