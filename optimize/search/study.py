"""Who walks the space: proposes a chain, and learns from what it came to."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimize.budgets.budget import format_bytes
from optimize.errors import InputError
from optimize.passes.chain import Chain
from optimize.results.report import VariantReport
from optimize.search.space import Space

if TYPE_CHECKING:
    from optuna import Study, Trial

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
