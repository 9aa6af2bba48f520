"""Timing in turns, with workers that take no time: their latencies are drawn, not measured."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from optimize.budgets.budget import Budget
from optimize.budgets.profile import Profile
from optimize.budgets.verdict import Requirement, weigh
from optimize.errors import WorkerError
from optimize.profiling.confirm import Confirmation
from optimize.profiling.measure import (
    Contender,
    Limits,
    block_calls,
    collect_outputs,
    open_worker,
    time_in_turns,
    warm_up,
)
from optimize.targets.base import Device, Job, Target

MS = 1_000_000
SAMPLES = 40
QUIET: dict[str, Any] = {"canary_ns": [200_000, 200_000], "counters": {}}
Latencies = Callable[[np.random.Generator, int], NDArray[np.int64]]
Surroundings = Callable[[int], dict[str, Any]]


def lognormal(median_ms: float, sigma: float = 0.1) -> Latencies:
    def draw(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        return (median_ms * MS * rng.lognormal(0, sigma, count)).astype(np.int64)

    return draw


def with_slow(median_ms: float, share: float, slow_ms: float) -> Latencies:
    """Calls of which the given share takes longer."""

    def draw(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        usual = median_ms * MS * rng.lognormal(0, 0.05, count)
        return np.where(rng.random(count) < share, slow_ms * MS, usual).astype(np.int64)

    return draw


@dataclass
class Fake:
    """A worker that answers at once what the script says.

    Attributes:
        latencies: draws the latencies of a block.
        surroundings: what was noted beside the n-th block.
        dies_at: number of the block that it does not survive; None for never.
    """

    name: str
    latencies: Latencies
    log: list[tuple[str, str]]
    surroundings: Surroundings = lambda block: QUIET
    dies_at: int | None = None
    peak_bytes: int | None = None
    steady: bool = True
    nans: int = 0
    folder: Path = Path()
    orders: list[list[int]] = field(default_factory=list)
    commands: list[dict[str, Any]] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(sum(map(ord, self.name)))
        self._blocks = 0

    def call(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        self.log.append((self.name, command))
        self.commands.append({"do": command, "timeout_s": timeout_s, **arguments})
        reply: dict[str, Any] = getattr(self, f"_{command}")(**arguments)
        return {"ok": True, "version": 1, "peak_bytes": self.peak_bytes, **reply}

    def _warmup(self, calls: int, most: int, seconds: float) -> dict[str, Any]:
        p50 = int(np.median(self.latencies(self._rng, 100)))
        return {"calls": 40, "steady": self.steady, "p50_ns": p50}

    def _time(self, order: list[int], lead_ns: int) -> dict[str, Any]:
        number, self._blocks = self._blocks, self._blocks + 1
        if number == self.dies_at:
            raise WorkerError("the worker was ended by SIGSEGV")
        self.orders.append(order)
        samples = self.latencies(self._rng, len(order))
        return {
            "samples": base64.b64encode(samples.tobytes()).decode(),
            "parts": {},
            "elapsed_ns": int(samples.sum()) + 1,
            **QUIET,
            **self.surroundings(number),
        }

    def _outputs(self, order: list[int], part: int = 0) -> dict[str, Any]:
        count = len(order)
        values = np.arange(2 * count, dtype=np.float32)
        (self.folder / "output-0.bin").write_bytes(values.tobytes())
        entry = {"name": "y", "file": "output-0.bin", "dtype": "float32", "nans": self.nans}
        return {"outputs": [{**entry, "shapes": [[2]] * count}], "rss_bytes": 7_000}

    def fetch(self, name: str) -> Path:
        return self.folder / name

    def close(self) -> None:
        self.closed = True


class FakeTarget(Target):
    """Starts fakes by the name of the model's file."""

    name = "fake"

    def __init__(self, **scripts: Any) -> None:
        self.scripts = scripts
        self.log: list[tuple[str, str]] = []
        self.started: list[Fake] = []

    def device(self) -> Device:
        return Device("fake", "none", (), 2, 2, 1 << 30, "none", "3")

    def start(self, job: Job, timeout_s: float) -> tuple[Fake, dict[str, Any]]:
        script = self.scripts[job.model.stem]
        options = script if isinstance(script, dict) else {"latencies": script}
        fake = Fake(name=job.model.stem, log=self.log, folder=job.scratch, **options)
        self.started.append(fake)
        first = int(fake.latencies(np.random.default_rng(0), 1)[0])
        ready = {"load_ns": 5 * MS, "first_call_ns": 3 * first, "rss_bytes": 5_000}
        return fake, {**ready, "peak_bytes": fake.peak_bytes}


