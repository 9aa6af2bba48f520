"""Which width each group gets so that a latency budget is just met, at the least loss of accuracy.

Round by round: each group alone is made narrower; what that saves is timed on the target, what it
costs is the error of the outputs. The widths that save enough at the least total error are a
knapsack. Savings do not quite add up, so the choice is timed, too, and made again with savings
scaled to what was found. Then the model recovers, and the next round starts from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Protocol, Self, TypeVar

from optimize.errors import NotApplicable
from optimize.models.model import Model
from optimize.passes.latency import Race, Share

Widths = tuple[int, ...]
# Where a choice should land, and where it may: shares of the budget. The judge asks for a margin.
AIM, LEAST, MOST = 0.95, 0.91, 0.98
_CHOICES = 8  # timed in the last round
_CHOICES_BEFORE = 2  # timed in earlier rounds, whose goals are only on the way
_BINS = 500  # of the reference's time, in which savings are counted
_SLACK = 0.04  # of the reference's time: how much more than needed a choice may save
_AT_ONCE = 6  # candidates whose processes run side by side
LEVELS = 6  # narrower widths of a group that are tried
_KEPT_LEAST = 0.1  # of a group


def levels(width: int, step: int) -> Widths:
    """The widths to try: the present one, then evenly spaced multiples of ``step`` below it."""
    least = max(step, int(_KEPT_LEAST * width / step) * step)
    below = list(range((width - 1) // step * step, least - 1, -step))
    # The narrowest is always among them.
    chosen = below[::-1][:: max(1, -(-len(below) // LEVELS))][::-1]
    return (width, *chosen)


class Cuttable(Protocol):
    """A model whose groups of channels can be made narrower."""

    @property
    def levels(self) -> Sequence[Widths]:
        """For each group the widths that it may have, its present one first, falling."""
        ...

    def cut(self, widths: Widths) -> Model:
        """The model with these widths, as the runtime loads it, in a folder of its own."""
        ...

    def alike(self, widths: Widths) -> Hashable:
        """Equal for candidates that take equally long."""
        ...

    def loss(self, widths: Widths) -> float:
        """Error of the outputs against the source's, as a share of their variance."""
        ...

    def recovered(self, widths: Widths) -> Self:
        """The model with these widths, after training or a refit where there is any."""
        ...


C = TypeVar("C", bound=Cuttable)


@dataclass(frozen=True)
class Found(Generic[C]):
    """What a search gave.

    Attributes:
        model: the recovered model.
        share: its percentile as a share of the reference's; 1 if nothing had to go.
        goal: the share that the budget allows.
        timed: how many candidates were timed.
    """

    model: C
    share: float
    goal: float
    timed: int


@dataclass(frozen=True)
class Level:
    """A group at one of its widths.

    Attributes:
        width: how much stays.
        saved: time, as a share of the reference's.
        lost: error of the outputs, as a share of their variance.
    """

    width: int
    saved: float
    lost: float


Table = Sequence[Sequence[Level]]


def search(
    start: C,
    race: Race,
    quantile: float,
    limit_ns: float,
    rounds: int,
    expired: Callable[[], bool] = lambda: False,
) -> Found[C]:
    """Find the widths that just meet a limit.

    Args:
        start: the model as it is.
        race: times candidates beside the same model.
        quantile: of the latency that is limited, 0.99 for p99.
        limit_ns: at most this long.
        rounds: how many times the model is cut and recovered on the way.
        expired: whether the time is up; the search then ends with the best so far.

    Raises:
        NotApplicable: no widths meet the limit, or the time was up before any did.
    """
    stopwatch = _Stopwatch(race, quantile)
    race.shares([], quantile)  # the reference's own percentile
    state, now = start, 1.0
    for left in range(rounds, 0, -1):
        goal = limit_ns / race.reference_ns(quantile)
        if now <= goal:
            break
        on_the_way = now * (goal / now) ** (1 / left)
        widths, now = _Round(state, stopwatch, on_the_way, now, left == 1, expired).best()
        state = state.recovered(widths)
        now = stopwatch.shares([state.cut(_present(state))])[0].tail
    return Found(state, now, limit_ns / race.reference_ns(quantile), stopwatch.count)


