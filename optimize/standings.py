"""Who need not be timed to the end: variants that cannot be chosen for their latency any more."""

from __future__ import annotations

from dataclasses import dataclass, field

from optimize.budgets.profile import Profile
from optimize.budgets.verdict import Requirement, weigh
from optimize.candidate import Candidate
from optimize.keys import Keys
from optimize.measure import COMPARED_CALLS, COMPARED_NS, INFORMATIVE_CALLS, Limits, undecided
from optimize.records import Records
from optimize.report import RelativeReport
from optimize.request import Request

# Who takes longer than a variant by more than this lets it go first.
MUCH_FASTER = 0.7
# What could be faster than a variant that holds by less than this is not worth thousands of calls.
TIE = 0.97


@dataclass(frozen=True)
class _Standing:
    """Whether a profile is still open or meets every latency budget, and its p99.

    The p99 is a multiple of the source's median, for candidates are timed at different moments.
    """

    profile: Profile
    source: Profile
    open: bool
    accepted: bool
    p99: RelativeReport | None


@dataclass
class Standings:
    """What the samples so far say of candidates beside each other.

    Attributes:
        candidates: all of a run, the source first; more may be added to it.
        request, requirement: what is asked of them.
        records, keys: where it is kept who was beaten.
    """

    candidates: list[Candidate]
    request: Request
    requirement: Requirement
    records: Records
    keys: Keys
    _known: dict[str, _Standing] = field(default_factory=dict)

    def beaten(self, candidate: Candidate) -> bool:
        """Whether another variant meets the budgets, and this one is not 3% faster beyond doubt.

        Such a variant is not worth more calls for its latency, whatever they would show. Where
        everything is compared it gets a fair share of calls before.
        """
        if candidate.beaten_by is not None:
            return True
        if self.request.as_is or self.request.objective != "latency":
            return False
        if not candidate.contender.judged or not self._fairly_timed(candidate, least=1):
            return False
        own = self._of(candidate).p99
        rivals = [c for c in self.candidates[1:] if c is not candidate and not c.confirmed]
        standings = [(self._of(c), c.variant.name) for c in rivals]
        bounds = [(s.p99.p99_upper, name) for s, name in standings if s.accepted and s.p99]
        upper, name = min(((u, n) for u, n in bounds if u is not None), default=(None, ""))
        lower = own.p99_lower if own else None
        if lower is None or upper is None or lower <= self._tie * upper:
            return False
        candidate.beaten_by = (
            f"its p99 is at least {lower:.3f} of the source's median, that of {name} at most "
            f"{upper:.3f}"
        )
        told = {"by": name, "reason": candidate.beaten_by}
        self.records.keep(self.keys.beaten(candidate), told, f"beaten by {name}")
        return True

    def was_beaten(self, candidate: Candidate) -> bool:
        """Whether an earlier run gave it up for another variant, which is here again."""
        told = self.records.recall(self.keys.beaten(candidate))
        others = {c.variant.name: c for c in self.candidates[1:]}
        winner = others.get(told["by"]) if told else None
        if winner is None or winner.confirmed or not self._of(winner).accepted:
            return False
        candidate.beaten_by = told["reason"]
        return True

    def waits(self, candidate: Candidate, limits: Limits) -> bool:
        """Whether a faster variant is still being timed: if it holds, this one is beaten."""
        own = self._of(candidate).p99
        if self.request.as_is or self.request.objective != "latency" or own is None:
            return False
        if not self._fairly_timed(candidate, least=INFORMATIVE_CALLS):
            return False
        return any(
            theirs.open and theirs.p99 is not None and self._goes_first(theirs.p99, own)
            for rival in self.candidates[1:]
            if rival.contender.workers and not limits.exhausted(rival.contender.profile)
            for theirs in [self._of(rival)]
        )

    @property
    def _tie(self) -> float:
        return 1.0 if self.request.everything else TIE

    def _goes_first(self, rival: RelativeReport, own: RelativeReport) -> bool:
        """Whether a rival is much faster by what is seen, or would beat this one if it holds."""
        if rival.p50 < MUCH_FASTER * own.p50:
            return True
        upper, lower = rival.p99_upper, own.p99_lower
        if upper is None or lower is None or rival.p99 >= own.p99:
            return False
        return lower > self._tie * upper

    def _fairly_timed(self, candidate: Candidate, least: int) -> bool:
        """Whether there are calls enough for a row that can be compared.

        Where everything is compared, and of the source always, that takes bounds of the p99.
        """
        samples = candidate.contender.profile.samples_ns
        if candidate.contender.reference or self.request.everything:
            return samples.size >= COMPARED_CALLS or int(samples.sum()) >= COMPARED_NS
        return samples.size >= least

    def _of(self, candidate: Candidate) -> _Standing:
        """What its samples show so far; worked out once for each profile."""
        contender, source = candidate.contender, self.candidates[0].contender.profile
        known = self._known.get(contender.name)
        same = known and known.profile is contender.profile and known.source is source
        if known is None or not same:
            racing = contender.error is None and contender.judged
            evidence = weigh(contender.profile, self.requirement) if racing else ()
            accepted = bool(evidence) and all(item.decision == "accept" for item in evidence)
            still = racing and undecided(contender, self.requirement)
            p99 = RelativeReport.of(source, contender.profile, self.request.confidence)
            known = _Standing(contender.profile, source, still, accepted, p99)
            self._known[contender.name] = known
        return known
