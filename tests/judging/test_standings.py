"""Who is given up, who leads and who holds, by scripted calls; no process is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.budget import Budget, Floor
from optimize.budgets.profile import Block, Profile
from optimize.budgets.verdict import Requirement
from optimize.building.build import Variant
from optimize.cache.records import Records
from optimize.cache.store import Store
from optimize.judging.candidate import Candidate
from optimize.judging.standings import Standings
from optimize.passes.chain import Chain
from optimize.profiling.measure import Contender
from optimize.request import Request
from optimize.targets.base import Job

EQUAL = Accuracy("top1", 0.9, 0.8, 1.0, 100, 0.9, 0.0, -0.01, 0.01)
BUDGETS = (Budget.parse("p99=20ms"), Budget.parse("memory=1GB"))


class Named:
    """Keys that know candidates by name."""

    def beaten(self, candidate: Candidate) -> dict[str, Any]:
        return {"beaten": candidate.contender.name}


def profile(ms: float, calls: int = 600, slow: int = 0, peak: int = 1) -> Profile:
    """Calls that take ``ms``, of which the last ``slow`` are over the budget."""
    samples = np.full(calls, ms * 1e6) * np.random.default_rng(calls).uniform(0.999, 1, calls)
    samples[calls - slow :] = 25e6
    blocks = [Block(part.astype(np.int64)) for part in np.array_split(samples, 20)]
    return Profile(tuple(blocks), peak_bytes=peak)


def candidate(name: str, timed: Profile, *, reference: bool = False) -> Candidate:
    job = Job(Path("m.onnx"), Path("inputs"), Path("scratch"))
    contender = Contender(name, job, profile=timed, reference=reference)
    contender.call_ns = float(np.median(timed.samples_ns))
    chain = Chain() if reference else Chain.parse("fold")
    variant = Variant(chain, None, label=name)
    return Candidate(variant, None, contender, accuracy=EQUAL)  # type: ignore[arg-type]


def standings(*others: Candidate, store: Store | None = None, **changes: Any) -> Standings:
    """Of a source of 10 ms and others."""
    request = replace(Request(Path("m.onnx"), BUDGETS, floor=Floor.parse("drop=0.01")), **changes)
    source = candidate("source", profile(10.0), reference=True)
    requirement = Requirement(request.budgets, request.floor, contenders=len(others) + 1)
    keys: Any = Named()
    return Standings([source, *others], request, requirement, Records(store, {}), keys)


def test_who_will_probably_hold_holds_unless_something_else_is_missed_or_unknown() -> None:
    one = candidate("one", profile(5.0, 550))  # some 600 would be accepted
    assert standings(one).holds(one)
    assert not standings(one, everything=True).holds(one)
    assert not standings(one, max_samples=560).holds(one)  # there are not enough calls left
    unknown = replace(one, accuracy=None)
    assert not standings(unknown).holds(unknown)
    large = candidate("large", profile(5.0, peak=2_000_000_000))
    assert not standings(large).holds(large)
    near = candidate("near", profile(5.0, slow=8))
    assert not standings(near).holds(near)


def test_who_is_fastest_leads_and_beats_the_others() -> None:
    fast, slow = candidate("fast", profile(5.0)), candidate("slow", profile(7.0))
    known = standings(fast, slow)
    assert known.leads(fast)
    assert not known.leads(slow)
    assert known.beaten(slow)
    assert slow.beaten_by is not None
    assert "fast" in slow.beaten_by
    assert not known.beaten(fast)


def test_a_faster_rival_is_in_the_way_for_as_long_as_it_may_be_kept() -> None:
    fast, slow = candidate("fast", profile(5.0, slow=8)), candidate("slow", profile(7.0))
    known = standings(fast, slow)
    assert not known.leads(slow)
    fast.contender.error = "it crashed"
    assert known.leads(slow)
    # One that has had all its calls and was not accepted is timed no more, and waited for no more.
    noisy = [replace(b, disturbance="noise") for b in profile(5.0, 1200, slow=60).blocks]
    given_up = candidate("given up", Profile(tuple(noisy)))
    assert standings(given_up, slow).leads(slow)


def test_nobody_leads_by_an_accuracy_that_is_not_known() -> None:
    fast, slow = candidate("fast", profile(5.0)), candidate("slow", profile(7.0))
    fast.accuracy = None
    known = standings(fast, slow)
    assert not known.beaten(slow)
    assert not known.leads(fast)


def test_whom_an_earlier_run_gave_up_is_given_up_again_while_the_winner_holds(
    tmp_path: Path,
) -> None:
    with Store(tmp_path) as store:
        a, b, c = (
            candidate(name, profile(ms)) for name, ms in (("a", 7.0), ("b", 6.0), ("c", 5.0))
        )
        known = standings(a, b, c, store=store)
        for loser, winner in (("a", "b"), ("b", "c")):
            told = {"by": winner, "reason": f"slower than {winner}"}
            known.records.keep({"beaten": loser}, told, "beaten")
        known.recall([a, b, c])
        assert (a.beaten_by, b.beaten_by, c.beaten_by) == ("slower than b", "slower than c", None)
        a.beaten_by = b.beaten_by = None
        c.raced = c.contender
        known.recall([a, b, c])
        assert (a.beaten_by, b.beaten_by) == (None, None)


@pytest.mark.parametrize("changes", [{"objective": "accuracy"}, {"everything": True}])
def test_who_was_given_up_for_its_speed_is_not_where_that_does_not_count(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with Store(tmp_path) as store:
        slow, fast = candidate("slow", profile(7.0, 160)), candidate("fast", profile(5.0))
        told = {"by": "fast", "reason": "slower than fast"}
        for more, expected in (({}, "slower than fast"), (changes, None)):
            known = standings(slow, fast, store=store, **more)
            known.records.keep({"beaten": "slow"}, told, "beaten")
            slow.beaten_by = None
            known.recall([slow, fast])
            assert slow.beaten_by == expected


def test_two_that_beat_each_other_in_different_runs_are_both_timed(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        a, b = candidate("a", profile(5.0)), candidate("b", profile(5.0))
        known = standings(a, b, store=store)
        for loser, winner in (("a", "b"), ("b", "a")):
            known.records.keep({"beaten": loser}, {"by": winner, "reason": "slower"}, "beaten")
        known.recall([a, b])
        assert (a.beaten_by, b.beaten_by) == (None, None)


def mixed(name: str, ms: float, tail: float, calls: int) -> Candidate:
    """One call in fifty takes ``tail`` milliseconds, every other ``ms``."""
    samples = np.where(np.arange(calls) % 50 == 49, tail, ms) * 1e6
    samples = samples * np.random.default_rng(calls).uniform(0.99, 1, calls)
    blocks = [Block(part.astype(np.int64)) for part in np.array_split(samples, 20)]
    return candidate(name, Profile(tuple(blocks), peak_bytes=1))


def test_tails_that_a_thousand_calls_do_not_tell_apart_leave_it_to_the_medians() -> None:
    leader = candidate("leader", profile(5.0))
    # Its p99 is below the leader's by 4%, though not surely: 1% of 600 calls are six.
    early, late = profile(5.2, 600), profile(5.2, 1200)
    for timed, told in ((early, False), (late, True)):
        rival = candidate("rival", timed)
        faster_tail = mixed("leader", 5.0, 5.5, 600)
        assert standings(faster_tail, rival).beaten(rival) is told
    surely = candidate("surely", profile(4.0, 1200))
    assert not standings(leader, surely).beaten(surely)
