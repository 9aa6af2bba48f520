"""Who is told how a run goes on."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Who is told how a run goes on."""

    def stage(self, name: str, total: int) -> None:
        """A stage with ``total`` steps begins; 0 if their number is unknown."""

    def step(self, done: float, text: str) -> None:
        """``done`` steps of the stage are done; ``text`` is what happens now."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str, total: int) -> None:
        """Do nothing."""

    def step(self, done: float, text: str) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
