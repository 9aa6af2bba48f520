"""Whether one model got slower than another, from chunks of calls that were timed in pairs.

Both models are timed in turns. A *chunk* is some hundred calls of each, taken at the same time, in
random order and on the same inputs. The ratio of a percentile is taken within every chunk, and the
median of those ratios is what is judged, with the exact interval of a sign test. Because the order
is random, a change of the machine's speed favours either model with the same probability: whatever
the drift, the signs are fair coins under the null hypothesis. A burst spoils single chunks, which a
median does not follow.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimize.budgets.budget import PERCENTILES
from optimize.budgets.profile import percentile_bounds
from optimize.errors import InputError

State = Literal["held", "slower", "open"]
JUDGED = ("p50", "p99")
# The interval is looked at after 12, 24, 48, ... chunks; the error is shared by the looks.
FIRST_LOOK, LOOKS = 12, 8
MOST_CHUNKS = FIRST_LOOK * 2 ** (LOOKS - 1)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)")
CHUNK_CALLS, FEWEST_CALLS, CHUNK_NS = 100, 20, 1_000_000_000


@dataclass(frozen=True)
class Loss:
    """How much of a metric may be lost: in its unit, or as a share of the baseline's value."""

    amount: float
    share: bool = False

    def of(self, value: float) -> float:
        """The loss in the metric's unit, where the baseline has ``value``."""
        return self.amount * abs(value) if self.share else self.amount


def parse_tolerance(text: str) -> float:
    """Read ``10%`` as the share by which a model may be slower.

    Raises:
        InputError: it is none.
    """
    match = _NUMBER.fullmatch(text.strip())
    share = float(match[1]) / 100 if match and match[2] else 0.0
    if not 0 < share < 10:
        raise InputError(f"tolerance {text!r} is no share above zero; write for example 10%")
    return share


def parse_loss(text: str) -> Loss | None:
    """Read ``0.01`` or ``1%`` as how much of a metric may be lost; None for ``none``.

    Raises:
        InputError: it is neither.
    """
    if text.strip() == "none":
        return None
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise InputError(
            f"metric tolerance {text!r} is no loss; write for example 0.01, 1% or none"
        )
    return Loss(float(match[1]) / (100 if match[2] else 1), bool(match[2]))


@dataclass(frozen=True)
class Ratio:
    """How many times as long a model takes as its baseline.

    Attributes:
        quantity: the percentile.
        value: the median of the chunks' ratios.
        low, high: its interval; None where there are too few chunks for one.
        chunks: how many there were.
        tolerance: the share by which the model may be slower.
    """

    quantity: str
    value: float
    low: float | None
    high: float | None
    chunks: int
    tolerance: float

    @property
    def state(self) -> State:
        """Slower if the whole interval is beyond the tolerance, held if it is within."""
        limit = 1 + self.tolerance
        if self.low is not None and self.low > limit:
            return "slower"
        return "held" if self.high is not None and self.high < limit else "open"


def chunk_calls(call_ns: float) -> int:
    """How many calls make a chunk: a hundred, or those of a second, but never less than twenty.

    With fewer than a hundred the highest call stands for the p99.
    """
    return int(min(CHUNK_CALLS, max(FEWEST_CALLS, CHUNK_NS / max(call_ns, 1))))


def is_look(chunks: int) -> bool:
    """Whether the interval may be looked at after this many chunks."""
    return chunks in [FIRST_LOOK * 2**look for look in range(LOOKS)]


def ratios(
    baseline: NDArray[np.int64], model: NDArray[np.int64], tolerance: float, confidence: float
) -> tuple[Ratio, ...]:
    """The ratio of every percentile that is judged.

    Args:
        baseline: its latencies in nanoseconds, shape (chunks, calls).
        model: the same of the model, chunk by chunk in pairs with the baseline's.
        tolerance: the share by which the model may be slower.
        confidence: of the decision as a whole: both ends of all percentiles at all looks.
    """
    each = 1 - (1 - confidence) / (LOOKS * len(JUDGED))
    return tuple(_ratio(name, baseline, model, tolerance, each) for name in JUDGED)


def _ratio(
    name: str,
    baseline: NDArray[np.int64],
    model: NDArray[np.int64],
    tolerance: float,
    confidence: float,
) -> Ratio:
    share = PERCENTILES[name]
    found = _percentile(model, share) / _percentile(baseline, share)
    low, high = percentile_bounds(found, 0.5, confidence)
    return Ratio(name, float(np.median(found)), low, high, len(found), tolerance)


def _percentile(chunks: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """The nearest-rank percentile of every chunk, shape (chunks,); at least the clock's step."""
    rank = max(0, math.ceil(share * chunks.shape[1] - 1e-9) - 1)
    return np.maximum(np.sort(chunks, axis=1)[:, rank], 1).astype(np.float64)


def decided(found: tuple[Ratio, ...]) -> bool:
    """Whether more chunks could not change the outcome: one got slower, or all have held."""
    states = [ratio.state for ratio in found]
    return "slower" in states or all(state == "held" for state in states)