@dataclass
class Race:
    """A number of contenders, ready to be timed."""

    target: FakeTarget
    contenders: list[Contender]

    def __getitem__(self, name: str) -> Contender:
        return next(c for c in self.contenders if c.name == name)

    def run(self, requirement: Requirement, limits: Limits | None = None, seed: int = 0) -> None:
        limits = limits or Limits()
        rng = np.random.default_rng(seed)
        time_in_turns(self.contenders, requirement, SAMPLES, limits, rng, lambda _: None)

    def calls(self, name: str) -> int:
        return int(self[name].profile.samples_ns.size)

    def decision(self, name: str, requirement: Requirement) -> str:
        return weigh(self[name].profile, requirement)[0].decision


def race(
    tmp_path: Path, *, reference: str | None = None, processes: int = 1, **scripts: Any
) -> Race:
    target = FakeTarget(**scripts)
    contenders = []
    for name in scripts:
        job = Job(Path(f"{name}.onnx"), tmp_path / "inputs", tmp_path / name)
        contender = Contender(name, job, reference=name == reference)
        for _ in range(processes):
            open_worker(target, contender, Limits())
        warm_up(contender, Limits())
        contenders.append(contender)
    target.log.clear()
    return Race(target, contenders)


def need(*budgets: str) -> Requirement:
    return Requirement(tuple(map(Budget.parse, budgets or ("p99=20ms",))), None)


def timed_by(log: Sequence[tuple[str, str]]) -> list[str]:
    return [name for name, command in log if command == "time"]


@pytest.mark.parametrize("seed", range(3))
def test_three_times_the_head_room_is_soon_accepted(tmp_path: Path, seed: int) -> None:
    found = race(tmp_path, good=lognormal(5, 0.12))  # its p99 is some 6.6 ms
    found.run(need(), seed=seed)
    assert found.decision("good", need()) == "accept"
    assert 497 <= found.calls("good") <= 1500


@pytest.mark.parametrize("seed", range(3))
def test_twice_the_limit_is_soon_rejected(tmp_path: Path, seed: int) -> None:
    found = race(tmp_path, bad=lognormal(40))
    found.run(need(), seed=seed)
    assert found.decision("bad", need()) == "reject"
    assert found.calls("bad") <= 150


def test_a_slow_model_is_rejected_after_a_few_calls(tmp_path: Path) -> None:
    found = race(tmp_path, slow=lognormal(3000))
    found.run(need())
    assert found.decision("slow", need()) == "reject"
    assert found.calls("slow") <= 25


def test_a_twentieth_of_slow_calls_is_rejected(tmp_path: Path) -> None:
    found = race(tmp_path, bad=with_slow(5, 0.06, 60))
    found.run(need())
    assert found.decision("bad", need()) == "reject"
    assert found.calls("bad") <= 600


def test_what_is_at_the_limit_stays_open_until_its_calls_are_used_up(tmp_path: Path) -> None:
    found = race(tmp_path, close=with_slow(5, 0.01, 30))
    found.run(need(), Limits(max_samples=1000, min_seconds=0))
    assert found.decision("close", need()) == "undecided"
    assert 1000 <= found.calls("close") < 1050


def test_quick_calls_may_exceed_their_number_for_the_least_time(tmp_path: Path) -> None:
    found = race(tmp_path, close=with_slow(5, 0.01, 30))
    found.run(need(), Limits(max_samples=200, min_seconds=2.0))
    spent = found["close"].profile.samples_ns.sum() / 1e9
    assert 2.0 <= spent < 2.0 + 50 * 0.035
    tiny = race(tmp_path, tiny=with_slow(0.001, 0.01, 30))
    tiny.run(need(), Limits(max_samples=100, min_seconds=1e9))
    assert 1000 <= tiny.calls("tiny") < 1050  # ten times as many at most


