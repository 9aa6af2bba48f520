"""The verdict on one variant: a pure function of what was measured and what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.budget import Budget, Floor
from optimize.budgets.profile import Profile
from optimize.budgets.sequential import Decision, TailTest, variance_inflation

Status = Literal["kept", "too_slow", "too_large", "inaccurate", "undecided", "failed", "skipped"]
MOST_DIGITS = 17  # tell any two numbers apart
MIN_CLEAN_CALLS = 3  # one slow call is never a verdict, whatever the budget
# No disturbance explains a variant whose fastest tenth of calls takes twice the limit.
HOPELESS_SHARE, HOPELESS_FACTOR, HOPELESS_CALLS = 0.1, 2.0, 20


@dataclass(frozen=True)
class Requirement:
    """What a variant must prove.

    Attributes:
        budgets: all must hold.
        floor: the accuracy that must hold; None where nothing can be compared.
        confidence: 1 - alpha of the whole screening.
        contenders: how many variants are screened; each spends alpha / contenders.
        strict_floor: whether the floor must hold at the interval's worse end.
    """

    budgets: tuple[Budget, ...]
    floor: Floor | None
    confidence: float = 0.99
    contenders: int = 1
    strict_floor: bool = False

    @property
    def alpha(self) -> float:
        """Error of a wrong acceptance, for each variant."""
        return (1 - self.confidence) / self.contenders

    @property
    def beta(self) -> float:
        """Error of a wrong rejection, for each variant and budget.

        A wrong rejection costs speed and not a broken promise, so it may be more likely.
        """
        latency = max(1, sum(budget.tail is not None for budget in self.budgets))
        return min(0.05, 5 * (1 - self.confidence)) / latency


@dataclass(frozen=True)
class TailEvidence:
    """What the samples say about one latency budget.

    Attributes:
        budget: the budget judged.
        decision: accept, reject or undecided.
        calls, over: timed calls, and those that exceeded the limit.
        clean_calls, clean_over: the same among the undisturbed blocks.
        more_calls: further calls that would probably accept; None if none would.
        noisy: whether all samples together would reject, and the undisturbed ones do not.
    """

    budget: Budget
    decision: Decision
    calls: int
    over: int
    clean_calls: int
    clean_over: int
    more_calls: int | None = None
    noisy: bool = False

    @property
    def sentence(self) -> str:
        """The evidence in words."""
        rate = f"{self.over} of {self.calls} calls over {self.budget.amount(self.budget.limit)}"
        if self.decision != "undecided":
            return rate
        if self.clean_over < self.over and self.clean_calls < self.calls:
            quiet = f"{self.clean_over} of {self.clean_calls} while the machine was quiet"
            rate += f", {quiet}" if self.clean_calls else ", and the machine was never quiet"
        if self.noisy:
            return f"{rate}; the machine is too noisy to tell whose fault that is"
        if self.more_calls is None:
            return f"{rate}; too close to the limit to decide"
        return f"{rate}; about {self.more_calls} more calls would decide"


@dataclass(frozen=True)
class Verdict:
    """A status with its reason and, where latency was measured, its evidence."""

    status: Status
    reason: str
    evidence: tuple[TailEvidence, ...] = ()


def weigh(profile: Profile, requirement: Requirement) -> tuple[TailEvidence, ...]:
    """Weigh the samples against every latency budget.

    Acceptance rests on all samples, rejection only on those of undisturbed blocks: noise can
    make a good variant look slow, never a slow one fast. Only a variant whose fastest calls are
    far over the limit is rejected on a machine that is never quiet.
    """
    return tuple(
        _weigh(budget, budget.tail, profile, requirement)
        for budget in requirement.budgets
        if budget.tail is not None
    )


def _weigh(budget: Budget, tail: float, profile: Profile, requirement: Requirement) -> TailEvidence:
    test = TailTest(tail, requirement.alpha, requirement.beta)
    calls, over = _count(profile.samples_ns, budget)
    clean_calls, clean_over = _count(profile.clean_ns, budget)
    decision: Decision = "undecided"
    inflation = variance_inflation(profile.samples_ns, tail)
    clean_inflation = variance_inflation(profile.clean_ns, tail)
    tempering = variance_inflation(profile.samples_ns, tail, budget.limit)
    if test.accepts(calls, over, tempering):
        decision = "accept"
    elif (
        clean_calls >= MIN_CLEAN_CALLS and test.rejects(clean_calls, clean_over, clean_inflation)
    ) or (_hopeless(profile.samples_ns, budget) and test.rejects(calls, over, inflation)):
        decision = "reject"
    more = test.calls_to_accept(calls, over, tempering) if decision == "undecided" else None
    disturbed = decision == "undecided" and clean_calls < calls
    noisy = disturbed and test.rejects(calls, over, inflation)
    return TailEvidence(budget, decision, calls, over, clean_calls, clean_over, more, noisy)


def _hopeless(samples_ns: NDArray[np.int64], budget: Budget) -> bool:
    if samples_ns.size < HOPELESS_CALLS:
        return False
    return bool(np.quantile(samples_ns, HOPELESS_SHARE) > HOPELESS_FACTOR * budget.limit)


def _count(samples_ns: NDArray[np.int64], budget: Budget) -> tuple[int, int]:
    return samples_ns.size, int(np.count_nonzero(samples_ns > budget.limit))


def judge(
    profile: Profile | None,
    accuracy: Accuracy | None,
    size_bytes: int,
    requirement: Requirement,
) -> Verdict:
    """Judge a variant by all that is known of it.

    What cannot be shown does not pass: a missing accuracy or profile is undecided.

    Args:
        profile: its latency samples; None if it was not timed.
        accuracy: its metric beside the source's; None if it was not evaluated.
        size_bytes: of the whole artefact.
        requirement: the budgets and the floor.
    """
    evidence = weigh(profile, requirement) if profile is not None else ()
    misses = _misses(evidence, profile, accuracy, size_bytes, requirement)
    if misses:
        return Verdict(misses[0][0], "; ".join(reason for _, reason in misses), evidence)
    gaps = _gaps(evidence, profile, accuracy, requirement)
    if gaps:
        return Verdict("undecided", "; ".join(gaps), evidence)
    return Verdict("kept", _praise(evidence, profile, accuracy, size_bytes, requirement), evidence)


def _misses(
    evidence: tuple[TailEvidence, ...],
    profile: Profile | None,
    accuracy: Accuracy | None,
    size_bytes: int,
    requirement: Requirement,
) -> list[tuple[Status, str]]:
    misses: list[tuple[Status, str]] = []
    floor = requirement.floor
    if floor and accuracy and accuracy.meets(floor, requirement.strict_floor) is False:
        misses.append(("inaccurate", _floor_sentence(accuracy, floor, "misses")))
    for item in evidence:
        if item.decision == "reject":
            misses.append(("too_slow", f"{item.budget.quantity} exceeds: {item.sentence}"))
    for budget, have in _amounts(profile, size_bytes, requirement):
        if have is not None and have > budget.limit:
            shown, _ = told_apart(have, budget.limit, budget.amount)
            misses.append(("too_large", f"{shown} exceeds {budget}"))
    return misses


def _amounts(
    profile: Profile | None, size_bytes: int, requirement: Requirement
) -> list[tuple[Budget, int | None]]:
    """Pair every budget in bytes with what the variant takes; None if it was not measured."""
    taken = {"size": size_bytes, "memory": profile.peak_bytes if profile else None}
    return [(b, taken[b.quantity]) for b in requirement.budgets if b.tail is None]


def _gaps(
    evidence: tuple[TailEvidence, ...],
    profile: Profile | None,
    accuracy: Accuracy | None,
    requirement: Requirement,
) -> list[str]:
    gaps = [
        f"{item.budget.quantity} is open: {item.sentence}"
        for item in evidence
        if item.decision == "undecided"
    ]
    if profile is None or profile.samples_ns.size == 0:
        gaps = ["its latency was not measured"]
    elif gaps and not profile.steady:
        gaps.append(f"it never became steady in {profile.warmup_calls} warm-up calls")
    gaps += [
        f"{budget.quantity} was not measured"
        for budget, have in _amounts(profile, 0, requirement)
        if have is None
    ]
    floor = requirement.floor
    if floor and accuracy is None:
        gaps.append("its accuracy was not evaluated")
    elif floor and accuracy and accuracy.meets(floor, requirement.strict_floor) is None:
        gaps.append(_floor_sentence(accuracy, floor, "may miss"))
    return gaps


def _praise(
    evidence: tuple[TailEvidence, ...],
    profile: Profile | None,
    accuracy: Accuracy | None,
    size_bytes: int,
    requirement: Requirement,
) -> str:
    parts = [f"{item.budget.quantity} holds: {item.sentence}" for item in evidence]
    parts += [
        f"{budget.amount(have or 0)} is within {budget}"
        for budget, have in _amounts(profile, size_bytes, requirement)
    ]
    if accuracy and requirement.floor:
        parts.append(_floor_sentence(accuracy, requirement.floor, "meets"))
    return "; ".join(parts)


def _floor_sentence(accuracy: Accuracy, floor: Floor, verb: str) -> str:
    value, limit = floor_texts(accuracy, floor)
    return f"{accuracy.metric} {value} {verb} the floor {limit}"


def floor_texts(accuracy: Accuracy, floor: Floor) -> tuple[str, str]:
    """The metric and the floor that it is held against, which read alike only if they are."""
    limit = accuracy.limit(floor)
    value = accuracy.value if accuracy.room(floor) else limit
    return told_apart(value, limit, lambda number, digits: f"{number:.{digits}f}")


def told_apart(one: float, two: float, show: Callable[[float, int], str]) -> tuple[str, str]:
    """Two numbers with four digits, or with as many as show that they differ."""
    digits = 4
    while one != two and show(one, digits) == show(two, digits) and digits < MOST_DIGITS:
        digits += 1
    return show(one, digits), show(two, digits)
