"""What variants compute: their metric on the samples, beside the source's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from threading import Lock

from optimize.budgets.accuracy import Accuracy, Outputs, Scores, compare
from optimize.candidate import LATE, Candidate, attempt, open_for
from optimize.errors import InputError, WorkerError
from optimize.keys import Keys
from optimize.measure import Limits, collect_outputs
from optimize.models.data import Array
from optimize.models.run import Difference, difference
from optimize.prepare import Prepared
from optimize.records import Records
from optimize.request import Request
from optimize.targets.base import Settings, Target

SHARES = ("top1", "top5", "f1")  # metrics that cannot fall below zero
# The first part of the samples: a fifth, but so many at least and at most. Hopeless variants show
# in it. Where the rest takes the source longer than so many seconds, it is evaluated later, and
# only of those for whom it matters.
PART_SHARE, PART_LEAST, PART_MOST, PART_S = 5, 50, 100, 5.0
HOPELESS_ERROR = 0.01


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
    _scores: Scores | None = None
    _outputs: Outputs = field(default_factory=dict)
    _evaluated: int = 0
    _begun: dict[str, dict[str, list[Array]]] = field(default_factory=dict)
    _scoring: Lock = field(default_factory=Lock)

    def check_source(self, limits: Limits) -> None:
        """See to it that the source can be judged.

        Raises:
            InputError: it cannot.
        """
        if self.source.accuracy is None or (self.source.provisional and not self._in_parts):
            self._evaluate_source(limits, whole=False)
        if self._meets_any_floor():
            if self.source.provisional:
                self._evaluate_source(limits, whole=True)
            accuracy = self.source.accuracy
            if accuracy is not None and self._meets_any_floor():
                raise InputError(
                    f"the source's own {accuracy.metric} is {accuracy.value:.4f}, so that no model "
                    f"can miss the floor {self.prepared.floor}; check the labels"
                )

    def _meets_any_floor(self) -> bool:
        accuracy = self.source.accuracy
        if accuracy is None or accuracy.metric not in SHARES:
            return False
        return accuracy.limit(self.prepared.floor) <= 0

    def recall(self, candidate: Candidate) -> bool:
        """Take what an earlier run found out; whether there was anything."""
        found: list[Accuracy] = []
        for samples in self._stops():
            known = self.records.recall(self.keys.accuracy(candidate, self.source, samples))
            if known is not None:
                accuracy = Accuracy(**known["accuracy"])
                # A floor that was missed beyond doubt may not be the one that is asked now.
                other = samples < self._total and known["floor"] != str(self.prepared.floor)
                found.append(replace(accuracy, provisional=accuracy.provisional or other))
                candidate.difference = known["difference"]
        if found and candidate.contender.reference:
            # Its first part was kept because the rest took long.
            self._in_parts = found[0].provisional and self._may_wait
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
            if self._evaluated < (self._total if whole else self._part):
                self._evaluate_source(limits, whole)
            others = [c for c in todo if c is not self.source]
            if others:
                self._compare_all(others, limits, whole)

    def _evaluate_source(self, limits: Limits, whole: bool) -> None:
        try:
            open_for(self.target, self.source, limits)
            self._compare(self.source, limits, whole)
        except (WorkerError, InputError) as error:
            raise InputError(f"the source cannot be judged: {error}") from error

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

    @property
    def _total(self) -> int:
        return len(self.prepared.evaluation)

    @property
    def _part(self) -> int:
        """How many samples the first part has: all, if there are too few to tell anything."""
        part = min(max(self._total // PART_SHARE, PART_LEAST), PART_MOST)
        return part if 2 * part <= self._total else self._total

    def _stops(self) -> list[int]:
        """How many samples an accuracy may be known of."""
        return list(dict.fromkeys((self._part, self._total)))

    def _compare(self, candidate: Candidate, limits: Limits, whole: bool) -> None:
        """Compare a candidate's outputs with the source's, and judge its accuracy."""
        begun = time.perf_counter()
        outputs = self._begun.pop(candidate.variant.name, {})
        before = len(next(iter(outputs.values()), ()))
        for samples in (stop for stop in self._stops() if stop > before):
            more = collect_outputs(candidate.contender, samples - before, limits, before)
            outputs = {name: [*outputs.get(name, ()), *arrays] for name, arrays in more.items()}
            rows, before = self.prepared.per_sample(outputs), samples
            if candidate.contender.reference and not whole:
                whole = not self._takes_long(time.perf_counter() - begun)
            with self._scoring:  # a user's metric need not bear being called twice at once
                accuracy = self._score(candidate, rows, samples, whole)
            if accuracy is None:
                continue
            self._keep(candidate, accuracy, samples)
            if accuracy.provisional:
                self._begun[candidate.variant.name] = outputs
            break
        candidate.spent_s += time.perf_counter() - begun

    def _takes_long(self, part_s: float) -> bool:
        """Whether the rest of the samples is better left for later, by what the first part took."""
        if self._in_parts is None:
            rest_s = part_s / self._part * (self._total - self._part)
            self._in_parts = rest_s > PART_S and self._may_wait
        return self._in_parts

    @property
    def _may_wait(self) -> bool:
        """Not where users name the models, nor where a search learns from each."""
        return not self.request.as_is and self.request.trials == 0

    def _keep(self, candidate: Candidate, accuracy: Accuracy, samples: int) -> None:
        if candidate.accuracy is None or not accuracy.provisional:
            self._take_accuracy(candidate, accuracy)
        told = {
            "accuracy": asdict(accuracy),
            "difference": candidate.difference,
            "floor": str(self.prepared.floor),
        }
        parts = self.keys.accuracy(candidate, self.source, samples)
        self.records.keep(parts, told, f"accuracy of {candidate.variant.name}")

    def _score(
        self, candidate: Candidate, rows: Outputs, samples: int, whole: bool
    ) -> Accuracy | None:
        """The accuracy, provisional unless it is clear; None if ``whole`` takes more samples."""
        prepared, reference = self.prepared, candidate.contender.reference
        count = len(next(iter(rows.values())))
        if reference:
            self._outputs, self._evaluated = rows, samples
        standard = {name: arrays[:count] for name, arrays in self._outputs.items()}
        labels = None if prepared.labels is None else prepared.labels[:count]
        try:
            scores = prepared.metric.score(rows, labels, standard)
            if reference:
                self._scores = scores
            source = self._scores
            assert source is not None  # the source is evaluated first
            if len(source.rows) > count:
                source = Scores(source.rows[:count], source.reduce)
            provisional = samples < self._total and not self._hopeless(candidate, scores, source)
            if provisional and whole:
                return None
            accuracy = compare(prepared.metric, scores, source, self.request.confidence)
        except InputError:
            if samples == self._total or (self._in_parts and not reference):
                raise
            self._in_parts = False  # such as a metric that needs samples of every class
            return None
        if not reference:
            candidate.difference = str(_difference(rows, standard))
        return replace(accuracy, provisional=provisional)

    def _hopeless(self, candidate: Candidate, scores: Scores, source: Scores) -> bool:
        """Whether some samples show beyond doubt that the floor is missed on all of them."""
        if self.request.everything or candidate.contender.reference or not candidate.shown:
            return False
        error = min(HOPELESS_ERROR, 1 - self.request.confidence) / max(1, self.contenders)
        shared = 1 - error
        accuracy = compare(self.prepared.metric, scores, source, shared)
        return accuracy.meets(self.prepared.floor, strict=True) is False

    def _take_accuracy(self, candidate: Candidate, accuracy: Accuracy) -> None:
        candidate.accuracy = accuracy
        fits = all(
            candidate.model.size_bytes <= budget.limit
            for budget in self.request.budgets
            if budget.quantity == "size"
        )
        meets = accuracy.meets(self.prepared.floor, self.request.strict_floor) is True
        candidate.contender.judged = fits and (meets or accuracy.provisional) and candidate.shown


def _difference(got: Outputs, want: Outputs) -> Difference:
    """The largest difference of any output, over all samples."""
    names = [name for name in want if name in got]
    pairs = [difference([{n: a} for a in got[n]], [{n: b} for b in want[n]]) for n in names]
    return max(pairs, key=lambda pair: pair.relative, default=Difference())
