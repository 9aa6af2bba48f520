"""Where a run's time goes: an observer that passes everything on and keeps the time of stages."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from optimize.observer import Observer

_IN_PARTS = ("confirm", "lower bound")  # stages that are shown part by part


@dataclass
class Clock:
    """Seconds by stage, in the order of the stages.

    Attributes:
        observer: who is told.
        seconds: of stages that are over; all confirmations are one.
    """

    observer: Observer
    seconds: dict[str, float] = field(default_factory=dict)
    _stage: str | None = None
    _since: float = 0.0

    def stage(self, name: str, total: int) -> None:
        """A stage begins, and the one before is over."""
        self.stop()
        self._stage = next((whole for whole in _IN_PARTS if name.startswith(f"{whole} ")), name)
        self.observer.stage(name, total)

    def step(self, done: float, text: str) -> None:
        """Pass it on."""
        self.observer.step(done, text)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.observer.note(text)

    def stop(self) -> None:
        """The present stage is over."""
        now = time.monotonic()
        if self._stage is not None:
            spent = self.seconds.get(self._stage, 0.0) + now - self._since
            self.seconds[self._stage] = spent
        self._stage, self._since = None, now
