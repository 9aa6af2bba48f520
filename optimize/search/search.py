"""Search for chains beyond the plan: a space made of the passes' own options, and who walks it.

The space is defined while it is walked: each choice decides which further ones there are. An
option is a choice exactly where the pass accepts all of its values beside those chosen so far, so
that what a pass refuses is never proposed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from optimize.budgets.budget import format_bytes
from optimize.errors import InputError
from optimize.models.attention import has_attention
from optimize.models.model import Model
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.passes.base import Pass
from optimize.passes.chain import SOURCE, Chain
from optimize.passes.registry import load_pass
from optimize.results.report import VariantReport

if TYPE_CHECKING:
    from optuna import Study, Trial

Choose = Callable[[str, Sequence[Any]], Any]
NONE = "none"
# What makes a model smaller at the end of a chain, by the runtime that has kernels for it.
_COMPRESSIONS = {DEFAULT_RUNTIME: (NONE, "int8", "fp16"), "openvino": (NONE, "int8", "bf16")}
RUNTIMES = tuple(_COMPRESSIONS)
# Options that are searched, in the order in which they are chosen.
_SEARCHED = {
    "prune": ("ratio", "scope"),
    "smooth": ("alpha",),
    "int8": (
        "mode", "engine", "calibration", "per", "ops", "symmetric", "keep", "bits", "algorithm",
    ),
    "fp16": (),
    "bf16": (),
    "session": ("threads", "level", "spinning"),
}  # fmt: skip
# Values of options whose type does not list them.
_VALUES: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("prune", "ratio"): (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    ("smooth", "alpha"): ("auto", "0.3", "0.5", "0.7"),
    ("int8", "keep"): (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
}
_MATMUL = ("MatMul", "Gemm")
# Chains in a row that were tried before, or gave no new model: the space is as good as used up.
MOST_IDLE, MOST_FRUITLESS = 100, 30
# What is known draws proposals to itself; after so many that were tried, the next is a random one.
MOST_DRAWN = 3
# Before so many outcomes are known, proposals are drawn at random.
LEAST_KNOWN = 5


def check_installed() -> None:
    """See to it that there is an optimizer.

    Raises:
        InputError: there is none.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--trials needs optuna, which is not installed; install tailfit[search]")


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
        cost: relative to the source; less is better.
        accuracy: change of the metric against the source, in its unit.
        misses: by how much each promise is missed, in any unit; zero or less if it holds.
    """

    cost: float
    accuracy: float
    misses: Mapping[str, float] = field(default_factory=dict)


# As if it had changed nothing, and may not be proposed again: so that its like are avoided, too.
NOTHING = Outcome(1.0, 0.0, {"artefact": 1.0})


@dataclass(frozen=True)
class Space:
    """All chains that may be proposed.

    Attributes:
        fronts: by runtime, what chains begin with before anything is lost, as texts.
        options: by pass, the values of each option that is searched.
        prunable, smoothable: whether the model has layers for it, and there are data.
        threads: numbers to serve with, 0 for what is given; empty if the session stays as it is.
    """

    fronts: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Mapping[str, tuple[Any, ...]]]
    prunable: bool = False
    smoothable: bool = False
    threads: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        chains: Iterable[Chain],
        model: Model,
        calibrated: bool,
        runtimes: Sequence[str],
        threads: tuple[int, ...] = (),
    ) -> Space:
        """The space around a plan.

        Args:
            chains: what was built of the plan.
            model: the source as exported.
            calibrated: whether there is real data to calibrate on.
            runtimes: those that may serve.
            threads: see the class.
        """
        plan = list(chains)
        fronts = {
            runtime: tuple(
                dict.fromkeys([SOURCE, *(_front(c) for c in plan if c.runtime == runtime)])
            )
            for runtime in runtimes
            if runtime in _COMPRESSIONS
        }
        options = {name: _values(load_pass(name), names) for name, names in _SEARCHED.items()}
        options["int8"] = _suitable(options["int8"], plan, model, calibrated)
        options["session"] = {**options["session"], "threads": threads or (0,)}
        return cls(
            fronts,
            options,
            prunable=calibrated and (model.count("Conv") > 0 or has_attention(model)),
            smoothable=calibrated and model.count(*_MATMUL) > 0,
            threads=threads,
        )

    def propose(self, choose: Choose) -> Chain:
        """Make a chain; ``choose(name, values)`` picks one of several values."""

        def pick(name: str, values: Sequence[Any]) -> Any:
            return choose(name, values) if len(values) > 1 else values[0]

        runtime = pick("runtime", tuple(self.fronts))
        front = Chain.parse(pick(f"front@{runtime}", self.fronts[runtime])).passes
        pruned: tuple[Pass, ...] = ()
        if self.prunable and pick("prune", (False, True)):
            pruned = (self._pass("prune", pick),)
        # Fused operators hide channels that could go: they are removed before.
        first = 1 if front and front[0].name == "fold" else 0
        passes = [*front[:first], *pruned, *front[first:]]
        compression = pick(f"compression@{runtime}", _COMPRESSIONS[runtime])
        if compression == "int8" and self.smoothable and pick("smooth", (False, True)):
            passes.append(self._pass("smooth", pick))
        if compression != NONE:
            passes.append(self._pass(compression, pick))
        if self.threads and runtime == DEFAULT_RUNTIME:
            # Integers need the highest level, see optimize.search.tune.
            fixed = {"level": "ALL"} if compression == "int8" else {}
            session = self._pass("session", pick, fixed)
            passes += [session] if session != type(session)() else []
        return Chain(tuple(passes), runtime)

    def parameters(self, chain: Chain) -> dict[str, Any] | None:
        """The choices that make a chain; None if it lies outside."""
        known, taken = _choices(chain), dict[str, Any]()

        def choose(name: str, values: Sequence[Any]) -> Any:
            taken[name] = known.get(name)
            if taken[name] not in values:
                raise _Outside
            return taken[name]

        try:
            return taken if self.propose(choose) == chain else None
        except _Outside:
            return None

    def _pass(self, name: str, choose: Choose, fixed: Mapping[str, Any] | None = None) -> Pass:
        cls, given = load_pass(name), dict(fixed or {})
        for option, values in self.options[name].items():
            if option not in given and all(_accepts(cls, {**given, option: v}) for v in values):
                given[option] = choose(f"{name}.{option}", values)
        return cls(**given)


class _Outside(Exception):
    """A chain is none of the space."""


def _front(chain: Chain) -> str:
    """What a chain begins with, before its searched passes."""
    kept: list[Pass] = []
    for step in chain.passes:
        if step.name in _SEARCHED and not _fixed_session(step):
            continue
        kept.append(step)
    return str(Chain(tuple(kept)))


def _fixed_session(step: Pass) -> bool:
    """Whether it leaves optimizers out, which belongs to the graph and is not searched."""
    return step.name == "session" and getattr(step, "without", NONE) != NONE


def _choices(chain: Chain) -> dict[str, Any]:
    """All choices that a chain shows, as if it were made by :meth:`Space.propose`."""
    searched = [s for s in chain.passes if s.name in _SEARCHED and not _fixed_session(s)]
    names = {step.name for step in searched}
    compression = next((n for n in names if n in ("int8", "fp16", "bf16")), NONE)
    choices: dict[str, Any] = {
        "runtime": chain.runtime,
        f"front@{chain.runtime}": _front(chain),
        f"compression@{chain.runtime}": compression,
        "prune": "prune" in names,
        "smooth": "smooth" in names,
    }
    for step in [load_pass("session")(), *searched]:
        choices |= {f"{step.name}.{f.name}": getattr(step, f.name) for f in fields(step)}
    return choices


def _values(cls: type[Pass], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The values of options: as their types list them, or as stated above."""
    hints = get_type_hints(cls)
    found = {}
    for name in names:
        hint = hints[name]
        listed = get_args(hint) if get_origin(hint) is Literal else ()
        listed = (False, True) if hint is bool else listed
        found[name] = _VALUES.get((cls.name, name), listed)
    return found


