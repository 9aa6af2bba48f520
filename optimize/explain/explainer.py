"""Explains the variants of one source: evidence from the child, then sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optimize.errors import OptimizeError
from optimize.explain.evidence import Evidence, GraphFacts, Overhead, kernels
from optimize.explain.facts import call_overhead, graph_facts, session_graph
from optimize.explain.layers import worst_layers
from optimize.explain.why import why_not_faster
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.processes.child import Children

LAYER_SAMPLES = 8


@dataclass(frozen=True)
class Subject:
    """A measured variant.

    Attributes:
        model: its artefact.
        runtime, threads: how it was served.
        operators: all rows of its operator profile.
        p50_ns: of the computed part of a call.
        lost: whether its accuracy fell, so that the layers to blame are wanted.
        before: what its layers are compared with; None if its tensors can be with nothing.
    """

    model: Model
    runtime: str
    threads: int
    operators: tuple[Mapping[str, Any], ...]
    p50_ns: float
    lost: bool = False
    before: Model | None = None


class Explainer:
    """Explains variants of one source; graphs are read and run in the child process."""

    def __init__(
        self, child: Children, source: Subject, isa: Sequence[str], samples: Dataset
    ) -> None:
        """Look at the source once.

        Args:
            child: where graphs are loaded: several subjects may be explained at once.
            source: what all variants are compared with.
            isa: the device's instruction sets.
            samples: inputs to compare layers on.
        """
        self._child = child
        self._isa = isa
        self._samples = samples.first(LAYER_SAMPLES)
        self._overhead = self._try(call_overhead, source.threads)
        self._source = self._evidence(source)

    def explain(self, subject: Subject) -> tuple[str, ...]:
        """What keeps the variant from being faster, and where its accuracy went."""
        sentences = list(why_not_faster(self._evidence(subject), self._source, self._isa))
        if subject.lost and subject.before and subject.model.format == "onnx":
            losses = self._try(worst_layers, subject.before, subject.model, self._samples)
            if losses:
                sentences.append(f"largest losses at {'; '.join(map(str, losses))}")
        return tuple(sentences)

    def _evidence(self, subject: Subject) -> Evidence:
        model = subject.model
        graph = self._try(graph_facts, model) if model.format == "onnx" else None
        session = None
        if subject.runtime == DEFAULT_RUNTIME:
            session = self._try(session_graph, model, model.config, subject.threads)
        overhead: Overhead | None = self._overhead
        return Evidence(
            kernels=kernels(subject.operators),
            p50_ns=subject.p50_ns,
            graph=graph or GraphFacts(),
            session=session,
            overhead=overhead if subject.runtime == DEFAULT_RUNTIME else None,
            runtime=subject.runtime,
            threads=subject.threads,
        )

    def _try(self, function: Any, *args: Any) -> Any:
        """An explanation that cannot be given must not cost the verdict."""
        try:
            return self._child.call(function, *args)
        except OptimizeError:
            return None
