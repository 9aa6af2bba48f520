"""Say of every variant that was profiled what limits it, and where its accuracy went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimize.cache.records import Records
from optimize.explain.explainer import Explainer, Subject
from optimize.explain.layers import comparable
from optimize.judging.candidate import Candidate
from optimize.judging.keys import Keys
from optimize.models.data import Dataset
from optimize.processes.child import Children
from optimize.profiling.measure import Limits

# Larger models are explained one after the other: each takes sessions of two of them.
SIDE_BY_SIDE_BYTES = 1 << 30

Work = tuple[Candidate, Subject, dict[str, Any]]


@dataclass(frozen=True)
class Explaining:
    """Gives candidates their explanations, known ones and new ones.

    Attributes:
        candidates: all of a run, the source first.
        samples: inputs to compare layers on.
        records, keys: where explanations are kept, and what they are found by.
    """

    candidates: Sequence[Candidate]
    samples: Dataset
    records: Records
    keys: Keys

    def explain(self, children: Children, isa: Sequence[str], limits: Limits) -> None:
        """Explain what was profiled, as many variants at once as there are children.

        Args:
            children: where graphs are loaded.
            isa: the device's instruction sets.
            limits: of the effort; what is left when the time is up has no explanation.
        """
        work = [one for one in self._subjects(isa) if not self._recalled(one)]
        if not work or limits.expired:
            return
        largest = max(subject.model.size_bytes for _, subject, _ in work)
        count = 1 if largest > SIDE_BY_SIDE_BYTES else len(work)
        with self.records.busy(limits.deadline), children.threads(count) as pool:
            explainer = Explainer(children, self.candidates[0].subject, isa, self.samples)

            def explain_one(one: Work) -> None:
                candidate, subject, parts = one
                if not limits.expired:
                    candidate.explanation = explainer.explain(subject)
                    what = f"explanation of {candidate.variant.name}"
                    self.records.keep(parts, candidate.explanation, what)

            list(pool.map(explain_one, work))  # which raises what one of them raised

    def _subjects(self, isa: Sequence[str]) -> list[Work]:
        """Who is to be explained, with what its explanation is found by."""
        source = self.candidates[0].subject
        models = {str(c.variant.chain): c.model for c in self.candidates}
        work = []
        for candidate in (c for c in self.candidates[1:] if c.kernels and c.shown):
            before = comparable(candidate.variant.chain, models)
            subject = replace(candidate.subject, before=before)
            told = {"subject": _told(subject), "than": _told(source)}
            parts = {"explanation": told, "isa": list(isa), "data": self.keys.evaluated}
            work.append((candidate, subject, parts))
        return work

    def _recalled(self, one: Work) -> bool:
        candidate, _, parts = one
        known = self.records.recall(parts)
        if known is not None:
            candidate.explanation = tuple(known)
        return known is not None


def _told(subject: Subject) -> dict[str, Any]:
    """A subject as JSON."""
    names = ("runtime", "threads", "operators", "p50_ns", "lost")
    models = {"model": subject.model.identity, "before": subject.before and subject.before.identity}
    return {name: getattr(subject, name) for name in names} | models
