"""Who need not be timed to the end: variants that cannot be chosen for their latency any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from optimize.budgets.profile import Profile
from optimize.budgets.verdict import Requirement, weigh
from optimize.cache.records import Records
from optimize.judging.candidate import Candidate
from optimize.judging.keys import Keys
from optimize.profiling.measure import (
    COMPARED_CALLS,
    COMPARED_NS,
    INFORMATIVE_CALLS,
    Limits,
    undecided,
)
from optimize.request import Request
from optimize.results.latency import RelativeReport

# Who takes longer than a variant by more than this lets it go first.
MUCH_FASTER = 0.7
# Thousands of calls shorter than this take seconds: all of them are timed to the end, so that the
# same run ends in the same statuses.
CHEAP_NS = 2_500_000
# What could be faster than a variant that holds by less than this is not worth thousands of calls.
TIE = 0.97


@dataclass(frozen=True)
class _Standing:
    """What a profile says of the latency budgets, and its p99.

    Attributes:
        profile, source: what it is drawn from.
        open: whether more calls could still decide.
        accepted: whether every budget is met.
        promising: the same, or whether more calls would probably show it.
        p99: as a multiple of the source's median, for candidates are timed at different moments.
    """

    profile: Profile
    source: Profile
    open: bool
    accepted: bool
    promising: bool
    p99: RelativeReport | None


def _bounded(candidate: Candidate, times: int = 1) -> bool:
    """Whether it was timed until its p99 has bounds, or long enough for a slow model."""
    samples = candidate.contender.profile.samples_ns
    return samples.size >= times * COMPARED_CALLS or int(samples.sum()) >= times * COMPARED_NS


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
        """Whether another variant meets the budgets, and this one does not promise to be faster.

        By its bounds it could be faster by 3% at most, or 500 calls show it slower at the median
        and not faster by more in the tail (100, if it is much slower in both; 1,000 for one that is
        slower at the median alone, if its tail is not surely faster): more of them would hardly
        change what is chosen. Where everything is compared only bounds count, without
        those 3%, and those of what was shown to meet the budgets; else it is enough that the other
        one will probably.
        """
        if candidate.beaten_by is not None:
            return True
        if not self._races(candidate):
            return False
        if not candidate.contender.judged or not self._may_stop(candidate):
            return False
        own = self._of(candidate).p99
        if own is None:
            return False
        for rival in self.candidates[1:]:
            theirs = self._of(rival)
            if rival is candidate or not self.holds(rival) or not theirs.p99:
                continue
            reason = self._why(candidate, own, theirs.p99, rival.variant.name)
            if reason:
                candidate.beaten_by = reason
                told = {"by": rival.variant.name, "reason": reason}
                self.records.keep(self.keys.beaten(candidate), told, f"beaten by {told['by']}")
                return True
        return False

    def leads(self, candidate: Candidate) -> bool:
        """Whether it will probably be confirmed, and no other variant promises to be faster.

        Fresh processes then show whether it holds; calls that show it here as well would be made
        twice.
        """
        if self.request.everything or not self._races(candidate) or not self.holds(candidate):
            return False
        own = self._of(candidate).p99
        return own is not None and not any(
            self._in_the_way(rival, own, candidate.variant.name)
            for rival in self.candidates
            if rival is not candidate
        )

    def _in_the_way(self, rival: Candidate, leader: RelativeReport, name: str) -> bool:
        """Whether a rival that is kept, or may be after more calls, is not shown to be slower."""
        contender, theirs = rival.contender, self._of(rival)
        out = contender.error or rival.confirmed or rival.beaten_by
        if out or not contender.judged or not (theirs.open or theirs.accepted):
            return False
        if self.request.reference_only and contender.reference:
            return False
        return theirs.p99 is None or self._why(rival, theirs.p99, leader, name) is None

    def holds(self, candidate: Candidate) -> bool:
        """Whether it meets every budget and the floor, or will probably.

        Probably is not enough where everything is compared, or calls are cheap.
        """
        contender = candidate.contender
        out = contender.error or candidate.beaten_by or candidate.confirmed
        if out or not contender.judged or candidate.accuracy is None or self._too_large(candidate):
            return False
        standing = self._of(candidate)
        promising = standing.promising and _bounded(candidate) and self._races(candidate)
        return standing.accepted or (promising and not self.request.everything)

    def _why(
        self, candidate: Candidate, own: RelativeReport, theirs: RelativeReport, name: str
    ) -> str | None:
        """Why a rival that holds makes more calls of a candidate pointless; None if it does not."""
        lower, upper = own.p99_lower, theirs.p99_upper
        if lower is not None and upper is not None and lower > self._tie * upper:
            return (
                f"its p99 is at least {lower:.3f} of the source's median, that of {name} at most "
                f"{upper:.3f}"
            )
        if self.request.everything or not self._shown_slower(candidate, own, theirs):
            return None
        return (
            f"its p50 and p99 are {own.p50:.3f} and {own.p99:.3f} of the source's median, those of "
            f"{name} {theirs.p50:.3f} and {theirs.p99:.3f}"
        )

    def _shown_slower(
        self, candidate: Candidate, own: RelativeReport, theirs: RelativeReport
    ) -> bool:
        if _bounded(candidate):
            alike = own.p99 >= TIE * theirs.p99
            if _bounded(candidate, times=2):
                upper, lower = own.p99_upper, theirs.p99_lower
                alike |= upper is None or lower is None or upper >= lower
            return own.p50 >= theirs.p50 and alike
        few = candidate.contender.profile.samples_ns.size < INFORMATIVE_CALLS
        ratio = max(theirs.p50 / own.p50, theirs.p99 / own.p99)
        return not few and self._may_stop(candidate) and ratio < MUCH_FASTER

    def recall(self, candidates: Sequence[Candidate]) -> None:
        """Give up whom an earlier run gave up for a variant that is here again, and holds."""
        told = {c.variant.name: self.records.recall(self.keys.beaten(c)) for c in candidates}
        winners = {name: found["by"] for name, found in told.items() if found}
        known = {c.variant.name: c for c in self.candidates[1:]}
        given_up = []
        for candidate in filter(self._may_be_beaten, candidates):
            best: str | None = winners.get(candidate.variant.name)
            for _ in winners:  # who beat it may have been beaten itself
                best = winners.get(best, best) if best else None
            if best in known and best not in winners and self.holds(known[best]):
                given_up.append(candidate)
        for candidate in given_up:
            candidate.beaten_by = told[candidate.variant.name]["reason"]

    def _may_be_beaten(self, candidate: Candidate) -> bool:
        """Whether this run gives up whom a faster one beats, as the earlier run did."""
        return self._races(candidate) and self._may_stop(candidate)

    def waits(self, candidate: Candidate, limits: Limits) -> bool:
        """Whether a faster variant is still being timed: if it holds, this one is beaten."""
        own = self._of(candidate).p99
        if own is None or not self._races(candidate):
            return False
        few = candidate.contender.profile.samples_ns.size < INFORMATIVE_CALLS
        if few or not self._may_stop(candidate):
            return False
        return any(
            theirs.open and theirs.p99 and self._goes_first(candidate, own, theirs.p99)
            for rival in self.candidates[1:]
            if rival.contender.workers and not limits.exhausted(rival.contender.profile)
            for theirs in [self._of(rival)]
        )

    def _too_large(self, candidate: Candidate) -> bool:
        peak = candidate.contender.profile.peak_bytes or 0
        return any(b.quantity == "memory" and peak > b.limit for b in self.request.budgets)

    @property
    def _tie(self) -> float:
        return 1.0 if self.request.everything else TIE

    def _goes_first(self, candidate: Candidate, own: RelativeReport, rival: RelativeReport) -> bool:
        """Whether a rival is much faster by what is seen, or faster by enough calls."""
        if rival.p50 < MUCH_FASTER * own.p50:
            return True
        return _bounded(candidate) and rival.p50 < own.p50 and rival.p99 < own.p99

    def _races(self, candidate: Candidate) -> bool:
        """Whether latency is what is chosen by, and more calls of it cost what is worth saving."""
        by_latency = not self.request.as_is and self.request.objective == "latency"
        return by_latency and candidate.contender.call_ns >= CHEAP_NS

    def _may_stop(self, candidate: Candidate) -> bool:
        """Whether its row can be compared: the source's always needs bounds of the p99."""
        return _bounded(candidate) or not (self.request.everything or candidate.contender.reference)

    def _of(self, candidate: Candidate) -> _Standing:
        """What its samples show so far; worked out once for each profile."""
        contender, source = candidate.contender, self.candidates[0].contender.profile
        known = self._known.get(contender.name)
        same = known and known.profile is contender.profile and known.source is source
        if known is None or not same:
            racing = contender.error is None and contender.judged
            evidence = weigh(contender.profile, self.requirement) if racing else ()
            decisions = {item.decision for item in evidence}
            most = self.request.max_samples - contender.profile.samples_ns.size
            likely = {
                item.decision == "accept"
                or (item.more_calls is not None and item.more_calls <= most)
                for item in evidence
            }
            known = _Standing(
                contender.profile,
                source,
                open=racing and undecided(contender, self.requirement),
                accepted=decisions == {"accept"},
                promising=likely == {True},
                p99=RelativeReport.of(source, contender.profile, self.request.confidence),
            )
            self._known[contender.name] = known
        return known
