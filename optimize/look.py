"""A first look at latency: who is far too slow need not be evaluated on all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from optimize.budgets.verdict import weigh
from optimize.candidate import Candidate, attempt, open_for
from optimize.measure import Limits
from optimize.turns import Turns

# A look takes some 80 calls with those that warm up; evaluating must take much longer.
WORTH_NS, LEAST_SAMPLES = 20_000_000_000, 320


@dataclass(frozen=True)
class FirstLook:
    """Times candidates for a moment before they are evaluated.

    Attributes:
        turns: times them, and knows what is asked.
    """

    turns: Turns

    def promising(self, candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
        """Who is worth evaluating: all that were not seen to be too slow."""
        unknown = [c for c in candidates if self._is_unknown(c)]
        if unknown and not limits.expired:
            open_one = partial(open_for, self.turns.target)
            with self.turns.records.busy(limits.deadline):
                ready = [c for c in unknown if attempt(open_one, c, limits)]
            unseen = [c for c in ready if self._samples * c.contender.call_ns > WORTH_NS]
            if unseen:
                with self.turns.records.alone(limits.deadline):
                    self.turns.look(unseen, limits)
        return [c for c in candidates if not self.too_slow(c)]

    def too_slow(self, candidate: Candidate) -> bool:
        """Whether calls show that it misses a budget, so that its accuracy can change nothing."""
        if self._evaluates_all or candidate.contender.reference:
            return False
        evidence = weigh(candidate.contender.profile, self.turns.requirement)
        return any(item.decision == "reject" for item in evidence)

    @property
    def _samples(self) -> int:
        return len(self.turns.prepared.evaluation)

    @property
    def _evaluates_all(self) -> bool:
        """Where users name the models or compare them, and where a search learns from each."""
        request = self.turns.request
        return request.everything or request.as_is or request.trials > 0

    def _is_unknown(self, candidate: Candidate) -> bool:
        """Whether it is to be evaluated, and a look could spare that."""
        few = self._samples < LEAST_SAMPLES
        if few or self._evaluates_all or all(b.tail is None for b in self.turns.request.budgets):
            return False
        known = candidate.accuracy is not None or candidate.contender.error is not None
        return candidate.shown and not known and not self.too_slow(candidate)
