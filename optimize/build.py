"""Build variants: every chain prefix once, and what its runtime loads at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from optimize.errors import NotApplicable, PassError
from optimize.models.model import Model
from optimize.models.runtimes import find_runtime
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain
from optimize.passes.lower import Compile, Export

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


@dataclass(frozen=True)
class Sources:
    """What chains begin with.

    Attributes:
        graph: the source as ONNX.
        program: the source as a torch module; None if it is none.
    """

    graph: Model
    program: Model | None = None


class Builder:
    """Builds chains from one source and remembers every prefix."""

    def __init__(self, sources: Sources, context: Context, execute: Execute) -> None:
        """Keep what all passes share; ``context.folder`` receives a folder for each result."""
        self._sources = sources
        self._context = context
        self._execute = execute
        self._done: dict[str, PassResult | PassError] = {}

    def build(self, chain: Chain) -> Variant:
        """Run the passes of a chain that have not run yet."""
        notes: list[str] = []
        model, seconds, changed = self._start(chain), 0.0, not chain.passes
        text = ""  # results that suit every runtime are shared by all of them
        for step in self._steps(chain, model):
            text = f"{text},{step}" + (f"@{chain.runtime}" if step.tailored else "")
            known = text in self._done
            result = self._done[text] if known else self._step(step, model, chain.runtime)
            self._done[text] = result
            if isinstance(result, PassError):
                status = "skipped" if isinstance(result, NotApplicable) else "failed"
                return Variant(chain, None, status, str(result), tuple(notes), seconds)
            seconds += 0.0 if known else result.seconds
            notes += [f"{step.name}: {note}" for note in _notes(result)]
            model, changed = result.model, changed or result.changed
        if not changed:
            reason = f"the same model as source: {'; '.join(notes)}"
            return Variant(chain, None, "skipped", reason, (), seconds)
        return Variant(chain, model, None, "", tuple(notes), seconds)

    def _start(self, chain: Chain) -> Model:
        """Begin with the module where the first pass or the runtime takes nothing else."""
        program = self._sources.program
        wanted = chain.passes[0].takes if chain.passes else find_runtime(chain.runtime).formats
        if program is not None and ("torch" in wanted or "onnx" not in wanted):
            return program
        return self._sources.graph

    def _steps(self, chain: Chain, model: Model) -> Iterator[Pass]:
        """The passes of a chain, and between them what turns one format into the next."""
        format = model.format
        for step in chain.passes:
            if format == "torch" and "torch" not in step.takes:
                yield Export()
                format = "onnx"
            yield step
            format = step.gives or format
        if format == "torch" and "onnx" in find_runtime(chain.runtime).formats:
            yield Export()
        elif format not in find_runtime(chain.runtime).formats:
            yield Compile()

    def _step(self, step: Pass, model: Model, runtime: str) -> PassResult | PassError:
        folder = Path(tempfile.mkdtemp(dir=self._context.folder, prefix="pass-"))
        context = replace(self._context, folder=folder, runtime=runtime)
        try:
            return self._execute(step, model, context)
        except PassError as error:
            return error


def _notes(result: PassResult) -> list[str]:
    if result.difference is None:
        return list(result.notes)
    return [*result.notes, f"outputs {result.difference}"]
