"""What NNCF's accuracy control goes by: how alike the outputs of a candidate and the source are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optimize.budgets.metrics import METRICS
from optimize.passes.base import Context

Outputs = Mapping[str, Any]


class Agreement:
    """NNCF's validation function: the outputs' cosine to the source's, the worst output's.

    Labels are not needed, and a sample's value is finer than right or wrong.
    """

    def __init__(
        self, feeds: Sequence[Outputs], reference: Sequence[Outputs], context: Context
    ) -> None:
        """Judge by inputs and the source's outputs on them; each a sample's, by name."""
        self._feeds = feeds
        self._reference = reference
        self._context = context
        self._calls = 0

    def __call__(self, candidate: Any, samples: Iterable[int]) -> tuple[float, list[float]]:
        """The mean, and each sample's.

        Args:
            candidate: an ONNX graph, or what OpenVINO compiled.
            samples: their numbers.

        Raises:
            TimeoutError: the deadline has passed.
        """
        if self._context.late:
            raise TimeoutError("NNCF's accuracy control did not end within the time limit")
        self._calls += 1
        self._context.progress(f"accuracy control, evaluation {self._calls}")
        run = _compiled if self._context.runtime == "openvino" else _session
        numbers = list(samples)
        outputs = list(run(candidate, [self._feeds[i] for i in numbers]))
        names = list(self._reference[0])
        scores = METRICS["cosine"].score(
            {name: [one[name] for one in outputs] for name in names},
            None,
            {name: [self._reference[i][name] for i in numbers] for name in names},
        )
        return scores.value, [float(row) for row in scores.rows]


def _session(proto: Any, feeds: Sequence[Outputs]) -> Iterable[Outputs]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    for feed in feeds:
        yield dict(zip(names, session.run(names, feed), strict=True))


def _compiled(model: Any, feeds: Sequence[Outputs]) -> Iterable[Outputs]:
    for feed in feeds:
        results = model(feed)
        yield {output.any_name: results[output] for output in model.outputs}
