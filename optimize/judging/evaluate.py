"""What variants compute: their metric on the samples, beside the source's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from threading import Lock

from optimize.budgets.accuracy import Accuracy
from optimize.cache.records import Records
from optimize.errors import InputError, TimeIsUp, WorkerError
from optimize.judging.candidate import LATE, Candidate, attempt, open_for
from optimize.judging.keys import Keys
from optimize.judging.scoring import Files, Parts, Scoring
from optimize.prepare import Prepared
from optimize.profiling.measure import Limits, OutputFile, run_outputs
from optimize.request import Request
from optimize.targets.base import Settings, Target

SHARES = ("top1", "top5", "f1")  # metrics that cannot fall below zero
# Where the rest of the calls takes the source longer than so many seconds, it is evaluated later,
# and only of those for whom it matters.
PART_S = 5.0


@dataclass
class Evaluation:
    """Runs candidates on the samples and compares them with the source.

    Slow models are evaluated in two parts. After the first, an accuracy is *provisional*, unless it
    is hopeless; it decides nothing.

    Attributes:
        target, settings: where they run, and how.
        prepared, request: the samples, the metric and the floor.
        contenders: how many variants share the error of giving one up early.
        records, keys: where accuracies are kept, and what they are found by.
        source: what all others are compared with.
    """

    target: Target
    settings: Settings
    prepared: Prepared
    request: Request
    contenders: int
    records: Records
    keys: Keys
    source: Candidate
    _in_parts: bool | None = None
    _broken: str | None = None
    _begun: dict[str, list[Mapping[str, OutputFile]]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @cached_property
    def _parts(self) -> Parts:
        return Parts.of(len(self.prepared.evaluation))

    @cached_property
    def _scoring(self) -> Scoring:
        return Scoring(self.prepared, self.request, self.contenders, self._parts)

    def check_source(self, limits: Limits) -> None:
        """See to it that the source can be judged.

        Raises:
            InputError: it cannot.
        """
        if self.source.accuracy is not None and not self.source.provisional:  # an earlier run's
            self._takes_long(self.source.contender.call_ns / 1e9 * self._parts.calls(1))
        elif self.source.accuracy is None or not self._in_parts:
            self._evaluate_source_in_turn(limits, whole=False)
        if self._meets_any_floor():
            if self.source.provisional:
                self._evaluate_source_in_turn(limits, whole=True)
            accuracy = self.source.accuracy
            if accuracy is not None and self._meets_any_floor():
                what = f"no model can miss the floor {self.prepared.floor}"
                if self.prepared.floor.kind == "absolute":
                    raise InputError(f"{what}; give a higher one")
                raise InputError(
                    f"the source's own {accuracy.metric} is {accuracy.value:.4f}, so that {what}; "
                    "check the labels"
                )

    def _meets_any_floor(self) -> bool:
        accuracy = self.source.accuracy
        if accuracy is None or accuracy.metric not in SHARES:
            return False
        return accuracy.limit(self.prepared.floor) <= 0

    def recall(self, candidate: Candidate) -> bool:
        """Take what an earlier run found out; whether there was anything."""
        found: list[Accuracy] = []
        for parts in range(1, len(self._parts) + 1):
            key = self.keys.accuracy(candidate, self.source, self._parts.calls(parts))
            known = self.records.recall(key)
            if known is not None:
                accuracy = Accuracy(**known["accuracy"])
                # A floor that was missed beyond doubt may not be the one that is asked now.
                same = known["floor"] == str(self.prepared.floor)
                same = same and self._scoring.may_stop(candidate)
                part = parts < len(self._parts) and (accuracy.provisional or not same)
                found.append(replace(accuracy, provisional=part))
                candidate.difference = known["difference"]
        if found and candidate.contender.reference and found[0].provisional:
            self._in_parts = self._may_wait  # its first part was kept because the rest took long
        if found:
            self._take_accuracy(candidate, found[-1])
        return bool(found)

    @property
    def side_by_side(self) -> int:
        """How many may be evaluated at once: nothing is timed then, and every core can help."""
        cores = self.target.device().granted_cores
        if self.settings.cpus:
            cores = min(cores, len(self.settings.cpus))
        return max(1, cores // self.settings.threads)

    def fits(self, candidates: Sequence[Candidate], limits: Limits) -> bool:
        """Whether the rest of the samples of candidates will probably be done in time."""
        if limits.deadline is None:
            return True
        # The source's outputs are what others are compared with.
        needs_ns = self._left_ns(self.source, self._scoring.evaluated)
        others = [
            self._left_ns(c, len(self._begun.get(c.variant.name, ())))
            for c in candidates
            if c is not self.source
        ]
        needs_ns += max(others, default=0.0)
        return time.monotonic() + needs_ns / 1e9 < limits.deadline

    def _left_ns(self, candidate: Candidate, parts: int) -> float:
        """How long the outputs of all but the first parts will take."""
        calls = self._parts.calls(len(self._parts)) - self._parts.calls(parts)
        return calls * candidate.contender.call_ns

    def evaluate(
        self, candidates: Sequence[Candidate], limits: Limits, *, whole: bool = False
    ) -> None:
        """Evaluate what was not yet, on all samples if ``whole``; the workers stay open."""
        whole = whole or not self._in_parts
        todo = [c for c in candidates if self._wants_outputs(c, whole)]
        if limits.expired:
            for candidate in candidates:
                unknown = candidate in todo and candidate.accuracy is None
                if unknown or not candidate.contender.profile.blocks:
                    candidate.contender.error = candidate.contender.error or LATE
            return
        if not todo:
            return
        with self.records.busy(limits.deadline):
            self._bring_source(limits, whole)
            others = [c for c in todo if c is not self.source]
            if self._broken and (whole or not self._scoring.evaluated):
                for candidate in todo:
                    candidate.contender.error = self._broken
            elif others:
                self._compare_all(others, limits, whole)
        undefined = [c for c in todo if c.accuracy is None and c.contender.error is None]
        if undefined and not whole:  # the metric is none on the first part of their outputs
            self.evaluate(undefined, limits, whole=True)

    def _bring_source(self, limits: Limits, whole: bool) -> None:
        """See to it that the source's outputs are there to compare with."""
        if self._broken or self._scoring.evaluated >= (len(self._parts) if whole else 1):
            return
        try:
            self._evaluate_source(limits, whole)
        except InputError as error:
            if self.source.accuracy is None:
                raise
            self._broken = str(error)  # what was found out until now must not be lost

    def _evaluate_source_in_turn(self, limits: Limits, whole: bool) -> None:
        with self.records.busy(limits.deadline):
            self._evaluate_source(limits, whole)

    def _evaluate_source(self, limits: Limits, whole: bool) -> None:
        try:
            open_for(self.target, self.source, limits)
            self._compare(self.source, limits, whole)
        except (WorkerError, InputError, TimeIsUp) as error:
            raise InputError(f"the source cannot be judged: {error}{self._made_up()}") from error

    def _made_up(self) -> str:
        """What was guessed of inputs that nobody gave; empty if somebody did."""
        if not self.prepared.data.synthetic:
            return ""
        sample = self.prepared.evaluation.sample(0)
        shapes = [f"{name}={'x'.join(map(str, a.shape))}" for name, a in sample.items()]
        return (
            f"; its inputs were made up, with {' and '.join(shapes)}: give --data, or the right "
            "shapes by --input"
        )

    def _compare_all(self, candidates: Sequence[Candidate], limits: Limits, whole: bool) -> None:
        def compare_one(candidate: Candidate, limits: Limits) -> None:
            self._compare(candidate, limits, whole)

        # Workers are started by this thread: Linux ends them with the thread that started them.
        ready = [c for c in candidates if attempt(partial(open_for, self.target), c, limits)]
        with ThreadPoolExecutor(max(1, len(ready))) as pool:
            try:
                for done in [pool.submit(attempt, compare_one, c, limits) for c in ready]:
                    done.result()
            except BaseException:
                for candidate in candidates:  # what still waits for a worker ends with it
                    candidate.contender.close()
                raise

    def _wants_outputs(self, candidate: Candidate, whole: bool) -> bool:
        if candidate.contender.error is not None:
            return False
        if candidate.accuracy is not None:
            return whole and candidate.provisional
        # The outputs of an exact pass were checked when it was built.
        return candidate.shown or not candidate.variant.exact

    def _compare(self, candidate: Candidate, limits: Limits, whole: bool) -> None:
        """Compare a candidate's outputs with the source's, and judge its accuracy."""
        begun, name = time.perf_counter(), candidate.variant.name
        files = self._begun.pop(name, [])
        for number in range(len(files), len(self._parts)):
            order = self._parts.numbers[number].tolist()
            files.append(run_outputs(candidate.contender, order, limits, number))
            if candidate.contender.reference and not whole:
                whole = not self._takes_long(time.perf_counter() - begun)
            accuracy = self._score(candidate, files, whole)
            whole = whole or not self._in_parts
            if accuracy is None and whole:
                continue
            if accuracy is None or accuracy.provisional:
                self._begun[name] = files
            if accuracy is not None:
                self._keep(candidate, accuracy, self._parts.calls(number + 1))
            break
        candidate.spent_s += time.perf_counter() - begun

    def _score(self, candidate: Candidate, files: Files, whole: bool) -> Accuracy | None:
        """The accuracy; None if it takes more samples."""
        try:
            with self._lock:  # a user's metric need not bear being called twice at once
                return self._scoring.score(candidate, files, whole)
        except InputError:
            if len(files) == len(self._parts):
                raise
            if candidate.contender.reference:
                self._in_parts = False
            return None

    def _takes_long(self, part_s: float) -> bool:
        """Whether the rest of the samples is better left for later, by what the first part took."""
        if self._in_parts is None:
            rest_s = part_s / self._parts.calls(1) * (self._parts.calls(2) - self._parts.calls(1))
            self._in_parts = rest_s > PART_S and self._may_wait
        return self._in_parts

    @property
    def _may_wait(self) -> bool:
        """Not where users name the models, nor where a search learns from each."""
        return len(self._parts) > 1 and not self.request.as_is and self.request.trials == 0

    def _keep(self, candidate: Candidate, accuracy: Accuracy, calls: int) -> None:
        if candidate.accuracy is None or not accuracy.provisional:
            self._take_accuracy(candidate, accuracy)
        told = {
            "accuracy": asdict(accuracy),
            "difference": candidate.difference,
            "floor": str(self.prepared.floor),
        }
        parts = self.keys.accuracy(candidate, self.source, calls)
        self.records.keep(parts, told, f"accuracy of {candidate.variant.name}")

    def _take_accuracy(self, candidate: Candidate, accuracy: Accuracy) -> None:
        candidate.accuracy = accuracy
        fits = all(
            candidate.model.size_bytes <= budget.limit
            for budget in self.request.budgets
            if budget.quantity == "size"
        )
        meets = accuracy.meets(self.prepared.floor, self.request.strict_floor) is True
        candidate.contender.judged = fits and (meets or accuracy.provisional) and candidate.shown
