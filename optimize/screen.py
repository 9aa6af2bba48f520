"""Judge all variants side by side, then confirm the best in fresh processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np

from optimize.budgets.accuracy import Accuracy, Outputs, Scores, compare
from optimize.budgets.profile import Profile, paired_ratio
from optimize.budgets.verdict import Requirement, Verdict, judge, weigh
from optimize.build import Variant
from optimize.child import Child
from optimize.choose import rank
from optimize.errors import InputError, WorkerError
from optimize.explain import Explainer, Subject
from optimize.measure import (
    Contender,
    Limits,
    collect_outputs,
    open_worker,
    operators,
    time_in_turns,
    warm_up,
)
from optimize.models.model import Model
from optimize.models.run import Difference, difference
from optimize.models.runtimes import find_runtime
from optimize.prepare import Prepared
from optimize.report import (
    AccuracyReport,
    LatencyReport,
    OperatorReport,
    StepReport,
    VariantReport,
)
from optimize.request import Request
from optimize.targets.base import Job, Settings, Target
from optimize.targets.inputs import write_inputs

FRESH_PROCESSES = 3
MEMORY_SHARE = 0.5
SHOWN_OPERATORS = 8
SHARES = ("top1", "top5", "f1")  # metrics that cannot fall below zero
MOST_AT_ONCE = 16


class Observer(Protocol):
    """The part of the pipeline's observer that is used here."""

    def stage(self, name: str, total: int) -> None:
        """A stage begins."""

    def step(self, done: float, text: str) -> None:
        """A step is done."""


