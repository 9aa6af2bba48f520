"""Build variants: every chain prefix once, and what its runtime loads at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from optimize.errors import NotApplicable, PassError
from optimize.models.model import Model
from optimize.models.runtimes import find_runtime
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain
from optimize.passes.lower import Compile, Export

Execute = Callable[[Pass, Model, Context], PassResult]

# Why there is no artefact: there was no time to build it, which says nothing of it.
UNBUILT = "unbuilt"


@dataclass(frozen=True)
class Variant:
    """A chain and what became of it.

    Attributes:
        chain: the passes.
        model: the artefact; None if there is none.
        problem: ``skipped``, ``failed`` or ``unbuilt`` if there is none.
        reason: why, in words.
        notes: what the passes said.
        seconds: spent in passes that no other chain had run before.
        label: its name where a chain does not tell it apart; empty for the chain's text.
        exact: whether its last pass promises to keep the outputs, and was checked.
        step: whether it was built only to show what each pass of a longer chain changes.
        trial: whether a search proposed it; what its passes change one by one is not measured.
    """

    chain: Chain
    model: Model | None
    problem: str | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    label: str = ""
    exact: bool = False
    step: bool = False
    trial: bool = False

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
    """Builds chains from one source and remembers every prefix; threads may share it."""

    def __init__(self, sources: Sources, context: Context, execute: Execute) -> None:
        """Keep what all passes share; ``context.folder`` receives a folder for each result."""
        self._sources = sources
        self._context = context
        self._execute = execute
        self._done: dict[str, Future[PassResult | PassError]] = {}
        self._guard = Lock()

    def until(self, deadline: float | None) -> None:
        """Let passes that are still to run end by another deadline than the first."""
        self._context = replace(self._context, deadline=deadline)

    def build(self, chain: Chain) -> Variant:
        """Run the passes of a chain that have not run yet."""
        runtime = find_runtime(chain.runtime)
        if not runtime.installed:
            return Variant(chain, None, "skipped", runtime.missing)
        state = _State(self._start(chain))
        try:
            for step in chain.passes:
                if state.model.format == "torch" and "torch" not in step.takes:
                    self._advance(state, Export(), chain.runtime)
                self._advance(state, step, chain.runtime)
            self._lower(state, chain.runtime)
        except PassError as error:
            status = "skipped" if isinstance(error, NotApplicable) else "failed"
            return Variant(chain, None, status, str(error), tuple(state.notes), state.seconds)
        if not state.changed and chain.passes:
            reason = f"the same model as source: {'; '.join(state.notes)}"
            return Variant(chain, None, "skipped", reason, (), state.seconds)
        exact = bool(chain.passes) and chain.passes[-1].tolerance is not None
        notes = tuple(state.notes)
        return Variant(chain, state.model, None, "", notes, state.seconds, exact=exact)

    def _start(self, chain: Chain) -> Model:
        """Begin with the module where the first pass or the runtime takes nothing else."""
        program = self._sources.program
        wanted = chain.passes[0].takes if chain.passes else find_runtime(chain.runtime).formats
        if program is not None and ("torch" in wanted or "onnx" not in wanted):
            return program
        return self._sources.graph

    def _lower(self, state: _State, runtime: str) -> None:
        """Turn the model into what the runtime loads."""
        formats = find_runtime(runtime).formats
        if state.model.format not in formats:
            export = state.model.format == "torch" and "onnx" in formats
            self._advance(state, Export() if export else Compile(), runtime)

    def _advance(self, state: _State, step: Pass, runtime: str) -> None:
        """Run one pass, or take its result from an earlier chain."""
        # Results that suit every runtime are shared by all of them.
        state.text += f",{step}" + (f"@{runtime}" if step.tailored else "")
        with self._guard:
            known = state.text in self._done
            done = self._done.setdefault(state.text, Future())
        if not known:
            self._fulfil(done, step, state.model, runtime)
        result = done.result()
        if isinstance(result, PassError):
            raise result
        state.seconds += 0.0 if known else result.seconds
        state.notes += [f"{step.name}: {note}" for note in _notes(result)]
        state.model = result.model
        state.changed |= result.changed and not isinstance(step, (Export, Compile))

    def _fulfil(
        self, done: Future[PassResult | PassError], step: Pass, model: Model, runtime: str
    ) -> None:
        try:
            done.set_result(self._step(step, model, runtime))
        except BaseException as error:
            done.set_exception(error)  # whoever waits for it must not wait for ever
            raise

    def _step(self, step: Pass, model: Model, runtime: str) -> PassResult | PassError:
        folder = Path(tempfile.mkdtemp(dir=self._context.folder, prefix="pass-"))
        context = replace(self._context, folder=folder, runtime=runtime)
        try:
            return self._execute(step, model, context)
        except PassError as error:
            return error


@dataclass
class _State:
    """How far a chain has come."""

    model: Model
    text: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    changed: bool = False


def _notes(result: PassResult) -> list[str]:
    if result.difference is None:
        return list(result.notes)
    return [*result.notes, f"outputs {result.difference}"]
