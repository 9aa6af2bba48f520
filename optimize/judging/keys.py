"""What the records of a run's candidates are found by: all that a measured value depends on."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from optimize.budgets.metrics import VERSION as SCORING
from optimize.cache.records import function_parts
from optimize.judging.candidate import Candidate
from optimize.models.data import content
from optimize.prepare import Prepared
from optimize.request import Request

Parts = dict[str, Any]


@dataclass
class Keys:
    """The parts of keys, see :class:`optimize.cache.records.Records`; each digest is taken once."""

    request: Request
    prepared: Prepared

    def latency(self, candidate: Candidate) -> Parts:
        """Of what is timed side by side."""
        return {"latency": self.served(candidate), "data": self._timed}

    def fresh(self, candidate: Candidate) -> Parts:
        """Of what confirms it: samples of one promise are not those that chose another."""
        return {**self.latency(candidate), "confirms": self._promise}

    def beaten(self, candidate: Candidate) -> Parts:
        """Of who beat it."""
        return {"beaten": self.latency(candidate), "promise": self._promise}

    def operators(self, candidate: Candidate) -> Parts:
        """Of its operator profile."""
        return {"operators": self.served(candidate), "data": self._timed}

    def speedup(self, candidate: Candidate, source: Candidate) -> Parts:
        """Of how much faster it was found to be at first."""
        return {"speedup": self.served(candidate), **self.latency(source)}

    def accuracy(self, candidate: Candidate, source: Candidate, samples: int) -> Parts:
        """Of its metric beside the source's, on the first ``samples`` calls."""
        return {
            "accuracy": self.served(candidate),
            "than": self.served(source),
            "metric": function_parts(self.request.metric) or self.prepared.metric.key,
            "scoring": SCORING,
            "data": self.evaluated,
            "samples": samples,
            "confidence": self.request.confidence,
        }

    def served(self, candidate: Candidate) -> Parts:
        """What is served, and how."""
        return {
            "artefact": candidate.model.digest,
            "settings": asdict(candidate.contender.job.settings),
            "batch": self.prepared.batch,
            # A model may be judged beside itself, to see how much two rows differ by chance.
            "row": candidate.contender.name if self.request.as_is else None,
            **self._functions,
        }

    @cached_property
    def evaluated(self) -> str:
        """A digest of the samples that the accuracy is evaluated on, and their labels."""
        labels = self.prepared.labels
        text = self.prepared.evaluation.digest
        if labels is not None:
            text += hashlib.sha256(content(np.asarray(labels))).hexdigest()
        return text

    @cached_property
    def _timed(self) -> str:
        return self.prepared.latency.digest

    @cached_property
    def _functions(self) -> Parts:
        return {"pre": function_parts(self.request.pre), "post": function_parts(self.request.post)}

    @property
    def _promise(self) -> list[Any]:
        return [list(map(str, self.request.budgets)), self.request.confidence]