def _suitable(
    int8: Mapping[str, tuple[Any, ...]], plan: Iterable[Chain], model: Model, calibrated: bool
) -> dict[str, tuple[Any, ...]]:
    """Leave out what the model has no layers or no data for, and engines that were not seen."""
    engines = {getattr(step, "engine", "") for chain in plan for step in chain.passes}
    lacking = set() if calibrated else {"static"}
    lacking |= set() if model.count(*_MATMUL) else {"weights", "matmul"}
    lacking |= set() if model.count("Conv") else {"conv"}
    # neural-compressor works on modules, which no other pass of these chains does.
    lacking |= {"neural-compressor"} | (set() if "nncf" in engines else {"nncf"})
    return {name: tuple(v for v in values if v not in lacking) for name, values in int8.items()}


def _accepts(cls: type[Pass], given: Mapping[str, Any]) -> bool:
    try:
        cls(**given)
    except InputError:
        return False
    return True


def gain(ranked: Sequence[VariantReport]) -> str:
    """What the best trial gained over the best of the plan, in words.

    Args:
        ranked: the kept variants, best first.
    """
    found = next((row for row in ranked if row.trial), None)
    planned = next((row for row in ranked if not row.trial), None)
    if found is None:
        return "none of them is kept"
    if found is not ranked[0]:
        return f"none of them is better than {ranked[0].chain}"
    if planned is None:
        return f"the best of them, {found.chain}, is kept, and nothing of the plan is"
    return (
        f"the best of them, {found.chain}: {_figures(found)}; "
        f"the best before, {planned.chain}: {_figures(planned)}"
    )


