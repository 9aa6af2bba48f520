"""Evaluate on all samples whose accuracy is provisional, where it matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optimize.judging.candidate import Candidate
from optimize.judging.evaluate import Evaluation
from optimize.judging.turns import Turns
from optimize.judging.verdicts import Judging
from optimize.observer import Observer
from optimize.profiling.measure import INFORMATIVE_CALLS, INFORMATIVE_NS, Limits

# Of the time that is left, before the race goes on.
FRONT_SHARE = 0.5
# Of each that is looked at before; fewer do not even tell medians apart.
LEAST_CALLS = 32


@dataclass(frozen=True)
class Settling:
    """Decides whom the rest of the samples is worth its time for.

    Attributes:
        judging, evaluation, turns: of the same candidates.
    """

    judging: Judging
    evaluation: Evaluation
    turns: Turns

    def front(
        self, heat: Sequence[Candidate], limits: Limits, observer: Observer, done: int
    ) -> None:
        """Evaluate the fastest wholly until one of them is accurate; workers stay open.

        A few calls tell who is fast. Who is slower will be beaten, and who is inaccurate shall not
        run against the others.
        """
        request, source = self.judging.request, self.judging.candidates[0]
        if request.everything or request.objective != "latency":
            return
        self.judging.standings.recall([source, *heat])
        few = replace(limits, max_samples=_few(source), min_seconds=0.0)
        racing = [c for c in heat if c.provisional and c.shown and self.turns.wants(c, few)]
        if racing:
            with self.turns.records.alone(limits.deadline):
                self.turns.race([source, *racing], few, observer, done)
        share, count = limits.part(FRONT_SHARE), self.evaluation.side_by_side
        while not share.expired:
            left = [c for c in heat if c.shown and not c.beaten_by and self.judging.may_hold(c)]
            left.sort(key=_median)
            if not left or not left[0].provisional:
                return
            some = [c for c in left if c.provisional][:count]
            self._evaluate(some, limits, observer, done)

    def best(self, limits: Limits, observer: Observer, revive: Callable[[], object]) -> None:
        """Evaluate who would be confirmed wholly, until that is known of who would be then.

        ``revive`` is called if one falls, to time on whom it beat.
        """
        while (best := self.judging.best(limits)) is not None and best.provisional:
            fell = self.complete([best], limits, observer)
            if fell:
                before = set(map(str, best.variant.chain.prefixes()))
                steps = [c for c in self.judging.candidates if str(c.variant.chain) in before]
                self.complete(steps, limits, observer)  # to show which pass lost it
                revive()
            elif best.provisional:
                return  # there was no time

    def nearest(self, limits: Limits, observer: Observer) -> None:
        """Evaluate what came nearest to the budgets, if nothing holds: it may be inaccurate."""
        for nearest in self.judging.near_misses():
            if limits.expired or not nearest.provisional:
                return
            self.complete([nearest], limits, observer)
            if nearest.verdict and nearest.verdict.status == "too_slow":
                return

    def complete(self, candidates: Sequence[Candidate], limits: Limits, observer: Observer) -> bool:
        """Evaluate and judge candidates wholly, the fastest first, as far as time allows.

        Returns:
            Whether one of them fell, see :meth:`_evaluate`.
        """
        todo = [c for c in candidates if c.provisional and c.contender.error is None]
        todo.sort(key=lambda c: c.contender.call_ns)
        count, fell = self.evaluation.side_by_side, False
        while todo and not limits.expired:
            some, todo = todo[:count], todo[count:]
            if not self.evaluation.fits(some, limits):
                break
            fell |= self._evaluate(some, limits, observer, 0)
            for candidate in {id(c): c for c in [self.judging.candidates[0], *some]}.values():
                candidate.contender.close()
                fallen = not candidate.contender.judged
                if not candidate.confirmed and (fallen or candidate.verdict is not None):
                    self.judging.conclude(candidate)
        return fell

    def _evaluate(
        self, some: Sequence[Candidate], limits: Limits, observer: Observer, done: int
    ) -> bool:
        """Evaluate candidates wholly; whether one fell that others may have been given up for."""
        ran = [c for c in some if c.contender.judged]
        observer.step(done, f"all outputs of {', '.join(c.contender.name for c in some)}")
        self.evaluation.evaluate(some, limits, whole=True)
        fell = any(not c.contender.judged or c.contender.error is not None for c in ran)
        if fell:
            self.judging.free()
        return fell


def _few(source: Candidate) -> int:
    """How many calls tell who is fast: a hundred, of slow ones as many as take two seconds."""
    calls = INFORMATIVE_NS / max(source.contender.call_ns, 1.0)
    return int(min(max(LEAST_CALLS, calls), INFORMATIVE_CALLS))


def _median(candidate: Candidate) -> float:
    """Of the first calls, so that later ones do not change the order in which they come."""
    samples = candidate.contender.profile.samples_ns[:INFORMATIVE_CALLS]
    return float(np.median(samples)) if samples.size else float("inf")
