"""Session options as variants: other threads, another graph level, idle threads that sleep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.passes.chain import Chain
from optimize.passes.session import Session
from optimize.results.choose import Objective, rank
from optimize.results.report import VariantReport

# What may still meet the budgets under other options.
_NEAR = ("too_slow", "undecided")


def thread_counts(given: int, most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and ``most`` threads, without the number that is given anyway."""
    powers = [1 << power for power in range(most.bit_length())]
    return tuple(sorted({*powers, most} - {given}))


def sessions(given: int, most: int, quantized: bool = False) -> Iterator[Session]:
    """The options to try, one change each.

    Args:
        given: threads without any change.
        most: threads that there are cores for.
        quantized: whether the model holds integers. Lower graph levels leave their products in
            float between quantizing and dequantizing, which is slow and another result.
    """
    for threads in thread_counts(given, most):
        yield Session(threads=threads)
    if not quantized:
        yield Session(level="EXTENDED")
        yield Session(level="BASIC")
    if max(given, most) > 1:  # a single thread waits for nobody
        yield Session(threads=0 if given > 1 else most, spinning=False)


def base(
    rows: Sequence[VariantReport], objective: Objective, higher_is_better: bool
) -> Chain | None:
    """The chain whose session is worth tuning: the best kept, or else the fastest near miss."""
    own = [row for row in rows if row.runtime == DEFAULT_RUNTIME and row.latency]
    ranked = rank(own, objective, higher_is_better)
    if not ranked:
        near = [row for row in own if row.status in _NEAR and row.accuracy]
        known = [row for row in near if row.accuracy and not row.accuracy.provisional]
        near = known or near  # others may miss the floor
        ranked = sorted(near, key=lambda row: row.latency.p99_ms if row.latency else 0.0)
    return Chain.parse(ranked[0].chain) if ranked else None


def tuned(chain: Chain, session: Session) -> Chain:
    """The same passes, served under other options."""
    return Chain((*chain.passes, session), chain.runtime)