@pytest.mark.parametrize(
    ("call_ms", "calls"),
    [(0.001, 50), (2, 50), (5, 20), (12.5, 16), (50, 16), (125, 8), (250, 4), (1000, 1), (9000, 1)],
)
def test_blocks_are_short_but_not_all_lead(call_ms: float, calls: int) -> None:
    """A tenth of a second; 16 calls where that is fewer; but no more than a second."""
    assert block_calls(call_ms * MS) == calls


def test_no_verdict_rests_on_one_unbroken_moment(tmp_path: Path) -> None:
    found = race(tmp_path, good=lognormal(0.001))
    found.run(need("p50=20ms"))  # some 20 calls would do
    assert found.decision("good", need("p50=20ms")) == "accept"
    assert len(found["good"].profile.blocks) >= 5


def test_all_contenders_are_timed_in_turns(tmp_path: Path) -> None:
    found = race(tmp_path, a=lognormal(5), b=lognormal(6), c=lognormal(7))
    found.run(need())
    names = timed_by(found.target.log)
    rounds = [names[i : i + 3] for i in range(0, 3 * 9, 3)]
    assert all(sorted(group) == ["a", "b", "c"] for group in rounds)
    assert len({tuple(group) for group in rounds}) > 1  # in random order


def test_the_order_is_the_seeds(tmp_path: Path) -> None:
    def order(seed: int, folder: str) -> list[str]:
        found = race(tmp_path / folder, a=lognormal(5), b=lognormal(6), c=lognormal(7))
        found.run(need(), seed=seed)
        return timed_by(found.target.log)

    assert order(1, "x") == order(1, "y")
    assert order(1, "x2") != order(2, "z")


def test_a_decided_contender_is_timed_no_more(tmp_path: Path) -> None:
    found = race(tmp_path, good=lognormal(5), bad=lognormal(50), open=with_slow(5, 0.01, 30))
    found.run(need(), Limits(max_samples=2000, min_seconds=0))
    assert found.calls("bad") < found.calls("good") < found.calls("open")
    assert timed_by(found.target.log)[-5:] == ["open"] * 5


def test_the_samples_of_a_block_are_drawn_from_all(tmp_path: Path) -> None:
    found = race(tmp_path, good=lognormal(5))
    found.run(need())
    asked = {index for order in found.target.started[0].orders for index in order}
    assert asked == set(range(SAMPLES))


def test_blocks_are_short_and_never_empty(tmp_path: Path) -> None:
    found = race(tmp_path, quick=lognormal(0.5), middling=lognormal(9), slow=lognormal(700))
    found.run(need("p99=5s"), Limits(max_samples=300, min_seconds=0))
    for contender in found.contenders:
        for block in contender.profile.blocks:
            assert 1 <= block.samples_ns.size <= 50
            assert block.samples_ns.size == 1 or block.samples_ns.sum() < 300 * MS


def test_a_crash_costs_the_crashing_contender_only(tmp_path: Path) -> None:
    found = race(
        tmp_path,
        good=lognormal(5),
        bad={"latencies": lognormal(5), "dies_at": 3},
        other=lognormal(6),
    )
    found.run(need())
    assert found["bad"].error == "the worker was ended by SIGSEGV"
    assert len(found["bad"].profile.blocks) == 3
    for name in ("good", "other"):
        assert found[name].error is None
        assert found.decision(name, need()) == "accept"
    assert timed_by(found.target.log).count("bad") == 4  # it is not asked again


def test_all_may_crash(tmp_path: Path) -> None:
    dead = {"latencies": lognormal(5), "dies_at": 0}
    found = race(tmp_path, a=dead, b=dead)
    found.run(need())
    assert all(contender.error for contender in found.contenders)
    assert timed_by(found.target.log) in (["a", "b"], ["b", "a"])


def test_after_the_deadline_nothing_is_timed(tmp_path: Path) -> None:
    found = race(tmp_path, good=lognormal(5))
    found.run(need(), Limits(deadline=time.monotonic() - 1))
    assert found.target.log == []
    assert found["good"].error is None


def test_the_deadline_ends_a_turn_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = race(tmp_path, a=lognormal(5), b=lognormal(5))
    clock = iter(range(10**6))
    monkeypatch.setattr("optimize.profiling.measure.time.monotonic", lambda: next(clock))
    found.run(need(), Limits(deadline=20))
    assert 0 < len(timed_by(found.target.log)) < 20


