"""Mixed precision: from a uniform INT8 strategy, leave ever more layers in float.

Which layers is the pass's own choice, by accuracy recovered per microsecond lost; how many is
found here, by measured accuracy: the number is doubled until the floor holds, then halved back.
Where INT8 gains little, some layers are faster in float: then the first few are left so anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.passes.chain import Chain
from optimize.passes.int8 import Int8
from optimize.results.report import VariantReport

Attempt = Callable[[Chain], VariantReport | None]
MOST_BASES, MOST_KEPT = 2, 32
# INT8 that takes more than this share of the float model's time has layers that lose some.
GAINS_LITTLE = 0.6
# To look for them takes a session and some calls for each layer.
QUICK_MS, FEW_LAYERS = 10.0, 32
FEW = (1, 2)
# 1, 2, 4, ... layers from each base, and one try in the middle.
MOST_ATTEMPTS = MOST_BASES * (MOST_KEPT.bit_length() + 1)


@dataclass(frozen=True)
class Ladder:
    """A uniform strategy to start from.

    Attributes:
        base: its chain, which ends in ``int8``.
        everything: whether to climb on after the floor holds, to show the whole frontier.
        few: whether it holds the floor, and a few layers are left in float for their speed.
    """

    base: Chain
    everything: bool = False
    few: bool = False

    def step(self, keep: int) -> Chain:
        """The same chain with ``keep`` layers in float."""
        *first, last = self.base.passes
        assert isinstance(last, Int8)  # by ladders()
        return Chain((*first, replace(last, keep=keep)), self.base.runtime)


def ladders(rows: Sequence[VariantReport], everything: bool, layers: int) -> list[Ladder]:
    """The uniform strategies that are worth going on from, fastest first.

    These are the ones that miss the floor and are faster than every variant that holds it, and
    quick ones of few ``layers`` that hold it and gain little; with ``everything``, the fastest
    ones, whether they hold it or not.
    """
    kept = [row.latency.p50_ms for row in rows if row.status == "kept" and row.latency]
    best = min(kept, default=float("inf"))
    bases = [
        (row.latency.p50_ms, chain)
        for row in rows
        if row.latency and (everything or row.status == "inaccurate")
        if (chain := Chain.parse(row.chain)) and _can_mix(chain)
        if everything or row.latency.p50_ms < best
    ]
    fastest = sorted(bases, key=lambda base: base[0])[:MOST_BASES]
    found = [Ladder(chain, everything) for _, chain in fastest]
    look = not everything and layers <= FEW_LAYERS
    few = [] if not look else [Ladder(chain, few=True) for chain in _gain_little(rows)]
    return [*found, *few][:MOST_BASES]


def _gain_little(rows: Sequence[VariantReport]) -> list[Chain]:
    """The fastest uniform strategy that may hold the floor, if it is hardly faster than float."""
    timed = [(row, row.latency.p50_ms) for row in rows if row.latency and row.chain]
    floats = [ms for row, ms in timed if not _quantized(Chain.parse(row.chain))]
    least = GAINS_LITTLE * min(floats, default=float("inf"))
    slow = [
        (ms, chain)
        for row, ms in timed
        if row.status in ("kept", "undecided", "skipped", "too_slow")
        if least < ms < QUICK_MS and _can_mix(chain := Chain.parse(row.chain))
    ]
    return [chain for _, chain in sorted(slow, key=lambda base: base[0])[:1]]


def _quantized(chain: Chain) -> bool:
    return any(isinstance(step, Int8) for step in chain.passes)


def reserve(chains: Iterable[Chain]) -> int:
    """How many variants may come of a plan, for which a share of the error is set aside."""
    return MOST_ATTEMPTS if any(map(_can_mix, chains)) else 0


def _can_mix(chain: Chain) -> bool:
    last = chain.passes[-1] if chain.passes else None
    return (
        chain.runtime == DEFAULT_RUNTIME
        and isinstance(last, Int8)
        and last.engine == "onnxruntime"
        and last.mode != "weights"
        and last.keep == 0
    )


def climb(ladder: Ladder, attempt: Attempt) -> None:
    """Double the number of float layers until the floor holds, then try the middle.

    ``attempt`` builds and evaluates a chain; None if it gave no new model.
    """
    if ladder.few:
        for keep in FEW:
            attempt(ladder.step(keep))
        return
    failed, keep = 0, 1
    while keep <= MOST_KEPT:
        row = attempt(ladder.step(keep))
        if row is None or row.status == "failed":
            return
        if row.status != "inaccurate" and not ladder.everything:
            middle = (failed + keep) // 2
            if failed < middle < keep:
                attempt(ladder.step(middle))
            return
        failed, keep = keep, 2 * keep
