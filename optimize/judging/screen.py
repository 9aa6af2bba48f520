"""Judge all variants side by side, then confirm the best in fresh processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from optimize.budgets.profile import Profile
from optimize.budgets.verdict import Requirement
from optimize.building.build import Variant
from optimize.cache.records import Records
from optimize.judging.candidate import LATE, Candidate
from optimize.judging.evaluate import Evaluation
from optimize.judging.explaining import Explaining
from optimize.judging.keys import Keys
from optimize.judging.settle import Settling
from optimize.judging.standings import Standings
from optimize.judging.turns import Turns
from optimize.judging.verdicts import Judging
from optimize.observer import Observer
from optimize.prepare import Prepared
from optimize.processes.child import Children
from optimize.profiling.confirm import FRESH_PROCESSES, Confirmation, processes
from optimize.profiling.measure import Contender, Limits
from optimize.request import Request
from optimize.results.report import VariantReport
from optimize.search.study import Outcome
from optimize.targets.base import Settings, Target
from optimize.targets.inputs import write_inputs
from optimize.targets.serving import serving

MEMORY_SHARE = 0.5
MOST_AT_ONCE = 32
# Evaluating may take so much of the time that is left, before anything is timed.
EVALUATE_SHARE = 0.5


@dataclass
class Screening:
    """The measuring half of a run; ``rows`` can be asked for at any moment.

    Attributes:
        chosen: the chain that was confirmed; None as long as none is.
    """

    target: Target
    settings: Settings
    prepared: Prepared
    request: Request
    contenders: int
    folder: Path
    records: Records
    chosen: str | None = None
    _candidates: list[Candidate] = field(default_factory=list)

    @property
    def requirement(self) -> Requirement:
        """What every variant must prove while all are screened."""
        return Requirement(
            self.request.budgets,
            self.prepared.floor,
            self.request.confidence,
            contenders=max(1, self.contenders),
            strict_floor=self.request.strict_floor,
        )

    @cached_property
    def _keys(self) -> Keys:
        return Keys(self.request, self.prepared)

    @cached_property
    def _evaluation(self) -> Evaluation:
        return Evaluation(
            self.target, self.settings, self.prepared, self.request, self.contenders,
            self.records, self._keys, self._candidates[0],
        )  # fmt: skip

    @cached_property
    def _standings(self) -> Standings:
        return Standings(self._candidates, self.request, self.requirement, self.records, self._keys)

    @cached_property
    def _turns(self) -> Turns:
        return Turns(
            self.target, self.prepared, self.request, self.requirement, self.records, self._keys,
            self._standings,
        )  # fmt: skip

    @cached_property
    def _judging(self) -> Judging:
        return Judging(
            self._candidates, self.request, self.prepared, self.requirement, self._standings
        )

    @cached_property
    def _settling(self) -> Settling:
        return Settling(self._judging, self._evaluation, self._turns)

    def measure(self, variants: Sequence[Variant], limits: Limits, observer: Observer) -> None:
        """Evaluate and time the source and all variants, as many at once as memory allows.

        Raises:
            InputError: the source itself does not run, or its metric cannot be computed.
        """
        write_inputs(self.prepared.latency, self.folder / "inputs")
        for variant in variants:
            self._add(variant)
        observer.stage("evaluate and time", 2 * len(self._candidates))
        self._evaluation.check_source(limits)
        self._measure(self._candidates[1:], limits, observer)
        self._settle(limits.part(EVALUATE_SHARE), observer)

    def evaluate(self, variant: Variant, limits: Limits) -> VariantReport:
        """Evaluate one more variant, after :meth:`measure`; it is timed by :meth:`time_rest`.

        It must be among the ``contenders``, whose number the error is shared by from the start.
        """
        candidate = self._add(variant)
        self._evaluation.evaluate([candidate], limits, whole=not self.request.everything)
        if not (candidate.contender.judged or self.request.everything):
            candidate.contender.close()
        return self._judging.row(candidate)

    def time_rest(self, limits: Limits, observer: Observer) -> None:
        """Time what :meth:`evaluate` has added and found worth it."""
        rest = [
            c
            for c in self._candidates[1:]
            if c.verdict is None and (c.contender.judged or self.request.everything)
        ]
        if rest:
            self._time(rest, limits, observer, 0)
        self._settle(limits, observer)

    def measure_more(self, variants: Sequence[Variant], limits: Limits, observer: Observer) -> None:
        """Evaluate and time further variants, after :meth:`measure`.

        Those that are out of the race are timed for information. All must be among the
        ``contenders``.
        """
        self._measure([self._add(variant) for variant in variants], limits, observer)
        self._settle(limits, observer)

    def outcome(self, name: str) -> Outcome | None:
        """What a search learns from a variant; None if it was not measured.

        Its speed is that of when it was first asked for, also if that was an earlier run on the
        same records: calls timed later pair some of its blocks with others of the source, and the
        same search must take the same way again.
        """
        candidate = next(c for c in self._candidates if c.variant.name == name)
        accuracy, source = candidate.accuracy, self._candidates[0]
        speedup = 1.0 if candidate is source else self._first_speedup(candidate)
        if accuracy is None or speedup is None:
            return None
        by_size = self.request.objective == "size"
        cost = candidate.model.size_bytes / source.model.size_bytes if by_size else 1 / speedup
        floor = self.prepared.floor
        misses = {"floor": -accuracy.room(floor)}
        for budget in self.request.budgets:
            if budget.quantity == "size":
                misses["size"] = candidate.model.size_bytes / budget.limit - 1
        return Outcome(cost, accuracy.change, misses)

    def _first_speedup(self, candidate: Candidate) -> float | None:
        source = self._candidates[0]
        parts = self._keys.speedup(candidate, source)
        speedup: float | None = self.records.recall(parts)
        if speedup is None and candidate.speedup[0] is not None:
            speedup = candidate.speedup[0]
            self.records.keep(parts, speedup, f"speed of {candidate.variant.name}")
        return speedup

    def confirm(self, limits: Limits, observer: Observer) -> None:
        """Time the best variant again in fresh processes; go on to the next if it fails.

        If none is left that holds, what was given up for one that did not is timed on.
        """
        self._go_on(limits, observer)
        for _ in range(2 * len(self._candidates)):  # each is confirmed once, and may fall once
            self._settle_best(limits, observer)
            best = self._judging.best(limits)
            if best is not None and best.provisional:
                break  # there is no time to evaluate it
            if best is not None:
                observer.stage(f"confirm {best.variant.name}", FRESH_PROCESSES)
                self._confirm(best, limits, observer)
                if best.verdict and best.verdict.status == "kept":
                    self.chosen = best.variant.name
                    return
            if not self._revive(limits, observer) and best is None:
                break
        self._settling.nearest(limits, observer)

    def rows(self) -> list[VariantReport]:
        """What is known now about every variant that was built."""
        shown = [c for c in self._candidates if c.shown]
        best = next((c for c in shown if c.variant.name == self.chosen), None)
        if best is None:
            return [self._judging.row(c) for c in shown]
        chosen = self._judging.row(best)
        return [chosen if c is best else self._judging.behind(c, chosen) for c in shown]

    def steps(self) -> list[str]:
        """Chains that are measured to show what the passes of others change."""
        return [c.variant.name for c in self._candidates if not c.shown]

    def prospects(self) -> list[VariantReport]:
        """The same, where who will probably be kept counts as such; fresh processes are to tell."""
        return [self._judging.prospect(c) for c in self._candidates if c.shown]

    def profiles(self) -> dict[str, Profile]:
        """What was measured of every variant, as its row shows it."""
        return {c.contender.name: c.contender.profile for c in self._candidates if c.shown}

    def explain(self, children: Children, isa: Sequence[str], limits: Limits) -> None:
        """Say of every variant that was profiled what limits it, and where its accuracy went."""
        explaining = Explaining(
            self._candidates, self.prepared.evaluation, self.records, self._keys
        )
        explaining.explain(children, isa, limits)

    def close(self) -> None:
        """End all worker processes."""
        for candidate in self._candidates:
            candidate.contender.close()

    def _add(self, variant: Variant) -> Candidate:
        """Take a variant up, with what earlier runs found out about it."""
        model, number = variant.model, len(self._candidates)
        assert model is not None  # only what was built is measured
        inputs, scratch = self.folder / "inputs", self.folder / f"variant-{number}"
        pre, post = self.request.pre, self.request.post
        job = serving(model, variant.chain.runtime, self.settings, inputs, scratch, pre, post)
        contender = Contender(variant.name, job, reference=number == 0)
        candidate = Candidate(variant, model, contender)
        self._candidates.append(candidate)
        self._recall(candidate)
        return candidate

    # What earlier runs found out.

    def _recall(self, candidate: Candidate) -> None:
        contender = candidate.contender
        contender.profile = self.records.recall_profile(self._keys.latency(candidate))
        candidate.recalled = len(contender.profile.blocks)
        if candidate.recalled:
            contender.call_ns = float(np.median(contender.profile.samples_ns))
        kernels = self.records.recall(self._keys.operators(candidate))
        if kernels is not None:
            self._turns.take_kernels(candidate, kernels)
        if not self._evaluation.recall(candidate):
            contender.judged = candidate.shown

    # Latency.

    def _measure(self, waiting: Sequence[Candidate], limits: Limits, observer: Observer) -> None:
        done = 1
        while True:
            heat, waiting = self._open_heat(waiting, limits, observer, done)
            part = limits.part(len(heat) / (len(heat) + len(waiting))) if waiting else limits
            self._settling.front(heat, part, observer, done)
            self._time(heat, part, observer, done)
            done += len(heat)
            if not waiting:
                return

    def _open_heat(
        self, waiting: Sequence[Candidate], limits: Limits, observer: Observer, done: int
    ) -> tuple[list[Candidate], Sequence[Candidate]]:
        """Evaluate candidates, workers kept, until memory or the time left is half used."""
        share = limits.part(EVALUATE_SHARE)
        memory = self.target.device().memory_bytes or 8 << 30
        heat: list[Candidate] = []
        used = self._candidates[0].contender.rss_bytes
        while waiting:
            full = used > MEMORY_SHARE * memory or len(heat) >= MOST_AT_ONCE
            if heat and (full or share.expired):
                break
            count = self._evaluation.side_by_side
            some, waiting = waiting[:count], waiting[count:]
            names = ", ".join(candidate.contender.name for candidate in some)
            observer.step(done + len(heat), f"outputs of {names}")
            self._evaluation.evaluate(some, limits)
            heat += some
            used += sum(c.contender.rss_bytes for c in some if c.contender.workers)
        return heat, waiting

    def _time(
        self, heat: Sequence[Candidate], limits: Limits, observer: Observer, done: int
    ) -> None:
        """Time candidates in turns with the source, as far as they are not settled yet."""
        source = self._candidates[0]
        confirmed, source.contender = source.contender, source.raced or source.contender
        self._standings.recall([source, *heat])
        racing = [c for c in heat if self._turns.wants(c, limits)]
        if racing or self._turns.wants(source, limits):
            with self.records.alone(limits.deadline):
                self._turns.race([source, *racing], limits, observer, done)
        for candidate in heat:
            self._judging.conclude(candidate)
            candidate.contender.close()
        if source.raced is None:
            self._judging.conclude(source)
        else:  # its verdict is that of the fresh processes
            source.contender.close()
            source.contender = confirmed

    def _go_on(self, limits: Limits, observer: Observer) -> None:
        """If nobody can be confirmed, spend half of the time left for it on who is undecided."""
        if limits.expired or self._judging.best(limits) is not None:
            return
        for candidate in self._candidates[1:]:
            if candidate.contender.error == LATE:
                candidate.contender.error = candidate.verdict = None
        left = [
            c
            for c in self._candidates[1:]
            if c.shown and (c.accuracy is None or self._turns.wants(c, limits))
        ]
        if left:
            observer.stage("evaluate and time", 2 * len(left))
            self._measure(left, limits.part(EVALUATE_SHARE), observer)
            self._settle(limits.part(EVALUATE_SHARE), observer)

    def _revive(self, limits: Limits, observer: Observer) -> bool:
        """Time on what was beaten by a variant that did not hold; whether there was anything."""
        self._judging.free()
        freed = self._judging.freed()
        if not freed or limits.expired:
            return False
        self._time([c for c in freed if not c.contender.reference], limits, observer, 0)
        return True

    def _settle(self, limits: Limits, observer: Observer) -> None:
        """Evaluate on all samples who is provisional, if it matters: the best, or all compared."""
        if self.request.everything:
            self._settling.complete(self._candidates, limits, observer)
        elif self.request.objective == "accuracy":
            may_hold = [c for c in self._candidates if self._judging.may_hold(c)]
            self._settling.complete(may_hold, limits, observer)
        else:
            self._settle_best(limits, observer)
        if self._judging.freed():
            self._revive(limits, observer)

    def _settle_best(self, limits: Limits, observer: Observer) -> None:
        self._settling.best(limits, observer, lambda: self._revive(limits, observer))

    def _confirm(self, candidate: Candidate, limits: Limits, observer: Observer) -> None:
        screened = candidate.contender
        requirement = replace(self.requirement, contenders=self._share(candidate))
        parts, what = self._keys.fresh(candidate), f"fresh {screened.name}"
        job = replace(screened.job, scratch=self.folder / f"fresh-{id(candidate)}")
        fresh = Contender(screened.name, job, profile=self.records.recall_profile(parts))
        confirmation = Confirmation(
            self.target, requirement, len(self.prepared.latency), self.request.seed
        )

        def keep(last: bool = False) -> None:
            self.records.keep_profile(parts, fresh.profile, what, last=last)

        if not confirmation.done(fresh, limits):
            if limits.expired and not fresh.profile.blocks:
                self._judging.leave_unconfirmed(candidate)
                return
            with self.records.alone(limits.deadline):
                confirmation.time(fresh, limits, observer.step, keep)
                keep(last=True)
        candidate.raced = screened
        candidate.contender = replace(fresh, judged=screened.judged, reference=screened.reference)
        verdict, count = self._judging.judge(candidate, requirement), processes(fresh)
        lead = f"in {count} fresh processes, "
        if verdict.status == "kept" and count < FRESH_PROCESSES:
            verdict = replace(verdict, status="undecided")
            lead = f"only {count} of {FRESH_PROCESSES} fresh processes were timed; "
        candidate.verdict = replace(verdict, reason=lead + verdict.reason)

    def _share(self, candidate: Candidate) -> int:
        """What part of the error a confirmation may spend: all, if screening has had its say.

        Who is confirmed by fresh processes alone gets a half, the next a quarter, and so on.
        """
        if candidate.verdict and candidate.verdict.status == "kept":
            return 1
        candidate.unscreened = True
        return int(2 ** sum(c.unscreened for c in self._candidates))