def _figures(row: VariantReport) -> str:
    """Its tail, speed, accuracy and size."""
    words = [f"p99 {row.latency.p99_ms:.3g} ms"] if row.latency else []
    words += [f"{row.speedup:.2f}x"] if row.speedup else []
    if row.accuracy:
        words.append(f"{row.accuracy.metric} {row.accuracy.value:.4f}")
    words += [format_bytes(row.size_bytes)] if row.size_bytes else []
    return ", ".join(words)


class Search:
    """Proposes chains, one at a time, and learns from what each came to.

    Tree-structured Parzen estimators, multi-objective with constraints (Ozaki et al., 2022;
    optuna's ``TPESampler``): each choice is modelled on its own, as choices depend on others.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        higher_is_better: bool,
        known: Mapping[str, Outcome | None],
    ) -> None:
        """Begin with what is known.

        Args:
            space: what to search.
            seed: the same seed and outcomes give the same proposals.
            higher_is_better: which way the accuracy is up.
            known: chains that were tried, in order, with what they came to if that is known.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._tried = set(known)
        outcomes = {n: o for n, o in known.items() if o is not None}
        seeds = [(self._space.parameters(Chain.parse(n)), o) for n, o in outcomes.items()]
        seeds = [(parameters, outcome) for parameters, outcome in seeds if parameters is not None]
        self._study: Study = optuna.create_study(
            directions=["minimize", "maximize" if higher_is_better else "minimize"],
            sampler=optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=max(LEAST_KNOWN, len(seeds))
            ),
        )
        self._guided = self._study.sampler
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._trial: Trial | None = None
        self._fruitless = 0
        for parameters, outcome in seeds:
            self._study.enqueue_trial(self._stored(parameters or {}))
            self._trial, _ = self._next()
            self.tell(outcome)

    def ask(self) -> Chain | None:
        """A chain that was not tried before; None if hardly any is left."""
        from optuna.trial import TrialState

        if self._fruitless >= MOST_FRUITLESS:
            return None
        for idle in range(MOST_IDLE):
            self._study.sampler = self._guided if idle < MOST_DRAWN else self._random
            trial, chain = self._next()
            if str(chain) not in self._tried:
                self._tried.add(str(chain))
                self._trial = trial
                return chain
            self._study.tell(trial, state=TrialState.FAIL)  # nothing new to learn
        return None

    def tell(self, outcome: Outcome | None) -> None:
        """Say what the chain asked for last came to; None if it gave nothing that could be used."""
        trial = self._trial
        assert trial is not None  # asked before
        self._fruitless = self._fruitless + 1 if outcome is None else 0
        outcome = outcome or NOTHING
        for name, miss in outcome.misses.items():
            trial.set_constraint(name, miss)
        self._study.tell(trial, [outcome.cost, outcome.accuracy])

    def _next(self) -> tuple[Trial, Chain]:
        trial = self._study.ask()

        def choose(name: str, values: Sequence[Any]) -> Any:
            if _ordered(values):
                return values[trial.suggest_int(name, 0, len(values) - 1)]
            return trial.suggest_categorical(name, values)

        return trial, self._space.propose(choose)

    def _stored(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Choices as the study knows them: ordered values by their places."""
        stored = dict(parameters)

        def choose(name: str, values: Sequence[Any]) -> Any:
            if _ordered(values):
                stored[name] = list(values).index(parameters[name])
            return parameters[name]

        self._space.propose(choose)
        return stored


def _ordered(values: Sequence[Any]) -> bool:
    """Whether neighbours are alike: numbers, and no truth values."""
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