def test_a_calls_patience_grows_with_what_it_should_take(tmp_path: Path) -> None:
    found = race(tmp_path, slow=lognormal(4000))
    found.run(need())
    timed = [c for c in found.target.started[0].commands if c["do"] == "time"]
    assert all(c["timeout_s"] >= 120 + 4 * len(c["order"]) for c in timed)


# Disturbances

DISTURBANCES: dict[str, dict[str, Any]] = {
    "fixed work took longer": {"canary_ns": [200_000, 500_000]},
    "the cgroup's quota": {"counters": {"throttled": 1}},
    "the host took the processor": {"counters": {"steal_ticks": 5}},
    "others waited for a core": {"counters": {"cpu_stall_us": 50_000}},
    "it was interrupted": {"counters": {"involuntary_switches": 20}},
}


def every_fifth(note: dict[str, Any]) -> Surroundings:
    return lambda block: note if block % 5 == 4 else QUIET


@pytest.mark.parametrize("note", DISTURBANCES.values(), ids=list(DISTURBANCES))
def test_a_disturbed_block_says_what_disturbed_it(tmp_path: Path, note: dict[str, Any]) -> None:
    found = race(tmp_path, v={"latencies": lognormal(5), "surroundings": every_fifth(note)})
    found.run(need())
    blocks = found["v"].profile.blocks
    assert [block.disturbance is not None for block in blocks] == [
        number % 5 == 4 for number in range(len(blocks))
    ]
    assert found.decision("v", need()) == "accept"


@pytest.mark.parametrize(
    "note",
    [
        {"canary_ns": [190_000, 230_000]},
        {"counters": {"steal_ticks": 1}},
        {"counters": {"involuntary_switches": 1}},
        {"counters": {"major_faults": 3, "throttled": 0, "cpu_stall_us": 100}},
    ],
)
def test_small_unrest_is_no_disturbance(tmp_path: Path, note: dict[str, Any]) -> None:
    found = race(tmp_path, v={"latencies": lognormal(5), "surroundings": lambda block: note})
    found.run(need())
    assert all(block.disturbance is None for block in found["v"].profile.blocks)


