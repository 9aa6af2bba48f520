"""What the outputs of some samples say of an accuracy, beside the source's of the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.accuracy import Accuracy, compare
from optimize.budgets.scores import RESAMPLES, Outputs, Scores
from optimize.errors import InputError
from optimize.judging.candidate import Candidate
from optimize.models.data import Array
from optimize.models.run import Difference, difference
from optimize.prepare import Prepared
from optimize.profiling.measure import OutputFile
from optimize.request import Request

# The first part of the calls: a fifth, but so many at least and at most. Hopeless variants show
# in it.
PART_SHARE, PART_LEAST, PART_MOST = 5, 50, 100
HOPELESS_ERROR = 0.01

Files = Sequence[Mapping[str, OutputFile]]


@dataclass(frozen=True)
class Parts:
    """The calls that evaluate a model, in one part or in two.

    Attributes:
        numbers: of each part's calls, ascending.
    """

    numbers: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, total: int) -> Parts:
        """Split so many calls; the first part is drawn, for data may be sorted.

        There is one part if there are too few to tell anything from a part of them.
        """
        count = min(max(total // PART_SHARE, PART_LEAST), PART_MOST)
        if 2 * count > total:
            return cls((np.arange(total),))
        drawn = np.random.default_rng(0).choice(total, count, replace=False)
        first = np.isin(np.arange(total), drawn)
        return cls((np.flatnonzero(first), np.flatnonzero(~first)))

    def __len__(self) -> int:
        """One or two."""
        return len(self.numbers)

    def calls(self, parts: int) -> int:
        """How many there are in the first ``parts`` parts."""
        return sum(part.size for part in self.numbers[:parts])


@dataclass
class Scoring:
    """Scores candidates, the source first, and compares them with it.

    Attributes:
        prepared, request: the samples, the metric and the floor.
        contenders: how many variants share the error of giving one up early.
        evaluated: how many parts the source's outputs are known of.
    """

    prepared: Prepared
    request: Request
    contenders: int
    parts: Parts
    evaluated: int = 0
    _scores: Scores | None = None
    _outputs: Outputs = field(default_factory=dict)
    _numbers: NDArray[np.int64] = field(default_factory=lambda: np.arange(0))

    def score(self, candidate: Candidate, files: Files, whole: bool) -> Accuracy | None:
        """The accuracy, provisional unless it is clear; sets the candidate's ``difference``.

        Args:
            candidate: whose outputs they are; the source's are kept to compare with.
            files: its outputs, one mapping for each part so far.
            whole: whether a provisional accuracy is of no use.

        Returns:
            None if it takes more samples.

        Raises:
            InputError: the metric cannot be computed on these samples, such as one that needs some
                of every class.
        """
        prepared, reference = self.prepared, candidate.contender.reference
        rows, numbers = self._rows(files)
        if not reference:
            self._check_names([*rows])
        if reference:
            self._outputs, self._numbers, self.evaluated = rows, numbers, len(files)
        at = np.searchsorted(self._numbers, numbers)
        standard = self._outputs
        if not reference:
            standard = {name: [arrays[i] for i in at] for name, arrays in self._outputs.items()}
        labels = None if prepared.labels is None else prepared.labels[numbers]
        scores = prepared.metric.score(rows, labels, standard)
        if reference:
            self._scores = scores
        source = self._scores
        assert source is not None  # the source is evaluated first
        if at.size < len(source.rows):
            source = replace(source, rows=source.rows[at])
        part = len(files) < len(self.parts)
        provisional = part and not self._hopeless(candidate, scores, source)
        if provisional and whole:
            return None
        accuracy = compare(prepared.metric, scores, source, self.request.confidence)
        if reference:
            accuracy = replace(accuracy, change_low=0.0, change_high=0.0)  # of itself, for certain
        else:
            candidate.difference = str(_difference(rows, standard))
        return replace(accuracy, provisional=provisional)

    def _check_names(self, names: Sequence[str]) -> None:
        """Whatever is compared with the source must have its outputs.

        Models that are judged as they are may name them otherwise, unless they are the standard.
        """
        wanted = [*self._outputs]
        metric = self.prepared.metric
        if self.request.as_is and (metric.name != "cosine" or metric.output in names):
            return
        if sorted(names) != sorted(wanted) or (not self.request.as_is and [*names] != wanted):
            raise InputError(
                f"its outputs are {', '.join(names)}, the source's {', '.join(wanted)}"
            )

    def may_stop(self, candidate: Candidate) -> bool:
        """Whether a candidate that is hopeless need not be evaluated wholly."""
        whole = self.request.everything or candidate.contender.reference or not candidate.shown
        return not whole

    def _rows(self, files: Files) -> tuple[dict[str, list[Array]], NDArray[np.int64]]:
        """Outputs of single samples, in the order of the data, and the samples' numbers."""
        calls = np.concatenate(self.parts.numbers[: len(files)])
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
        if not self.may_stop(candidate):
            return False
        if not scores.binary and scores.resampled.size < RESAMPLES:
            return False  # a metric that takes long has too few to be sure
        error = min(HOPELESS_ERROR, 1 - self.request.confidence) / max(1, self.contenders)
        accuracy = compare(self.prepared.metric, scores, source, 1 - error)
        return accuracy.meets(self.prepared.floor, strict=True) is False


def _difference(got: Outputs, want: Outputs) -> Difference:
    """The largest difference of any output, over all samples."""
    names = [name for name in want if name in got]
    pairs = [difference([{n: a} for a in got[n]], [{n: b} for b in want[n]]) for n in names]
    return max(pairs, key=lambda pair: pair.relative, default=Difference())
