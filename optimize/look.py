"""A first look at latency: who is far too slow need not be evaluated on all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from optimize.budgets.verdict import Requirement, weigh
from optimize.candidate import Candidate, attempt, open_for
from optimize.measure import Limits, look, warm_up
from optimize.prepare import Prepared
from optimize.records import Records
from optimize.request import Request
from optimize.targets.base import Target

# A look takes some 80 calls with those that warm up; evaluating must take much longer.
WORTH_NS, LEAST_SAMPLES = 20_000_000_000, 320


@dataclass(frozen=True)
class FirstLook:
    """Times candidates for a moment before they are evaluated.

    Attributes:
        target: where they run.
        prepared, request, requirement: the samples, and what is asked.
        records: who else may be timing.
        source: which is timed in turns with them.
    """

    target: Target
    prepared: Prepared
    request: Request
    requirement: Requirement
    records: Records
    source: Candidate

    def promising(self, candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
        """Who is worth evaluating: all that were not seen to be too slow."""
        unknown = [c for c in candidates if self._is_unknown(c)]
        if unknown and not limits.expired:
            open_one = partial(open_for, self.target)
            with self.records.busy(limits.deadline):
                ready = [c for c in unknown if attempt(open_one, c, limits)]
            unseen = [
                c for c in ready if len(self.prepared.evaluation) * c.contender.call_ns > WORTH_NS
            ]
            if unseen:
                with self.records.alone(limits.deadline):
                    self._look(unseen, limits)
        return [c for c in candidates if not self.too_slow(c)]

    def too_slow(self, candidate: Candidate) -> bool:
        """Whether calls show that it misses a budget, so that its accuracy can change nothing."""
        if self._evaluates_all or candidate.contender.reference:
            return False
        evidence = weigh(candidate.contender.profile, self.requirement)
        return any(item.decision == "reject" for item in evidence)

    @property
    def _evaluates_all(self) -> bool:
        """Where users name the models or compare them, and where a search learns from each."""
        request = self.request
        return request.everything or request.as_is or request.trials > 0

    def _is_unknown(self, candidate: Candidate) -> bool:
        """Whether it is to be evaluated, and a look could spare that."""
        few = len(self.prepared.evaluation) < LEAST_SAMPLES
        if few or self._evaluates_all or all(b.tail is None for b in self.request.budgets):
            return False
        known = candidate.accuracy is not None or candidate.contender.error is not None
        return candidate.shown and not known and not self.too_slow(candidate)

    def _look(self, candidates: Sequence[Candidate], limits: Limits) -> None:
        everyone = [self.source, *candidates]
        ready = [c for c in everyone if attempt(self._warm_up, c, limits)]
        begun = [int(c.contender.profile.samples_ns.sum()) for c in ready]
        look(
            [candidate.contender for candidate in ready],
            self.requirement,
            len(self.prepared.latency),
            limits,
            np.random.default_rng(self.request.seed),
        )
        for candidate, before in zip(ready, begun, strict=True):
            candidate.spent_s += (int(candidate.contender.profile.samples_ns.sum()) - before) / 1e9

    def _warm_up(self, candidate: Candidate, limits: Limits) -> None:
        open_for(self.target, candidate, limits)
        warm_up(candidate.contender, limits)
