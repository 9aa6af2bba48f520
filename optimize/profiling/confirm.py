"""Time a chosen variant again in fresh processes, on samples that nothing was chosen by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from optimize.budgets.verdict import Requirement
from optimize.errors import WorkerError
from optimize.profiling.measure import (
    Contender,
    Limits,
    open_worker,
    settled,
    time_in_turns,
    warm_up,
)
from optimize.targets.base import Target

FRESH_PROCESSES = 3
# Fresh processes that together take more memory than this run one after the other, for so many
# calls each but the last, which runs on until the verdict is clear.
FRESH_BYTES, FRESH_CALLS = 4 << 30, 200


@dataclass(frozen=True)
class Confirmation:
    """How fresh processes are timed.

    Attributes:
        target: where they run.
        requirement: what must be shown.
        count: of the samples that are timed.
        seed: of their order.
    """

    target: Target
    requirement: Requirement
    count: int
    seed: int

    def done(self, fresh: Contender, limits: Limits) -> bool:
        """Whether what was timed before is all that there is to know."""
        return processes(fresh) >= FRESH_PROCESSES and settled(fresh, self.requirement, limits)

    def time(
        self,
        fresh: Contender,
        limits: Limits,
        step: Callable[[float, str], None],
        keep: Callable[[], None],
    ) -> None:
        """Time a contender; one that fails keeps the reason as its ``error``.

        Args:
            fresh: without processes.
            limits: of the effort.
            step: is told which process is started.
            keep: is called now and then, when more was timed.
        """

        def progress(_: Sequence[Contender]) -> None:
            keep()

        def timed(calls: float) -> None:
            warm_up(fresh, limits)
            time_in_turns(
                [fresh],
                self.requirement,
                self.count,
                limits,
                rng,
                progress,
                lambda contender: contender.profile.samples_ns.size >= calls,
            )

        # A confirmation that goes on must not draw again what it has timed already.
        rng = np.random.default_rng([self.seed, 1, len(fresh.profile.blocks)])
        try:
            for number in range(FRESH_PROCESSES):
                step(number, f"fresh process {number + 1} of {FRESH_PROCESSES}")
                if not limits.expired:
                    open_worker(self.target, fresh, limits)
                last = number == FRESH_PROCESSES - 1
                if fresh.workers and not last and fresh.rss_bytes * FRESH_PROCESSES > FRESH_BYTES:
                    # One after the other, each with its share: they do not fit beside each other.
                    timed(fresh.profile.samples_ns.size + FRESH_CALLS)
                    fresh.close()
            if fresh.workers:
                timed(float("inf"))
        except WorkerError as error:
            fresh.error = str(error)
        finally:
            fresh.close()


def processes(contender: Contender) -> int:
    """In how many processes it was timed."""
    return len({block.process for block in contender.profile.blocks})
