"""Time candidates in turns, until more calls would change nothing, and profile their operators."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize.budgets.verdict import Requirement, weigh
from optimize.cache.records import Records
from optimize.errors import WorkerError
from optimize.judging.candidate import Candidate, attempt, open_for
from optimize.judging.keys import Keys
from optimize.judging.standings import Standings
from optimize.observer import Observer
from optimize.prepare import Prepared
from optimize.profiling.measure import (
    Contender,
    Limits,
    operators,
    settled,
    time_in_turns,
    undecided,
    warm_up,
)
from optimize.request import Request
from optimize.targets.base import Target


@dataclass(frozen=True)
class Turns:
    """Times and profiles the candidates of a run.

    Attributes:
        target: where they run.
        prepared, request, requirement: the samples, and what is asked.
        records, keys: where it is kept what was timed, and what it is found by.
        standings: of all candidates beside each other.
    """

    target: Target
    prepared: Prepared
    request: Request
    requirement: Requirement
    records: Records
    keys: Keys
    standings: Standings

    def wants(self, candidate: Candidate, limits: Limits) -> bool:
        """Whether a candidate has to be timed, or profiled, at all."""
        contender = candidate.contender
        if contender.error is not None:
            return False
        if candidate.kernels is None:
            return True
        if limits.exhausted(contender.profile) or not undecided(contender, self.requirement):
            return False
        return not self._is_done(candidate)

    def _is_done(self, candidate: Candidate) -> bool:
        """Whether more calls would change nothing: it is beaten, or to be confirmed anyway."""
        return self.standings.beaten(candidate) or self.standings.leads(candidate)

    def race(
        self, racing: Sequence[Candidate], limits: Limits, observer: Observer, done: int
    ) -> None:
        """Time candidates, the source first, until each is settled, beaten or leads the others.

        Args:
            racing: who wants time.
            limits: of the effort.
            observer: is told how many calls were timed, and how long it may still take.
            done: steps that were done before.
        """
        ready = [c for c in racing if not limits.expired and attempt(self._get_ready, c, limits)]
        known = {c.contender.name: c for c in ready}
        timed = sum(len(c.contender.profile.blocks) for c in ready)
        before = {c.contender.name: int(c.contender.profile.samples_ns.sum()) for c in ready}

        def out(candidate: Candidate) -> bool:
            return candidate.beaten_by is not None or self.standings.leads(candidate)

        def progress(contenders: Sequence[Contender]) -> None:
            for candidate in ready:
                self.keep(candidate)
            left = [
                0.0 if out(known[c.name]) else _seconds_left(c, self.requirement, limits)
                for c in contenders
            ]
            calls = sum(c.profile.samples_ns.size for c in contenders)
            text = f"{calls} calls timed"
            if round(sum(left)):  # else nothing, or what nobody can foretell, is left
                text += f", about {sum(left):.0f} s left"
            observer.step(len(self.standings.candidates) + done - 1 + left.count(0.0), text)

        time_in_turns(
            [c.contender for c in ready if self._plays(c, limits)],
            self.requirement,
            len(self.prepared.latency),
            limits,
            # What was timed before must not be drawn again, as if it were new evidence.
            np.random.default_rng([self.request.seed, 0, timed]),
            progress,
            lambda contender: self._is_done(known[contender.name]),
            lambda contender: self.standings.waits(known[contender.name], limits),
        )
        for candidate in ready:
            self.keep(candidate, last=True)
            self._profile_operators(candidate, limits)
            spent = int(candidate.contender.profile.samples_ns.sum())
            candidate.spent_s += (spent - before[candidate.contender.name]) / 1e9

    def _plays(self, candidate: Candidate, limits: Limits) -> bool:
        """Whether it is timed; the source always is, as company for the others."""
        contender = candidate.contender
        return contender.reference or not settled(contender, self.requirement, limits)

    def _get_ready(self, candidate: Candidate, limits: Limits) -> None:
        open_for(self.target, candidate, limits)
        if self._plays(candidate, limits):
            begun = time.perf_counter()
            warm_up(candidate.contender, limits)
            candidate.spent_s += time.perf_counter() - begun

    def keep(self, candidate: Candidate, *, last: bool = False) -> None:
        """Keep what was timed of a candidate, if that is enough to be worth it, or the last."""
        parts, name = self.keys.latency(candidate), candidate.variant.name
        self.records.keep_profile(parts, candidate.contender.profile, name, last=last)

    def _profile_operators(self, candidate: Candidate, limits: Limits) -> None:
        """Profile single operators, in a session of their own."""
        contender = candidate.contender
        if contender.error is not None or candidate.kernels is not None or limits.expired:
            return
        try:
            rows = operators(contender, limits)
        except WorkerError:
            rows = []  # its profile is for information; the verdict does not rest on it
        self.take_kernels(candidate, rows)
        name = candidate.variant.name
        self.records.keep(self.keys.operators(candidate), rows, f"operators of {name}")

    def take_kernels(self, candidate: Candidate, rows: Sequence[dict[str, Any]]) -> None:
        """Refuse nodes that ran where they were not asked to."""
        contender = candidate.contender
        strangers = {p for kernel in rows for p in kernel["providers"]}
        strangers -= {contender.job.settings.provider, ""}
        if strangers:
            contender.error = f"nodes ran on {', '.join(sorted(strangers))}, not where asked"
        candidate.kernels = tuple(rows)


def _seconds_left(contender: Contender, requirement: Requirement, limits: Limits) -> float:
    """A rough estimate of how long a contender will still be timed."""
    if contender.error is not None or contender.reference:
        return 0.0
    size = contender.profile.samples_ns.size
    if not contender.judged or size == 0:
        return max(0, 100 - size) * contender.call_ns / 1e9
    needs = [
        min(item.more_calls or limits.max_samples, limits.max_samples - size)
        for item in weigh(contender.profile, requirement)
        if item.decision == "undecided"
    ]
    return max(0, *needs, 0) * contender.call_ns / 1e9
