"""How a pass asks how fast candidates are on the target, while it builds a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optimize.models.model import Model


@dataclass(frozen=True)
class Share:
    """A candidate's latency as a share of the reference's, both timed in turns.

    Attributes:
        typical: of the medians.
        tail: of the percentile that is asked for.
    """

    typical: float
    tail: float


class Race(Protocol):
    """A reference whose process stays, and candidates that are timed beside it."""

    def shares(self, candidates: Sequence[Model], quantile: float) -> list[Share]:
        """Time candidates in turns with the reference, one call at a time.

        Without candidates, the reference alone is timed.

        Raises:
            WorkerError: one of them does not run.
        """
        ...

    def reference_ns(self, quantile: float) -> float:
        """The reference's percentile over all that was timed of it so far, nanoseconds."""
        ...


class Bench(Protocol):
    """The target, as passes see it; it can be pickled.

    Attributes:
        limits: the declared latency budgets: nanoseconds by quantity, as ``p99``.
    """

    @property
    def limits(self) -> Mapping[str, int]:
        """See the class."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that a measured result depends on: budgets, device, settings, timed samples."""
        ...

    def race(
        self, reference: Model, runtime: str, folder: Path, deadline: float | None
    ) -> AbstractContextManager[Race]:
        """Start the reference; its processes end with the context.

        Args:
            reference: what shares are relative to.
            runtime: what serves it and the candidates.
            folder: receives the workers' files.
            deadline: on ``time.monotonic``, at which timing stops; None for no limit.

        Raises:
            WorkerError: it does not run.
        """
        ...