def bursts(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """A good model's calls; a quarter of the blocks is slow from end to end."""
    usual = 5 * MS * rng.lognormal(0, 0.05, count)
    return np.asarray(usual * (6 if rng.random() < 0.25 else 1), np.int64)


def test_slow_calls_of_disturbed_blocks_do_not_reject(tmp_path: Path) -> None:
    """Whoever else was slow then is told by the same draw as the latencies."""
    slow: list[bool] = []

    def draw(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        samples = bursts(rng, count)
        slow.append(bool(np.median(samples) > 15 * MS))
        return samples

    def noted(block: int) -> dict[str, Any]:
        return {"counters": {"steal_ticks": 9}} if slow[-1] else QUIET

    found = race(tmp_path, v={"latencies": draw, "surroundings": noted})
    found.run(need(), Limits(max_samples=3000, min_seconds=0))
    assert found.decision("v", need()) == "undecided"
    assert found.calls("v") < 3000  # a machine this noisy is given up early
    unnoticed = race(tmp_path, w={"latencies": bursts})
    unnoticed.run(need(), Limits(max_samples=3000, min_seconds=0))
    assert unnoticed.decision("w", need()) == "reject"


# The reference, and what is timed for information


def test_the_reference_keeps_the_others_company(tmp_path: Path) -> None:
    found = race(tmp_path, source=lognormal(50), v=with_slow(5, 0.01, 30), reference="source")
    found.run(need(), Limits(max_samples=2000, min_seconds=0))
    assert found.decision("source", need()) == "reject"
    names = timed_by(found.target.log)
    # Long after it was rejected it is still timed, so that speed-ups have a partner in time.
    assert "source" in names[-10:]
    assert len(found["source"].profile.blocks) >= len(found["v"].profile.blocks) / 5


def test_the_reference_alone_has_nobody_to_wait_for(tmp_path: Path) -> None:
    found = race(tmp_path, source=lognormal(50), v=lognormal(5), reference="source")
    found.run(need(), Limits(max_samples=100_000))
    assert found.decision("v", need()) == "accept"
    assert found.calls("source") <= found.calls("v") + 100


def test_what_is_out_of_the_race_is_timed_for_its_row_only(tmp_path: Path) -> None:
    found = race(tmp_path, rough=lognormal(5), good=lognormal(5))
    found["rough"].judged = False
    found.run(need())
    assert 100 <= found.calls("rough") <= 150
    assert found.calls("good") >= 497


# Processes


def test_fresh_processes_take_turns(tmp_path: Path) -> None:
    found = race(tmp_path, good=lognormal(5), processes=3)
    found.run(need())
    blocks = found["good"].profile.blocks
    assert [block.process for block in blocks] == [i % 3 for i in range(len(blocks))]
    assert len(blocks) >= 6
    assert len({worker.folder for worker in found.target.started}) == 3


def test_opening_notes_what_loading_took(tmp_path: Path) -> None:
    found = race(tmp_path, v={"latencies": lognormal(5), "peak_bytes": 9_000})
    profile = found["v"].profile
    assert profile.load_ns == 5 * MS
    assert profile.first_call_ns > 0
    assert (profile.warmup_calls, profile.steady, profile.peak_bytes) == (40, True, 9_000)
    assert found["v"].call_ns == pytest.approx(5 * MS, rel=0.2)
    assert found["v"].rss_bytes == 5_000


def test_one_process_that_never_gets_steady_is_enough_to_say_so(tmp_path: Path) -> None:
    found = race(tmp_path, v={"latencies": lognormal(5), "steady": False}, processes=2)
    assert found["v"].profile.steady is False
    assert found["v"].profile.warmup_calls == 80


def test_memory_is_the_most_that_any_process_took(tmp_path: Path) -> None:
    found = race(tmp_path, v={"latencies": lognormal(5), "peak_bytes": 9_000}, processes=2)
    found.target.started[1].peak_bytes = 12_000
    found.run(need())
    assert found["v"].profile.peak_bytes == 12_000


def test_outputs_are_read_in_order(tmp_path: Path) -> None:
    found = race(tmp_path, v=lognormal(5))
    outputs = collect_outputs(found["v"], 3, Limits())
    assert np.array_equal(outputs["y"], np.arange(6).reshape(3, 2))
    assert found["v"].rss_bytes == 7_000


def test_outputs_that_hold_nan_are_refused(tmp_path: Path) -> None:
    found = race(tmp_path, v={"latencies": lognormal(5), "nans": 4})
    with pytest.raises(WorkerError, match="output y holds 4 NaN"):
        collect_outputs(found["v"], 3, Limits())


def test_a_timed_call_that_gives_nan_costs_its_contender(tmp_path: Path) -> None:
    found = race(
        tmp_path, v={"latencies": lognormal(5), "surroundings": lambda _: {"nans": ["y"]}},
        w=lognormal(5),
    )  # fmt: skip
    found.run(need())
    assert found["v"].error == "its output y holds NaN values in a timed call"
    assert not found["v"].profile.blocks
    assert found["w"].error is None


def test_a_confirmation_that_goes_on_draws_other_samples(tmp_path: Path) -> None:
    """Or a rare slow input that was not among them would be missed again, as new evidence."""
    profile, drawn = Profile(()), []
    for calls in (200, 400):
        target = FakeTarget(v=lognormal(5))
        job = Job(Path("v.onnx"), tmp_path / "inputs", tmp_path / "v")
        contender = Contender("v", job, profile=profile)
        limits = Limits(max_samples=calls, min_seconds=0.0)
        confirmation = Confirmation(target, need("p99=6ms"), 1000, seed=0)
        confirmation.time(contender, limits, lambda *_: None, lambda: None)
        drawn.append([tuple(order) for fake in target.started for order in fake.orders])
        profile = contender.profile
    assert all(drawn)
    assert not set(drawn[0]) & set(drawn[1])


def test_closing_ends_all_processes(tmp_path: Path) -> None:
    found = race(tmp_path, v=lognormal(5), processes=3)
    found["v"].close()
    assert all(worker.closed for worker in found.target.started)
    assert found["v"].workers == []


# Limits


def test_limits_expire_at_their_deadline() -> None:
    assert Limits(deadline=time.monotonic() - 1).expired
    assert not Limits(deadline=time.monotonic() + 1000).expired
    assert not Limits().expired


def test_half_of_the_time_left() -> None:
    now = time.monotonic()
    halved = Limits(deadline=now + 1000, max_samples=7).part(0.5)
    assert halved.deadline == pytest.approx(now + 500, abs=60)
    assert halved.max_samples == 7
    assert Limits().part(0.5) == Limits()
