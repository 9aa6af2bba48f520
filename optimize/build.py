"""Build variants: every chain prefix once, each pass in an order that shares them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from optimize.errors import NotApplicable, PassError
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain

Execute = Callable[[Pass, Model, Context], PassResult]


@dataclass(frozen=True)
class Variant:
    """A chain and what became of it.

    Attributes:
        chain: the passes.
        model: the artefact; None if there is none.
        problem: ``skipped`` or ``failed`` if there is none.
        reason: why, in words.
        notes: what the passes said.
        seconds: spent in passes that no other chain had run before.
        label: its name where a chain does not tell it apart; empty for the chain's text.
    """

    chain: Chain
    model: Model | None
    problem: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    label: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.label or str(self.chain)


class Builder:
    """Builds chains from one source and remembers every prefix."""

    def __init__(self, source: Model, context: Context, execute: Execute) -> None:
        """Keep what all passes share; ``context.folder`` receives a folder for each result."""
        self._source = source
        self._context = context
        self._execute = execute
        self._done: dict[str, PassResult | PassError] = {}

    def build(self, chain: Chain) -> Variant:
        """Run the passes of a chain that have not run yet."""
        notes: list[str] = []
        model, seconds, changed = self._source, 0.0, not chain.passes
        for prefix in chain.prefixes():
            key = str(prefix)
            known = key in self._done
            result = self._done[key] if known else self._step(prefix, model)
            self._done[key] = result
            if isinstance(result, PassError):
                status = "skipped" if isinstance(result, NotApplicable) else "failed"
                return Variant(chain, None, status, str(result), tuple(notes), seconds)
            seconds += 0.0 if known else result.seconds
            notes += [f"{prefix.passes[-1].name}: {note}" for note in _notes(result)]
            model, changed = result.model, changed or result.changed
        if not changed:
            reason = f"the same model as source: {'; '.join(notes)}"
            return Variant(chain, None, "skipped", reason, (), seconds)
        return Variant(chain, model, None, "", tuple(notes), seconds)

    def _step(self, prefix: Chain, model: Model) -> PassResult | PassError:
        folder = Path(tempfile.mkdtemp(dir=self._context.folder, prefix="pass-"))
        try:
            return self._execute(prefix.passes[-1], model, replace(self._context, folder=folder))
        except PassError as error:
            return error


def _notes(result: PassResult) -> list[str]:
    if result.difference is None:
        return list(result.notes)
    return [*result.notes, f"outputs {result.difference}"]