def cheapest(table: Table, need: float, slack: float, skip: Collection[Widths]) -> Widths | None:
    """The widths of least total loss among those that save ``need`` to ``need + slack``.

    Where none does, those that come nearest. A knapsack with several choices for each group, by
    dynamic programming over savings in bins.

    Args:
        table: the levels of each group.
        need: savings, as a share of the reference's time.
        slack: how much more may be saved.
        skip: widths that are not wanted again.
    """
    best: dict[int, tuple[float, Widths]] = {0: (0.0, ())}
    for group in table:
        fresh: dict[int, tuple[float, Widths]] = {}
        for saved, (lost, widths) in best.items():
            for level in group:
                place = saved + round(level.saved * _BINS)
                entry = (lost + level.lost, (*widths, level.width))
                if place not in fresh or entry[0] < fresh[place][0]:
                    fresh[place] = entry
        best = fresh
    ranked = [
        (round(max(need - place / _BINS, place / _BINS - need - slack, 0.0), 9), lost, widths)
        for place, (lost, widths) in best.items()
        if widths not in skip
    ]
    return min(ranked)[2] if ranked else None


@dataclass
class _Stopwatch:
    """Times candidates and counts them."""

    race: Race
    quantile: float
    count: int = 0

    def shares(self, candidates: Sequence[Model]) -> list[Share]:
        found: list[Share] = []
        for start in range(0, len(candidates), _AT_ONCE):
            found += self.race.shares(candidates[start : start + _AT_ONCE], self.quantile)
        for candidate in candidates:
            shutil.rmtree(candidate.path.parent)  # many and large, and never needed again
        self.count += len(found)
        return found


@dataclass
class _Round(Generic[C]):
    """From one model to narrower widths whose latency is the goal."""

    state: C
    stopwatch: _Stopwatch
    goal: float
    now: float
    last: bool
    expired: Callable[[], bool]

    def best(self) -> tuple[Widths, float]:
        """The widths that come nearest to the goal, from below in the last round."""
        tried = self._tried()
        if not self.last:
            return min(tried.items(), key=lambda item: abs(item[1] - AIM * self.goal))
        meeting = {widths: share for widths, share in tried.items() if share <= self.goal}
        if not meeting:
            found = f"{min(tried.values()):.2f}" if tried else "not known: the time was up"
            raise NotApplicable(
                f"no widths were found that meet the budget, {self.goal:.2f} of the unpruned "
                f"latency; the least that was measured is {found}"
            )
        return max(meeting.items(), key=lambda item: item[1])

    def _tried(self) -> dict[Widths, float]:
        table = self._table()
        tried: dict[Widths, float] = {}
        scale = 1.0
        for _ in range(_CHOICES if self.last else _CHOICES_BEFORE):
            widths = cheapest(table, (self.now - AIM * self.goal) / scale, _SLACK, tried)
            if widths is None or (tried and self.expired()):
                break
            share = self.stopwatch.shares([self.state.cut(widths)])[0].tail
            tried[widths] = share
            if LEAST * self.goal <= share <= MOST * self.goal:
                break
            promised = max(_saved(table, widths), 1 / _BINS)
            scale = min(max((self.now - share) / promised, 0.25), 4.0)
        return tried

    def _table(self) -> Table:
        """What every group saves and costs at each of its widths, the others as they are."""
        state, start = self.state, _present(self.state)
        probes = {}
        for number, widths in enumerate(state.levels):
            if len(widths) > 1:
                probes[number] = _with(start, number, widths[(len(widths)) // 2])
        kinds = {state.alike(widths): widths for widths in probes.values()}
        models = [state.cut(start), *(state.cut(widths) for widths in kinds.values())]
        plain, *shares = (share.typical for share in self.stopwatch.shares(models))
        times = dict(zip(kinds, shares, strict=True))
        base = state.loss(start)
        table = []
        for number, widths in enumerate(state.levels):
            probe = probes.get(number, start)
            saved = self.now * max(0.0, 1 - times.get(state.alike(probe), plain) / plain)
            each = saved / max(widths[0] - probe[number], 1)
            losses = [max(0.0, state.loss(_with(start, number, w)) - base) for w in widths[1:]]
            table.append(
                [
                    Level(width, each * (widths[0] - width), lost)
                    for width, lost in zip(widths, accumulate([0.0, *losses], max), strict=True)
                ]
            )
        return table


def _present(state: Cuttable) -> Widths:
    return tuple(widths[0] for widths in state.levels)


def _with(widths: Widths, group: int, width: int) -> Widths:
    return (*widths[:group], width, *widths[group + 1 :])


def _saved(table: Table, widths: Widths) -> float:
    return sum(
        level.saved
        for group, width in zip(table, widths, strict=True)
        for level in group
        if level.width == width
    )
