"""Beyond the plan: mixed precision, other sessions of the best, and the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimize.building.build import Variant
from optimize.judging.screen import Screening
from optimize.observer import Observer
from optimize.passes.chain import Chain
from optimize.passes.session import Session
from optimize.profiling.measure import Limits
from optimize.results.choose import rank
from optimize.results.report import VariantReport
from optimize.run.state import RunState
from optimize.run.variants import SCREEN_SHARE, build_one, take_up
from optimize.search import mixed, tune
from optimize.search.space import Space
from optimize.search.study import Search, gain

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU")


def mix(state: RunState, screening: Screening, observer: Observer) -> None:
    """Go on from the uniform strategies: leave layers in float where that pays."""
    limits = state.limits(SCREEN_SHARE)
    builder, prepared = state.builder, state.prepared
    assert builder is not None  # set by build_all
    assert prepared is not None  # set before anything is measured
    builder.until(limits.deadline)

    def attempt(chain: Chain) -> VariantReport | None:
        observer.step(0, str(chain))
        state.order.append(str(chain))
        variant = build_one(builder, limits, chain)
        return screening.evaluate(variant, limits) if take_up(state, variant) else None

    observer.stage("mixed precision", 0)
    layers = prepared.exported.model.count(*LAYERS)
    for ladder in mixed.ladders(screening.prospects(), state.request.everything, layers):
        mixed.climb(ladder, attempt)
    screening.time_rest(limits, observer)


def sessions(state: RunState, quantized: bool = False) -> list[Session]:
    """The session options to try."""
    if not state.request.tune_session:
        return []
    return list(tune.sessions(state.settings.threads, _most_threads(state), quantized))


def session_threads(state: RunState) -> list[int]:
    """How many threads the session options to try serve with."""
    return [session.threads for session in sessions(state)]


def _most_threads(state: RunState) -> int:
    """As many as there are cores for the model."""
    return min(state.device.granted_cores, len(state.settings.cpus or ()) or 10**6)


def tune_session(state: RunState, screening: Screening, observer: Observer) -> None:
    """Serve the best variant so far with other threads and session options."""
    assert state.prepared is not None  # set before anything is measured
    better_up = state.prepared.metric.higher_is_better
    base = tune.base(screening.prospects(), state.request.objective, better_up)
    if base is None:
        state.notes.append("no session was tuned: no variant comes near the budgets and the floor")
        return
    limits = state.limits(SCREEN_SHARE)
    observer.stage("tune session", 0)
    chains = [tune.tuned(base, s) for s in sessions(state, state.artefacts[str(base)].quantized)]
    screening.measure_more(_more(state, chains, limits), limits, observer)


def _more(state: RunState, chains: Sequence[Chain], limits: Limits) -> list[Variant]:
    """Build further chains; those that are to be measured."""
    assert state.builder is not None  # set by build_all
    state.builder.until(limits.deadline)
    new = [chain for chain in chains if str(chain) not in state.order]
    state.order += map(str, new)
    built = [build_one(state.builder, limits, chain) for chain in new]
    return [variant for variant in built if take_up(state, variant)]


def search_on(state: RunState, screening: Screening, observer: Observer) -> None:
    """Try chains that no plan has, as many as were asked for or the time allows."""
    request, prepared, builder = state.request, state.prepared, state.builder
    assert prepared is not None  # set before anything is measured
    assert builder is not None  # set by build_all
    limits, planned = state.limits(SCREEN_SHARE), screening.rows()
    builder.until(limits.deadline)
    tuned = (0, *tune.thread_counts(state.settings.threads, _most_threads(state)))
    space = Space.of(
        [Chain.parse(row.chain) for row in planned],
        prepared.exported.model,
        prepared.calibration is not None,
        request.runtimes,
        tuned if request.tune_session else (),
    )
    known = dict.fromkeys(state.order) | {r.chain: screening.outcome(r.chain) for r in planned}
    # What stands between a chain's passes was measured, too, and is not built as a trial again.
    known |= {name: screening.outcome(name) for name in screening.steps()}
    better_up = prepared.metric.higher_is_better
    walk = Search(space, request.seed, better_up, known)
    observer.stage("search", 0)
    made = 0
    while made < request.trials and not limits.expired and (chain := walk.ask()):
        observer.step(0, f"trial {made + 1} of {request.trials}: {chain}")
        state.order.append(str(chain))
        variant = replace(build_one(builder, limits, chain), trial=True)
        taken = take_up(state, variant)
        if taken:
            screening.measure_more([variant], limits, observer)
        walk.tell(screening.outcome(variant.name) if taken else None)
        made += taken or variant.problem == "failed"
    ranked = rank(screening.prospects(), request.objective, better_up)
    why = "" if made == request.trials else _ended(limits)
    state.notes.append(f"{made} of {request.trials} trials made{why}; {gain(ranked)}")


def _ended(limits: Limits) -> str:
    if limits.expired:
        return ", the time limit left none for more"
    return ", hardly any chain is left that was not tried"
