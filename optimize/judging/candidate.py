"""A variant while it is judged, and its row in the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.profile import Profile
from optimize.budgets.verdict import Verdict
from optimize.building.build import Variant
from optimize.errors import InputError, TimeIsUp, WorkerEnded, WorkerError
from optimize.explain.explainer import Subject
from optimize.models.model import Model
from optimize.profiling.measure import Contender, Limits, open_worker
from optimize.results.latency import LatencyReport, RelativeReport
from optimize.results.report import AccuracyReport, OperatorReport, StepReport, VariantReport
from optimize.targets.base import Target

SHOWN_OPERATORS = 8
LATE = "the time limit ended the run before it was measured"
INTERRUPTED = "the run was interrupted before it was measured"


@dataclass
class Candidate:
    """A variant and what has been found out about it.

    Attributes:
        variant, model, contender: what it is, and how it is measured.
        accuracy: beside the source's; None if it was not evaluated.
        verdict: None until it was timed, or could not be.
        raced: how it was timed beside the others, once fresh processes have had their say.
        unscreened: whether they alone decide: it led before screening could show that it holds.
        speedup: against the source, with its interval.
        kernels: all rows of its operator profile; None if there is none yet.
        screened: what was timed side by side with the others.
        recalled: how many of its timed blocks are an earlier run's.
        spent_s: seconds that this run took for it, timed calls included.
        difference: the largest of its outputs to the source's, in words.
        explanation: what limits it, in sentences.
        beaten_by: what it was not timed to the end for; None if nothing.
    """

    variant: Variant
    model: Model
    contender: Contender
    accuracy: Accuracy | None = None
    verdict: Verdict | None = None
    raced: Contender | None = None
    unscreened: bool = False
    speedup: tuple[float | None, float | None, float | None] = (None, None, None)
    kernels: tuple[Mapping[str, Any], ...] | None = None
    screened: Profile = field(default_factory=lambda: Profile(()))
    recalled: int = 0
    spent_s: float = 0.0
    difference: str | None = None
    explanation: tuple[str, ...] = ()
    beaten_by: str | None = None

    @property
    def confirmed(self) -> bool:
        """Whether fresh processes have had their say."""
        return self.raced is not None

    @property
    def provisional(self) -> bool:
        """Whether its accuracy is that of the first samples, and decides nothing."""
        return self.accuracy is not None and self.accuracy.provisional

    @property
    def shown(self) -> bool:
        """Whether it is a row of its own, and no step on the way to one."""
        return not self.variant.step

    @property
    def subject(self) -> Subject:
        """What the explanation is about."""
        settings, profile = self.contender.job.settings, self.screened
        timed = profile.samples_ns.size > 0
        return Subject(
            model=self.model,
            runtime=settings.runtime,
            threads=settings.threads,
            operators=self.kernels or (),
            p50_ns=profile.computed_ns if timed else 0.0,
            lost=self.verdict is not None and self.verdict.status == "inaccurate",
        )


def open_for(target: Target, candidate: Candidate, limits: Limits) -> None:
    """Start a candidate's first worker, unless it runs.

    Raises:
        WorkerError: the model does not load or run.
    """
    if candidate.contender.workers:
        return
    begun = time.perf_counter()
    open_worker(target, candidate.contender, limits)
    candidate.spent_s += time.perf_counter() - begun


def attempt(act: Callable[[Candidate, Limits], None], candidate: Candidate, limits: Limits) -> bool:
    """Let a failure end its own candidate only; return whether it succeeded."""
    try:
        act(candidate, limits)
    except WorkerEnded:
        candidate.contender.error = INTERRUPTED
        return False
    except TimeIsUp:
        candidate.contender.error = LATE
        candidate.contender.close()
        return False
    except (WorkerError, InputError) as error:
        candidate.contender.error = str(error)
        candidate.contender.close()
        return False
    return True


def row(
    candidate: Candidate,
    verdict: Verdict,
    confidence: float,
    samples: int,
    everyone: Sequence[Candidate],
) -> VariantReport:
    """Describe a candidate.

    Args:
        candidate: the variant.
        verdict: as far as it is known.
        confidence: of the bounds.
        samples: in the evaluation.
        everyone: every candidate, the source first, for what stands between a chain's passes.
    """
    variant, profile = candidate.variant, candidate.contender.profile
    # Before it was judged or confirmed, what is shown is what was timed beside the others.
    screened = candidate.screened if candidate.confirmed else profile
    timed = profile.samples_ns.size > 0
    return VariantReport(
        chain=variant.name,
        runtime=candidate.contender.job.settings.runtime,
        config=dict(candidate.model.config),
        status=verdict.status,
        reason=_reason(candidate, verdict, samples),
        latency=LatencyReport.of(profile, confidence) if timed else None,
        accuracy=AccuracyReport.of(candidate.accuracy) if candidate.accuracy else None,
        size_bytes=candidate.model.size_bytes,
        digest=candidate.model.digest,
        speedup=candidate.speedup[0],
        speedup_low=candidate.speedup[1],
        speedup_high=candidate.speedup[2],
        operators=_operators(candidate.kernels or ()),
        notes=variant.notes,
        build_s=variant.seconds,
        profile_s=candidate.spent_s,
        steps=_waterfall(candidate, everyone),
        explanation=candidate.explanation,
        trial=variant.trial,
        relative=RelativeReport.of(everyone[0].screened, candidate.screened, confidence),
        recalled=0 < candidate.recalled == len(screened.blocks),
    )


def _reason(candidate: Candidate, verdict: Verdict, samples: int) -> str:
    reason, accuracy = verdict.reason, candidate.accuracy
    if verdict.status == "kept" and not candidate.confirmed:
        reason = f"by screening, {reason}"
    if accuracy and accuracy.samples < samples:
        done = "evaluated so far" if accuracy.provisional else "enough to tell"
        reason += f"; {accuracy.samples} of {samples} samples were {done}"
    return reason


def _operators(kernels: Sequence[Mapping[str, Any]]) -> tuple[OperatorReport, ...]:
    total = sum(kernel["ns"] for kernel in kernels) or 1.0
    return tuple(
        OperatorReport(kernel["op"], kernel["nodes"], kernel["ns"] / 1e6, kernel["ns"] / total)
        for kernel in kernels[:SHOWN_OPERATORS]
    )


def _waterfall(candidate: Candidate, everyone: Sequence[Candidate]) -> tuple[StepReport, ...]:
    """The chain's passes with what was measured after each of them."""
    known = {str(other.variant.chain): other for other in everyone}
    steps: list[StepReport] = []
    for prefix in candidate.variant.chain.prefixes():
        at, name = known.get(str(prefix)), str(prefix.passes[-1])
        if at is None and candidate.variant.trial:
            steps.append(StepReport(name, None, None, None, None))
        elif at is None:  # a pass that changed nothing
            before = steps[-1] if steps else _step("", everyone[0], candidate)
            steps.append(StepReport(**{**vars(before), "step": name, "difference": None}))
        else:
            steps.append(_step(name, at, candidate))
    return tuple(steps)


def _step(name: str, candidate: Candidate, last: Candidate) -> StepReport:
    profile, accuracy = candidate.screened, candidate.accuracy
    if accuracy and last.accuracy and accuracy.samples != last.accuracy.samples:
        accuracy = None  # what other samples show would look like a change
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