@dataclass
class _Candidate:
    """A variant and what has been found out about it."""

    variant: Variant
    model: Model
    contender: Contender
    accuracy: Accuracy | None = None
    verdict: Verdict | None = None
    confirmed: bool = False
    speedup: tuple[float | None, float | None, float | None] = (None, None, None)
    operators: tuple[OperatorReport, ...] = ()
    screened: Profile = field(default_factory=lambda: Profile(()))
    profile_s: float = 0.0
    difference: str | None = None
    kernels: tuple[dict[str, Any], ...] = ()
    explanation: tuple[str, ...] = ()


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
    chosen: str | None = None
    _candidates: list[_Candidate] = field(default_factory=list)
    _source_scores: Scores | None = None
    _source_outputs: Outputs = field(default_factory=dict)
    _scoring: Lock = field(default_factory=Lock)

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

    def measure(self, variants: Sequence[Variant], limits: Limits, observer: Observer) -> None:
        """Evaluate and time the source and all variants, as many at once as memory allows.

        Raises:
            InputError: the source itself does not run, or its metric cannot be computed.
        """
        write_inputs(self.prepared.latency, self.folder / "inputs")
        for variant in variants:
            self._add(variant)
        reference, *others = self._candidates
        observer.stage("evaluate and time", 2 * len(self._candidates))
        self._evaluate_source(reference, limits)
        waiting, done = others, 1
        while True:
            heat, waiting = self._open_heat(waiting, limits.halved(), observer, done)
            self._time([reference, *heat], limits, observer, done)
            done += len(heat)
            if not waiting:
                return

    def evaluate(self, variant: Variant, limits: Limits) -> VariantReport:
        """Evaluate one more variant, after :meth:`measure`; it is timed by :meth:`time_rest`.

        It must be among the ``contenders``, whose number the error is shared by from the start.
        """
        candidate = self._add(variant)
        self._evaluate_all([candidate], limits)
        if not (candidate.contender.judged or self.request.everything):
            candidate.contender.close()
        return self._row(candidate)

    def time_rest(self, limits: Limits, observer: Observer) -> None:
        """Time what :meth:`evaluate` has added and found worth it."""
        rest = [
            candidate
            for candidate in self._candidates[1:]
            if candidate.verdict is None and candidate.contender.workers
        ]
        if rest:
            self._time([self._candidates[0], *rest], limits, observer, 0)

    def _add(self, variant: Variant) -> _Candidate:
        model, number = variant.model, len(self._candidates)
        assert model is not None  # only what was built is measured
        job = Job(
            model=model.path,
            inputs=self.folder / "inputs",
            scratch=self.folder / f"variant-{number}",
            settings=self._settings(variant, model),
            names=_names(model),
            pre=self.request.pre,
            post=self.request.post,
        )
        contender = Contender(variant.name, job, reference=number == 0)
        candidate = _Candidate(variant, model, contender)
        self._candidates.append(candidate)
        return candidate

    def _settings(self, variant: Variant, model: Model) -> Settings:
        """How this variant is served: by its own runtime, with its own options."""
        runtime = variant.chain.runtime
        provider = self.settings.provider
        if runtime != self.settings.runtime:
            provider = find_runtime(runtime).provider
        return replace(self.settings, runtime=runtime, provider=provider, config=model.config)

    def confirm(self, limits: Limits, observer: Observer) -> None:
        """Time the best kept variant again in fresh processes; go on to the next if it fails."""
        higher = self.prepared.metric.higher_is_better
        while best := next(iter(rank(self._unconfirmed(), self.request.objective, higher)), None):
            candidate = next(c for c in self._candidates if c.variant.name == best.chain)
            observer.stage(f"confirm {best.chain}", FRESH_PROCESSES)
            self._confirm(candidate, limits, observer)
            if candidate.verdict and candidate.verdict.status == "kept":
                self.chosen = best.chain
                return

    def rows(self) -> list[VariantReport]:
        """What is known now about every variant that was built."""
        return [self._row(c) for c in self._candidates if not c.variant.step]

    def profiles(self) -> dict[str, Profile]:
        """What was measured of every variant, as its row shows it."""
        shown = (c for c in self._candidates if not c.variant.step)
        return {c.contender.name: c.contender.profile for c in shown}

    def explain(self, child: Child, isa: Sequence[str], limits: Limits) -> None:
        """Say of every variant that was profiled what limits it, and where its accuracy went."""
        source, *others = (_subject(c) for c in self._candidates)
        explainer = Explainer(child, source, isa, self.prepared.evaluation)
        for candidate, subject in zip(self._candidates[1:], others, strict=True):
            if candidate.kernels and not candidate.variant.step and not limits.expired:
                candidate.explanation = explainer.explain(subject)

    def close(self) -> None:
        """End all worker processes."""
        for candidate in self._candidates:
            candidate.contender.close()

    def _unconfirmed(self) -> list[VariantReport]:
        eligible = self._candidates[1:] if self.request.reference_only else self._candidates
        return [self._row(c) for c in eligible if not c.confirmed and not c.variant.step]

    def _evaluate_source(self, reference: _Candidate, limits: Limits) -> None:
        try:
            self._open(reference, limits)
            self._compare(reference, limits)
        except (WorkerError, InputError) as error:
            raise InputError(f"the source cannot be judged: {error}") from error
        accuracy, floor = reference.accuracy, self.prepared.floor
        if accuracy and accuracy.metric in SHARES and accuracy.limit(floor) <= 0:
            raise InputError(
                f"the source's own {accuracy.metric} is {accuracy.value:.4f}, so that no model can "
                f"miss the floor {floor}; check the labels"
            )

    def _open_heat(
        self, waiting: list[_Candidate], limits: Limits, observer: Observer, done: int
    ) -> tuple[list[_Candidate], list[_Candidate]]:
        """Evaluate candidates one by one and keep their workers, until memory is half used."""
        memory = self.target.device().memory_bytes or 8 << 30
        heat: list[_Candidate] = []
        used = self._candidates[0].contender.rss_bytes
        while waiting:
            if heat and (used > MEMORY_SHARE * memory or len(heat) >= MOST_AT_ONCE):
                break
            some, waiting = waiting[: self._side_by_side], waiting[self._side_by_side :]
            names = ", ".join(candidate.contender.name for candidate in some)
            observer.step(done + len(heat), f"outputs of {names}")
            self._evaluate_all(some, limits)
            heat += some
            used += sum(candidate.contender.rss_bytes for candidate in some)
        return heat, waiting

    @property
    def _side_by_side(self) -> int:
        """How many may be evaluated at once: nothing is timed then, and every core can help."""
        cores = self.target.device().granted_cores
        if self.settings.cpus:
            cores = min(cores, len(self.settings.cpus))
        return max(1, cores // self.settings.threads)

    def _evaluate_all(self, candidates: Sequence[_Candidate], limits: Limits) -> None:
        if limits.expired:
            for candidate in candidates:
                candidate.contender.error = _LATE
            return
        # Workers are started by this thread: Linux ends them with the thread that started them.
        ready = [c for c in candidates if self._try(self._open, c, limits)]
        with ThreadPoolExecutor(max(1, len(ready))) as pool:
            try:
                for done in [pool.submit(self._try, self._compare, c, limits) for c in ready]:
                    done.result()
            except BaseException:
                self.close()  # what still waits for a worker ends with it
                raise

    def _try(
        self, act: Callable[[_Candidate, Limits], None], candidate: _Candidate, limits: Limits
    ) -> bool:
        """Let a failure end its own candidate only; return whether it succeeded."""
        try:
            act(candidate, limits)
        except (WorkerError, InputError) as error:
            candidate.contender.error = str(error)
            candidate.contender.close()
            return False
        return True

    def _open(self, candidate: _Candidate, limits: Limits) -> None:
        begun = time.perf_counter()
        open_worker(self.target, candidate.contender, limits)
        candidate.profile_s += time.perf_counter() - begun

    def _compare(self, candidate: _Candidate, limits: Limits) -> None:
        """Compare a candidate's outputs with the source's, and judge its accuracy."""
        begun = time.perf_counter()
        contender, prepared = candidate.contender, self.prepared
        if candidate.variant.step:
            contender.judged = False
            if candidate.variant.exact:
                return  # its outputs were checked when it was built
        outputs = collect_outputs(contender, len(prepared.evaluation), limits)
        rows = prepared.per_sample(outputs)
        with self._scoring:  # a user's metric need not bear being called twice at once
            self._score(candidate, rows)
        candidate.profile_s += time.perf_counter() - begun

    def _score(self, candidate: _Candidate, rows: Outputs) -> None:
        contender, prepared = candidate.contender, self.prepared
        if contender.reference:
            self._source_outputs = rows
        scores = prepared.metric.score(rows, prepared.labels, self._source_outputs)
        if contender.reference:
            self._source_scores = scores
        assert self._source_scores is not None  # the source is evaluated first
        candidate.accuracy = compare(
            prepared.metric, scores, self._source_scores, self.request.confidence
        )
        contender.judged = self._in_the_race(candidate) and not candidate.variant.step
        if not contender.reference:
            candidate.difference = str(_difference(rows, self._source_outputs))

    def _in_the_race(self, candidate: _Candidate) -> bool:
        fits = all(
            candidate.model.size_bytes <= budget.limit
            for budget in self.request.budgets
            if budget.quantity == "size"
        )
        accuracy = candidate.accuracy
        strict = self.request.strict_floor
        return fits and (accuracy is None or accuracy.meets(self.prepared.floor, strict) is True)

    def _time(
        self, heat: Sequence[_Candidate], limits: Limits, observer: Observer, done: int
    ) -> None:
        for candidate in heat:
            if candidate.contender.error is None and not limits.expired:
                self._warm_up(candidate, limits)

        def progress(contenders: Sequence[Contender]) -> None:
            left = sum(_seconds_left(c, self.requirement, limits) for c in contenders)
            calls = sum(c.profile.samples_ns.size for c in contenders)
            settled = sum(_seconds_left(c, self.requirement, limits) == 0 for c in contenders)
            text = f"{calls} calls timed, about {left:.0f} s left"
            observer.step(len(self._candidates) + done - 1 + settled, text)

        rng = np.random.default_rng(self.request.seed)
        contenders = [candidate.contender for candidate in heat]
        count = len(self.prepared.latency)
        time_in_turns(contenders, self.requirement, count, limits, rng, progress)
        for candidate in heat:
            self._operators(candidate, limits)
            candidate.screened = candidate.contender.profile
            candidate.verdict = self._judge(candidate, self.requirement)
            candidate.speedup = self._speedup(candidate)
            if not candidate.contender.reference:
                candidate.contender.close()

    def _warm_up(self, candidate: _Candidate, limits: Limits) -> None:
        begun = time.perf_counter()
        try:
            warm_up(candidate.contender, limits)
        except WorkerError as error:
            candidate.contender.error = str(error)
        candidate.profile_s += time.perf_counter() - begun

    def _judge(self, candidate: _Candidate, requirement: Requirement) -> Verdict:
        contender = candidate.contender
        if contender.error == _LATE:
            return Verdict("undecided", _LATE)
        if contender.error is not None:
            return Verdict("failed", contender.error)
        return judge(contender.profile, candidate.accuracy, candidate.model.size_bytes, requirement)

    def _confirm(self, candidate: _Candidate, limits: Limits, observer: Observer) -> None:
        candidate.confirmed = True
        screened = candidate.contender
        fresh = Contender(
            screened.name, replace(screened.job, scratch=self.folder / f"fresh-{id(candidate)}")
        )
        requirement = replace(self.requirement, contenders=1)
        try:
            for number in range(FRESH_PROCESSES):
                observer.step(number, f"fresh process {number + 1} of {FRESH_PROCESSES}")
                if not limits.expired:
                    open_worker(self.target, fresh, limits)
            warm_up(fresh, limits)
            rng = np.random.default_rng(self.request.seed + 1)
            time_in_turns(
                [fresh], requirement, len(self.prepared.latency), limits, rng, lambda _: None
            )
        except WorkerError as error:
            fresh.error = str(error)
        finally:
            fresh.close()
        candidate.contender = replace(fresh, judged=screened.judged, reference=screened.reference)
        verdict = self._judge(candidate, requirement)
        lead = f"in {FRESH_PROCESSES} fresh processes, "
        candidate.verdict = replace(verdict, reason=lead + verdict.reason)

    def _row(self, candidate: _Candidate) -> VariantReport:
        variant, contender = candidate.variant, candidate.contender
        verdict = candidate.verdict or self._judge(candidate, self.requirement)
        accuracy = AccuracyReport.of(candidate.accuracy) if candidate.accuracy else None
        profile = contender.profile
        latency = None
        if profile.samples_ns.size:
            latency = LatencyReport.of(profile, self.request.confidence)
        return VariantReport(
            chain=variant.name,
            runtime=contender.job.settings.runtime,
            config=dict(candidate.model.config),
            status=verdict.status,
            reason=self._reason(candidate, verdict),
            latency=latency,
            accuracy=accuracy,
            size_bytes=candidate.model.size_bytes,
            digest=candidate.model.digest,
            speedup=candidate.speedup[0],
            speedup_low=candidate.speedup[1],
            speedup_high=candidate.speedup[2],
            operators=candidate.operators,
            notes=variant.notes,
            build_s=variant.seconds,
            profile_s=candidate.profile_s + float(candidate.screened.samples_ns.sum()) / 1e9,
            steps=self._waterfall(candidate),
            explanation=candidate.explanation,
        )

    def _waterfall(self, candidate: _Candidate) -> tuple[StepReport, ...]:
        """The chain's passes with what was measured after each of them."""
        known = {str(c.variant.chain): c for c in self._candidates}
        steps: list[StepReport] = []
        for prefix in candidate.variant.chain.prefixes():
            at = known.get(str(prefix))
            if at is None:  # a pass that changed nothing
                before = steps[-1] if steps else _step("", self._candidates[0])
                steps.append(replace(before, step=str(prefix.passes[-1]), difference=None))
            else:
                steps.append(_step(str(prefix.passes[-1]), at))
        return tuple(steps)

    def _reason(self, candidate: _Candidate, verdict: Verdict) -> str:
        screened = verdict.status == "kept" and not candidate.confirmed
        return f"by screening, {verdict.reason}" if screened else verdict.reason

    def _speedup(self, candidate: _Candidate) -> tuple[float | None, float | None, float | None]:
        """Pair what was timed in turns; a later confirmation has no partner."""
        source, own = self._candidates[0].contender.profile, candidate.contender.profile
        if candidate is self._candidates[0]:
            return None, None, None
        return paired_ratio(source, own, self.request.confidence)

    def _operators(self, candidate: _Candidate, limits: Limits) -> None:
        """Profile single operators, and refuse nodes that run where they were not asked to."""
        contender = candidate.contender
        if contender.error is not None or not contender.workers or limits.expired:
            return
        try:
            rows = operators(contender, limits)
        except WorkerError:
            return  # its profile is for information; the verdict does not rest on it
        asked = contender.job.settings.provider
        strangers = {p for row in rows for p in row["providers"]} - {asked, ""}
        if strangers:
            contender.error = f"nodes ran on {', '.join(sorted(strangers))}, not where asked"
        candidate.kernels = tuple(rows)
        total = sum(row["ns"] for row in rows) or 1.0
        candidate.operators = tuple(
            OperatorReport(row["op"], row["nodes"], row["ns"] / 1e6, row["ns"] / total)
            for row in rows[:SHOWN_OPERATORS]
        )


def _subject(candidate: _Candidate) -> Subject:
    settings, profile = candidate.contender.job.settings, candidate.screened
    timed = profile.samples_ns.size > 0
    lost = candidate.verdict is not None and candidate.verdict.status == "inaccurate"
    return Subject(
        model=candidate.model,
        runtime=settings.runtime,
        threads=settings.threads,
        operators=candidate.kernels,
        p50_ns=profile.percentile_ns(0.5) if timed else 0.0,
        p99_ns=profile.percentile_ns(0.99) if timed else 0.0,
        notes=candidate.variant.notes,
        lost=lost,
    )


def _step(name: str, candidate: _Candidate) -> StepReport:
    profile, accuracy = candidate.screened, candidate.accuracy
    timed = profile.samples_ns.size > 0
    return StepReport(
        step=name,
        p50_ms=profile.percentile_ns(0.5) / 1e6 if timed else None,
        p99_ms=profile.percentile_ns(0.99) / 1e6 if timed else None,
        accuracy=accuracy.value if accuracy else None,
        size_bytes=candidate.model.size_bytes,
        difference=candidate.difference,
        seconds=candidate.variant.seconds,
    )


def _difference(got: Outputs, want: Outputs) -> Difference:
    """The largest difference of any output, over all samples."""
    names = [name for name in want if name in got]
    pairs = [difference([{n: a} for a in got[n]], [{n: b} for b in want[n]]) for n in names]
    return max(pairs, key=lambda pair: pair.relative, default=Difference())


def _names(model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    signature = model.signature
    inputs = tuple(spec.name for spec in signature.inputs)
    return inputs, tuple(spec.name for spec in signature.outputs)


_LATE = "the time limit ended the run before it was measured"


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
