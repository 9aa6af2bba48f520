"""Candidates timed while variants are built: in turns with a reference, by the target's workers.

Nothing else is timed at that moment: variants are built before they are judged. A pass that
searches for a budget calls this in the child process, which is idle as long as a worker runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.profile import Block, Profile
from optimize.errors import WorkerError
from optimize.models.data import Dataset
from optimize.models.model import Model, file_digest
from optimize.passes.latency import Share
from optimize.profiling.measure import Contender, Limits, lead_ns, open_worker, time_block, warm_up
from optimize.targets.base import Settings, Target
from optimize.targets.inputs import write_inputs
from optimize.targets.serving import serving

CALLS, SECONDS, LEAST_CALLS = 3000, 2.0, 50  # of one candidate


@dataclass(frozen=True, eq=False)
class Trial:
    """A target and how models are served there; see :class:`optimize.passes.latency.Bench`.

    Attributes:
        target: where workers run; it can be pickled.
        settings: of the service.
        samples: what is timed.
        limits: the declared latency budgets.
        pre, post: the user's part of every call.
        seed: of the order.
    """

    target: Target
    settings: Settings
    samples: Dataset
    limits: Mapping[str, int]
    pre: str | None = None
    post: str | None = None
    seed: int = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """See :class:`optimize.passes.latency.Bench`."""
        own = [text.rpartition(":")[0] for text in (self.pre, self.post) if text]
        return {
            "limits": dict(self.limits),
            "target": self.target.name,
            "device": asdict(self.target.device()),
            "settings": asdict(self.settings),
            "samples": self.samples.digest,
            "own": [self.pre, self.post, *(file_digest(Path(file)) for file in own)],
        }

    @contextmanager
    def race(
        self, reference: Model, runtime: str, folder: Path, deadline: float | None
    ) -> Iterator[Race]:
        """See :class:`optimize.passes.latency.Bench`."""
        write_inputs(self.samples, folder / "inputs")
        race = Race(self, runtime, folder, Limits(deadline=deadline))
        try:
            race.start(reference)
            yield race
        finally:
            race.close()


@dataclass
class Race:
    """See :class:`optimize.passes.latency.Race`."""

    trial: Trial
    runtime: str
    folder: Path
    limits: Limits
    _reference: Contender = field(init=False)
    _count: int = 0
    _pooled: list[NDArray[np.int64]] = field(default_factory=list)
    _canaries: list[int] = field(default_factory=list)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.trial.seed)

    def start(self, reference: Model) -> None:
        """Start the reference's worker.

        Raises:
            WorkerError: it does not run.
        """
        self._reference = self._opened(reference)

    def shares(self, candidates: Sequence[Model], quantile: float) -> list[Share]:
        """See :class:`optimize.passes.latency.Race`."""
        reference, others = self._reference, []
        reference.profile = Profile(())
        try:
            for candidate in candidates:
                others.append(self._opened(candidate))
            self._time([reference, *others])
        finally:
            for contender in others:
                contender.close()
                shutil.rmtree(contender.job.scratch)
        self._pooled += [block.samples_ns for block in _undisturbed(reference)]
        return [
            Share(*(_typical(other, q) / _typical(reference, q) for q in (0.5, quantile)))
            for other in others
        ]

    def reference_ns(self, quantile: float) -> float:
        """See :class:`optimize.passes.latency.Race`."""
        return float(np.quantile(np.concatenate(self._pooled), quantile))

    def close(self) -> None:
        """End the reference's process."""
        if hasattr(self, "_reference"):
            self._reference.close()

    def _opened(self, model: Model) -> Contender:
        scratch = self.folder / f"contender-{self._count}"
        self._count += 1
        trial, inputs = self.trial, self.folder / "inputs"
        job = serving(model, self.runtime, trial.settings, inputs, scratch, trial.pre, trial.post)
        contender = Contender(str(self._count), job)
        try:
            open_worker(self.trial.target, contender, self.limits)
            warm_up(contender, self.limits)
        except BaseException:
            contender.close()
            raise
        return contender

    def _time(self, contenders: Sequence[Contender]) -> None:
        count, lead = len(self.trial.samples), lead_ns(contenders)
        while waiting := [c for c in contenders if not _enough(c, self.limits)]:
            # All go on until the last has enough: pairs are of the same moments.
            for index in self._rng.permutation(len(contenders)):
                time_block(contenders[index], count, self.limits, self._rng, self._canaries, lead)
            failed = next((c.error for c in waiting if c.error), None)
            if failed:
                raise WorkerError(failed)


def _enough(contender: Contender, limits: Limits) -> bool:
    samples = contender.profile.samples_ns
    if samples.size >= CALLS or float(samples.sum()) >= SECONDS * 1e9:
        return samples.size >= LEAST_CALLS
    return limits.expired and samples.size > 0


def _undisturbed(contender: Contender) -> Sequence[Block]:
    """The undisturbed blocks, unless there are few: what disturbs is not the model's."""
    blocks = contender.profile.blocks
    clean = [block for block in blocks if block.disturbance is None]
    return clean if 2 * len(clean) >= len(blocks) else blocks


def _typical(contender: Contender, quantile: float) -> float:
    """The median over blocks of their percentile: a spike in one block moves nothing."""
    blocks = _undisturbed(contender)
    return float(np.median([np.quantile(block.samples_ns, quantile) for block in blocks]))
