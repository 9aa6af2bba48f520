"""What variants compute: their metric on the samples, beside the source's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
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
# A hopeless variant shows in the first fifth of the samples, if that is enough to be sure.
FIRST_LOOK_SHARE, FIRST_LOOK_SAMPLES, HOPELESS_ERROR = 5, 50, 0.01


@dataclass
class Evaluation:
    """Runs candidates on the samples and compares them with the source.

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
    _scores: Scores | None = None
    _outputs: Outputs = field(default_factory=dict)
    _scoring: Lock = field(default_factory=Lock)

    def check_source(self, limits: Limits) -> None:
        """See to it that the source can be judged.

        Raises:
            InputError: it cannot.
        """
        if self.source.accuracy is None:
            self._evaluate_source(limits)
        accuracy, floor = self.source.accuracy, self.prepared.floor
        if accuracy and accuracy.metric in SHARES and accuracy.limit(floor) <= 0:
            raise InputError(
                f"the source's own {accuracy.metric} is {accuracy.value:.4f}, so that no model can "
                f"miss the floor {floor}; check the labels"
            )

    def recall(self, candidate: Candidate) -> bool:
        """Take what an earlier run found out; whether there was anything."""
        for samples in self._looks(candidate)[::-1]:
            known = self.records.recall(self.keys.accuracy(candidate, self.source, samples))
            if known is not None:
                candidate.difference = known["difference"]
                self._take_accuracy(candidate, Accuracy(**known["accuracy"]))
                return True
        return False

    @property
    def side_by_side(self) -> int:
        """How many may be evaluated at once: nothing is timed then, and every core can help."""
        cores = self.target.device().granted_cores
        if self.settings.cpus:
            cores = min(cores, len(self.settings.cpus))
        return max(1, cores // self.settings.threads)

    def evaluate(self, candidates: Sequence[Candidate], limits: Limits) -> None:
        """Evaluate what was not yet; the workers stay open."""
        todo = [c for c in candidates if self._wants_outputs(c)]
        if limits.expired:
            for candidate in candidates:
                if candidate in todo or not candidate.contender.profile.blocks:
                    candidate.contender.error = candidate.contender.error or LATE
            return
        if not todo:
            return
        with self.records.busy(limits.deadline):
            if self._scores is None:
                self._evaluate_source(limits)
            self._compare_all(todo, limits)

    def _evaluate_source(self, limits: Limits) -> None:
        try:
            open_for(self.target, self.source, limits)
            self._compare(self.source, limits)
        except (WorkerError, InputError) as error:
            raise InputError(f"the source cannot be judged: {error}") from error

    def _compare_all(self, candidates: Sequence[Candidate], limits: Limits) -> None:
        # Workers are started by this thread: Linux ends them with the thread that started them.
        ready = [c for c in candidates if attempt(partial(open_for, self.target), c, limits)]
        with ThreadPoolExecutor(max(1, len(ready))) as pool:
            try:
                for done in [pool.submit(attempt, self._compare, c, limits) for c in ready]:
                    done.result()
            except BaseException:
                for candidate in candidates:  # what still waits for a worker ends with it
                    candidate.contender.close()
                raise

    def _wants_outputs(self, candidate: Candidate) -> bool:
        if candidate.accuracy is not None or candidate.contender.error is not None:
            return False
        # The outputs of an exact pass were checked when it was built.
        return candidate.shown or not candidate.variant.exact

    def _looks(self, candidate: Candidate) -> list[int]:
        """How many samples the accuracy is looked at after: hopeless variants stop early."""
        total = len(self.prepared.evaluation)
        first = total // FIRST_LOOK_SHARE
        whole = self.request.everything or candidate.contender.reference or not candidate.shown
        return [total] if whole or first < FIRST_LOOK_SAMPLES else [first, total]

    def _compare(self, candidate: Candidate, limits: Limits) -> None:
        """Compare a candidate's outputs with the source's, and judge its accuracy."""
        begun, before = time.perf_counter(), 0
        outputs: dict[str, list[Array]] = {}
        for samples in self._looks(candidate):
            more = collect_outputs(candidate.contender, samples - before, limits, before)
            outputs = {name: [*outputs.get(name, ()), *arrays] for name, arrays in more.items()}
            rows, before = self.prepared.per_sample(outputs), samples
            with self._scoring:  # a user's metric need not bear being called twice at once
                accuracy = self._score(candidate, rows, samples)
            if accuracy is not None:
                self._take_accuracy(candidate, accuracy)
                told = {"accuracy": asdict(accuracy), "difference": candidate.difference}
                parts = self.keys.accuracy(candidate, self.source, samples)
                self.records.keep(parts, told, f"accuracy of {candidate.variant.name}")
                break
        candidate.spent_s += time.perf_counter() - begun

    def _score(self, candidate: Candidate, rows: Outputs, samples: int) -> Accuracy | None:
        """The accuracy, or None if it takes more samples to tell."""
        prepared, contender = self.prepared, candidate.contender
        count = len(next(iter(rows.values())))
        if contender.reference:
            self._outputs = rows
        reference = {name: arrays[:count] for name, arrays in self._outputs.items()}
        labels = None if prepared.labels is None else prepared.labels[:count]
        whole = samples == len(prepared.evaluation)
        try:
            scores = prepared.metric.score(rows, labels, reference)
            if contender.reference:
                self._scores = scores
            source = self._scores
            assert source is not None  # the source is evaluated first
            if not whole:
                source = Scores(source.rows[:count], source.reduce)
                if not self._hopeless(scores, source):
                    return None
        except InputError:
            if whole:
                raise
            return None  # such as a metric that needs samples of every class
        if not contender.reference:
            candidate.difference = str(_difference(rows, reference))
        return compare(prepared.metric, scores, source, self.request.confidence)

    def _hopeless(self, scores: Scores, source: Scores) -> bool:
        """Whether some samples show beyond doubt that the floor is missed on all of them."""
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
        candidate.contender.judged = fits and meets and candidate.shown


def _difference(got: Outputs, want: Outputs) -> Difference:
    """The largest difference of any output, over all samples."""
    names = [name for name in want if name in got]
    pairs = [difference([{n: a} for a in got[n]], [{n: b} for b in want[n]]) for n in names]
    return max(pairs, key=lambda pair: pair.relative, default=Difference())
