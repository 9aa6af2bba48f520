"""What variants compute: their metric on the samples, beside the source's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.accuracy import RESAMPLES, Accuracy, Outputs, Scores, compare
from optimize.candidate import LATE, Candidate, attempt, open_for
from optimize.errors import InputError, WorkerError
from optimize.keys import Keys
from optimize.measure import Limits, OutputFile, run_outputs
from optimize.models.data import Array
from optimize.models.run import Difference, difference
from optimize.prepare import Prepared
from optimize.records import Records
from optimize.request import Request
from optimize.targets.base import Settings, Target

SHARES = ("top1", "top5", "f1")  # metrics that cannot fall below zero
# The first part of the calls: a fifth, but so many at least and at most. Hopeless variants show
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
    _numbers: NDArray[np.int64] = field(default_factory=lambda: np.arange(0))
    _evaluated: int = 0
    _broken: str | None = None
    _begun: dict[str, list[Mapping[str, OutputFile]]] = field(default_factory=dict)
    _scoring: Lock = field(default_factory=Lock)

    def check_source(self, limits: Limits) -> None:
        """See to it that the source can be judged.

        Raises:
            InputError: it cannot.
        """
        if self.source.accuracy is not None and not self.source.provisional:  # an earlier run's
            self._takes_long(self.source.contender.call_ns / 1e9 * self._calls(1))
        elif self.source.accuracy is None or not self._in_parts:
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
        for parts in range(1, len(self._parts) + 1):
            key = self.keys.accuracy(candidate, self.source, self._calls(parts))
            known = self.records.recall(key)
            if known is not None:
                accuracy = Accuracy(**known["accuracy"])
                # A floor that was missed beyond doubt may not be the one that is asked now.
                same = known["floor"] == str(self.prepared.floor) and self._may_stop(candidate)
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
        rest = self._calls(2) - self._calls(1)
        slowest = max(candidate.contender.call_ns for candidate in candidates)
        return time.monotonic() + rest * slowest / 1e9 < limits.deadline

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
            if self._broken and (whole or not self._evaluated):
                for candidate in todo:
                    candidate.contender.error = self._broken
            elif others:
                self._compare_all(others, limits, whole)
        undefined = [c for c in todo if c.accuracy is None and c.contender.error is None]
        if undefined and not whole:  # the metric is none on the first part of their outputs
            self.evaluate(undefined, limits, whole=True)

    def _bring_source(self, limits: Limits, whole: bool) -> None:
        """See to it that the source's outputs are there to compare with."""
        if self._broken or self._evaluated >= (len(self._parts) if whole else 1):
            return
        try:
            self._evaluate_source(limits, whole)
        except InputError as error:
            if self.source.accuracy is None:
                raise
            self._broken = str(error)  # what was found out until now must not be lost

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

    @cached_property
    def _parts(self) -> tuple[NDArray[np.int64], ...]:
        """The numbers of each part's calls; the first are drawn, for data may be sorted.

        There is one part if there are too few to tell anything from a part of them.
        """
        total = len(self.prepared.evaluation)
        count = min(max(total // PART_SHARE, PART_LEAST), PART_MOST)
        if 2 * count > total:
            return (np.arange(total),)
        drawn = np.random.default_rng(0).choice(total, count, replace=False)
        first = np.isin(np.arange(total), drawn)
        return np.flatnonzero(first), np.flatnonzero(~first)

    def _calls(self, parts: int) -> int:
        return sum(part.size for part in self._parts[:parts])

    def _compare(self, candidate: Candidate, limits: Limits, whole: bool) -> None:
        """Compare a candidate's outputs with the source's, and judge its accuracy."""
        begun, name = time.perf_counter(), candidate.variant.name
        files = self._begun.pop(name, [])
        for number in range(len(files), len(self._parts)):
            order = self._parts[number].tolist()
            files.append(run_outputs(candidate.contender, order, limits, number))
            if candidate.contender.reference and not whole:
                whole = not self._takes_long(time.perf_counter() - begun)
            with self._scoring:  # a user's metric need not bear being called twice at once
                accuracy = self._score(candidate, files, whole)
            whole = whole or not self._in_parts
            if accuracy is None and whole:
                continue
            if accuracy is None or accuracy.provisional:
                self._begun[name] = files
            if accuracy is not None:
                self._keep(candidate, accuracy, self._calls(number + 1))
            break
        candidate.spent_s += time.perf_counter() - begun

    def _takes_long(self, part_s: float) -> bool:
        """Whether the rest of the samples is better left for later, by what the first part took."""
        if self._in_parts is None:
            rest_s = part_s / self._calls(1) * (self._calls(2) - self._calls(1))
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

    def _score(
        self, candidate: Candidate, files: Sequence[Mapping[str, OutputFile]], whole: bool
    ) -> Accuracy | None:
        """The accuracy, provisional unless it is clear; None if ``whole`` takes more samples."""
        prepared, reference = self.prepared, candidate.contender.reference
        rows, numbers = self._rows(files)
        if reference:
            self._outputs, self._numbers, self._evaluated = rows, numbers, len(files)
        at = np.searchsorted(self._numbers, numbers)
        standard = {name: [arrays[i] for i in at] for name, arrays in self._outputs.items()}
        labels = None if prepared.labels is None else prepared.labels[numbers]
        try:
            scores = prepared.metric.score(rows, labels, standard)
            if reference:
                self._scores = scores
            source = self._scores
            assert source is not None  # the source is evaluated first
            if at.size < len(source.rows):
                source = Scores(source.rows[at], source.reduce)
            part = len(files) < len(self._parts)
            provisional = part and not self._hopeless(candidate, scores, source)
            if provisional and whole:
                return None
            accuracy = compare(prepared.metric, scores, source, self.request.confidence)
        except InputError:
            if len(files) == len(self._parts):
                raise
            if reference:  # such as a metric that needs samples of every class
                self._in_parts = False
            return None
        if not reference:
            candidate.difference = str(_difference(rows, standard))
        return replace(accuracy, provisional=provisional)

    def _rows(
        self, files: Sequence[Mapping[str, OutputFile]]
    ) -> tuple[dict[str, list[Array]], NDArray[np.int64]]:
        """Outputs of single samples, in the order of the data, and the samples' numbers."""
        calls = np.concatenate(self._parts[: len(files)])
        places = np.argsort(calls)
        outputs: dict[str, list[Array]] = {}
        for name in files[0]:
            arrays = [array for file in files for array in file[name].read()]
            outputs[name] = [arrays[place] for place in places]
        rows = self.prepared.per_sample(outputs)
        each = len(next(iter(rows.values()))) // calls.size
        return rows, (calls[places][:, None] * each + np.arange(each)).reshape(-1)

    def _hopeless(self, candidate: Candidate, scores: Scores, source: Scores) -> bool:
        """Whether some samples show beyond doubt that the floor is missed on all of them."""
        if not self._may_stop(candidate):
            return False
        if not scores.binary and scores.resampled.size < RESAMPLES:
            return False  # a metric that takes long has too few to be sure
        error = min(HOPELESS_ERROR, 1 - self.request.confidence) / max(1, self.contenders)
        shared = 1 - error
        accuracy = compare(self.prepared.metric, scores, source, shared)
        return accuracy.meets(self.prepared.floor, strict=True) is False

    def _may_stop(self, candidate: Candidate) -> bool:
        """Whether a candidate that is hopeless need not be evaluated wholly."""
        whole = self.request.everything or candidate.contender.reference or not candidate.shown
        return not whole

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
