"""What is known of all candidates now: verdicts, rows, and who would be chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optimize.budgets.profile import paired_ratio
from optimize.budgets.verdict import Requirement, Status, Verdict, judge
from optimize.judging.candidate import INTERRUPTED, LATE, Candidate, row
from optimize.judging.standings import Standings
from optimize.prepare import Prepared
from optimize.profiling.measure import Limits
from optimize.request import Request
from optimize.results.choose import rank
from optimize.results.report import VariantReport


@dataclass(frozen=True)
class Judging:
    """Judges candidates beside each other.

    Attributes:
        candidates: all of a run, the source first; more may be added to it.
        request, prepared: what is asked, and of what samples.
        requirement: what every variant must prove while all are screened.
        standings: of all candidates.
    """

    candidates: list[Candidate]
    request: Request
    prepared: Prepared
    requirement: Requirement
    standings: Standings

    def conclude(self, candidate: Candidate) -> Verdict:
        """Judge a candidate by what was timed beside the others."""
        candidate.screened = candidate.contender.profile
        candidate.verdict = verdict = self.judge(candidate, self.requirement)
        candidate.speedup = self._speedup(candidate)
        return verdict

    def leave_unconfirmed(self, candidate: Candidate) -> None:
        """Have no say of fresh processes: what was timed beside the others stands, undecided."""
        candidate.raced = candidate.contender
        shown = self.judge(candidate, self.requirement).reason
        reason = f"no time was left to confirm it in fresh processes; by screening, {shown}"
        candidate.verdict = Verdict("undecided", reason)

    def judge(self, candidate: Candidate, requirement: Requirement) -> Verdict:
        """The verdict on a candidate as it is now."""
        contender = candidate.contender
        if contender.error in (LATE, INTERRUPTED):
            return Verdict("undecided", contender.error)
        if contender.error is not None:
            return Verdict("failed", contender.error)
        size = candidate.model.size_bytes
        verdict = judge(contender.profile, candidate.accuracy, size, requirement)
        if verdict.status == "undecided" and candidate.beaten_by is not None:
            status: Status = "undecided" if self.request.everything else "skipped"
            reason = f"not timed to the end: {candidate.beaten_by}; so far {verdict.reason}"
            return replace(verdict, status=status, reason=reason)
        return verdict

    def may_hold(self, candidate: Candidate) -> bool:
        """Whether it was timed, and may still prove fast and accurate enough."""
        contender = candidate.contender
        timed = contender.judged and contender.profile.samples_ns.size > 0
        status = self.judge(candidate, self.requirement).status
        return timed and status in ("kept", "undecided")

    def free(self) -> None:
        """Have back who was given up for another, which may not hold after all.

        They are without a verdict until they are timed on.
        """
        for candidate in self.candidates:
            if candidate.beaten_by is not None and not candidate.confirmed:
                candidate.beaten_by = candidate.verdict = None

    def freed(self) -> list[Candidate]:
        """Who was had back, and not timed since."""
        return [c for c in self.candidates if c.verdict is None and c.contender.judged]

    def best(self, limits: Limits) -> Candidate | None:
        """The best that fresh processes have not had yet, of who is kept or will probably be.

        For who is not shown to hold there must be time to show it.
        """
        eligible = self.candidates[1:] if self.request.reference_only else self.candidates
        known = {c.variant.name: c for c in eligible if not c.confirmed and c.shown}
        higher = self.prepared.metric.higher_is_better
        row_of = self.row if limits.expired else self.prospect
        ranked = rank(list(map(row_of, known.values())), self.request.objective, higher)
        return known[ranked[0].chain] if ranked else None

    def near_misses(self) -> Sequence[Candidate]:
        """Who is too slow, the nearest to the budgets first, if nothing holds or may hold."""
        concluded = [c for c in self.candidates if c.shown and c.verdict]
        if any(c.verdict and c.verdict.status in ("kept", "undecided") for c in concluded):
            return ()
        slow = [c for c in concluded if c.verdict and c.verdict.status == "too_slow"]
        return sorted(slow, key=self._excess)

    def row(self, candidate: Candidate) -> VariantReport:
        """Its row in the report."""
        verdict = candidate.verdict or self.judge(candidate, self.requirement)
        samples = self.prepared.data.evaluation_samples
        return row(candidate, verdict, self.request.confidence, samples, self.candidates)

    def behind(self, candidate: Candidate, chosen: VariantReport) -> VariantReport:
        """Its row, once another is chosen: *skipped* if only more samples could have kept it.

        For then it would still be behind the chosen one.
        """
        row = self.row(candidate)
        if row.status != "undecided" or not candidate.provisional or not self.may_hold(candidate):
            return row
        higher = self.prepared.metric.higher_is_better
        rivals = [chosen, replace(row, status="kept")]
        if rank(rivals, self.request.objective, higher)[0] is not chosen:
            return row
        reason = f"not evaluated to the end: {chosen.chain} is chosen before it; {row.reason}"
        return replace(row, status="skipped", reason=reason)

    def prospect(self, candidate: Candidate) -> VariantReport:
        """The same, where who will probably be kept counts as such."""
        row = self.row(candidate)
        likely = self.standings.holds(candidate) or (
            # Without a budget on latency, only its accuracy can be open.
            candidate.provisional
            and all(budget.tail is None for budget in self.request.budgets)
            and self.may_hold(candidate)
        )
        likely = likely and row.status == "undecided"
        return replace(row, status="kept") if likely else row

    def _excess(self, candidate: Candidate) -> float:
        """The largest factor by which a latency budget is missed."""
        profile = candidate.contender.profile
        return max(
            profile.percentile_ns(1 - budget.tail) / budget.limit
            for budget in self.request.budgets
            if budget.tail is not None
        )

    def _speedup(self, candidate: Candidate) -> tuple[float | None, float | None, float | None]:
        """Pair what was timed in turns; a later confirmation has no partner."""
        source, own = self.candidates[0].contender.profile, candidate.contender.profile
        if candidate is self.candidates[0]:
            return None, None, None
        return paired_ratio(source, own, self.request.confidence)
