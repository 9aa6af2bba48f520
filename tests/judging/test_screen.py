"""What a whole screening does with variants whose latencies are scripted and outputs are real."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from optimize.budgets.budget import Budget, Floor
from optimize.errors import WorkerError
from optimize.judging.screen import Screening
from optimize.passes.chain import Chain
from optimize.profiling.measure import Contender, Limits, open_worker
from optimize.request import Request
from optimize.results.report import Report, VariantReport
from optimize.run.pipeline import run
from optimize.targets.base import Job
from optimize.targets.local import LocalTarget, LocalWorker

if TYPE_CHECKING:
    from conftest import Digits

FOLD, STATIC, DYNAMIC = "fold,fuse", "fold,fuse,int8{mode=static}", "fold,fuse,int8{mode=dynamic}"
# Milliseconds of most calls, and of one call in ``every``.
Script = tuple[float, float, int]


class Scripted:
    """A real worker whose clock is scripted: the machine is quiet, and every call as told."""

    def __init__(self, worker: LocalWorker, script: Script, *, breaks: bool) -> None:
        self._worker = worker
        self._script = script
        self._breaks = breaks
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def call(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        if command == "time":  # one real call shows that it still runs
            many = len(arguments["order"])
            reply = self._worker.call(command, timeout_s, **{**arguments, "order": [0]})
            return {**reply, "samples": self._samples(many), "canary_ns": [1000], "counters": {},
                    "parts": {}}  # fmt: skip
        if command == "outputs" and arguments["part"] and self._breaks:
            raise WorkerError("the worker was ended by SIGSEGV")
        reply = self._worker.call(command, timeout_s, **arguments)
        if command == "warmup":
            reply |= {"p50_ns": int(self._script[0] * 1e6), "steady": True}
        return reply

    def _samples(self, many: int) -> str:
        usual, slow, every = self._script
        numbers = np.arange(self._calls, self._calls + many)
        self._calls += many
        # A thousandth of spread keeps samples apart, as real ones are.
        jitter = 1 + np.random.default_rng(self._calls).uniform(0, 1e-3, many)
        ms = np.where((numbers + 1) % every == 0, slow, usual) * jitter
        return base64.b64encode((ms * 1e6).astype(np.int64).tobytes()).decode()


class Target(LocalTarget):
    """Gives every variant, by its place, and who is confirmed first the latency of the script.

    The one at ``breaks`` fails in the second part of the samples.
    """

    def __init__(
        self, variants: dict[str, Script], fresh: Script | None = None, breaks: str = ""
    ) -> None:
        self._variants = variants
        self._breaks = breaks
        self._fresh = fresh
        self._first = ""
        self.started = 0

    def start(self, job: Job, timeout_s: float) -> tuple[Any, dict[str, Any]]:
        worker, ready = super().start(job, timeout_s)
        self.started += 1
        place = job.scratch.parent.name
        script = self._variants.get(place, (10.0, 10.0, 2))
        if place.startswith("fresh") and self._fresh:
            self._first = self._first or place
            script = self._fresh if place == self._first else script
        return Scripted(worker, script, breaks=place == self._breaks), ready


Screen = Callable[..., Report]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that all tests build their variants in, once; what they measure is their own."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture
def screen(
    digits_onnx: Path, digits: Digits, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Screen:
    """Screen two chains on all the digits, in turns; without what takes seconds besides."""
    monkeypatch.setattr("optimize.run.pipeline.LEAST_TIME_FOR_PEAKS_S", float("inf"))
    monkeypatch.setattr("optimize.reports.folder.drawn", lambda *_: {})
    np.savez(tmp_path / "data.npz", image=digits.image, labels=digits.labels)

    def begin(target: Target, **changes: Any) -> Report:
        request = Request(
            digits_onnx,
            (Budget.parse("p99=20ms"),),
            floor=Floor.parse("drop=0.05"),
            data=str(tmp_path / "data.npz"),
            chains=tuple(map(Chain.parse, (FOLD, STATIC))),
            threads=1,
            out=tmp_path / "out",
            cache=built,
            fresh="cache" not in changes,
        )
        result = run(replace(request, **changes), target=target)
        assert result.error is None
        return result.report

    return begin


def calls(row: VariantReport) -> int:
    assert row.latency is not None
    return row.latency.samples


# In the long run 0.5% of its calls are over the limit, which takes thousands of calls to show.
OPEN: Script = (6.0, 25.0, 200)
FAST: Script = (3.0, 3.0, 2)


def test_a_beaten_variant_is_not_timed_to_the_end_and_says_by_whom(screen: Screen) -> None:
    report = screen(Target({"variant-1": OPEN, "variant-2": FAST}))
    beaten = report.variant(FOLD)
    assert report.chosen == STATIC
    assert beaten.status == "skipped"
    assert "its p99 is at least" in beaten.reason
    assert f"of the source's median, that of {STATIC} at most 0.300" in beaten.reason
    assert 0 < calls(beaten) < 3000


def test_a_slow_variant_lets_a_much_faster_one_go_first(screen: Screen) -> None:
    """It would hold the budget too; once the faster one does, that is not worth its time."""
    report = screen(Target({"variant-1": (15.0, 15.0, 2), "variant-2": FAST}))
    assert report.chosen == STATIC
    assert report.variant(FOLD).status == "skipped"
    assert 100 <= calls(report.variant(FOLD)) <= 200


def test_cheap_calls_are_timed_to_the_end(screen: Screen) -> None:
    """Nothing worth speaking of is saved, and the same run ends in the same statuses."""
    report = screen(Target({"variant-0": (2.0, 2.0, 2), "variant-1": (2.0, 2.0, 2),
                            "variant-2": (1.0, 1.0, 2)}))  # fmt: skip
    assert [row.status for row in report.variants] == ["kept"] * 3


def test_who_is_slower_beyond_doubt_lets_the_faster_go_first(screen: Screen) -> None:
    """Slower by a fifth shows long before it shows that the faster one holds the budget."""
    scripts = {"variant-1": (3.6, 25.0, 300), "variant-2": (3.0, 25.0, 700)}
    report = screen(Target(scripts))
    assert report.chosen == STATIC
    assert report.variant(FOLD).status == "skipped"
    assert calls(report.variant(FOLD)) < calls(report.variant(STATIC))


def test_a_beaten_source_is_timed_to_bounds_and_keeps_company(screen: Screen) -> None:
    report = screen(Target({"variant-1": (6.0, 6.0, 2), "variant-2": (3.0, 25.0, 300)}))
    source = report.variant("source")
    assert source.status == "skipped"
    assert source.latency is not None
    assert source.latency.p99_upper_ms is not None
    assert 500 <= calls(source) < calls(report.variant(STATIC))


def test_without_a_budget_all_are_timed_until_their_p99_has_bounds(screen: Screen) -> None:
    report = screen(
        Target({"variant-1": (6.0, 6.0, 2), "variant-2": FAST}), budgets=(), everything=True
    )
    assert report.chosen == STATIC
    assert {row.status for row in report.variants if row.latency} == {"kept"}
    assert all(calls(row) >= 500 for row in report.variants)


def test_a_comparison_gives_every_variant_its_share_of_calls(screen: Screen) -> None:
    report = screen(Target({"variant-1": OPEN, "variant-2": FAST}), everything=True)
    assert report.variant(FOLD).status == "undecided"
    assert calls(report.variant(FOLD)) >= 500


@pytest.mark.parametrize("objective", ["accuracy", "size"])
def test_who_wants_no_speed_has_no_variant_beaten_by_it(objective: Any, screen: Screen) -> None:
    report = screen(
        Target({"variant-1": OPEN, "variant-2": FAST}), objective=objective, max_samples=1000
    )
    assert all("not timed to the end" not in row.reason for row in report.variants)


def test_what_was_beaten_is_timed_on_if_the_winner_is_not_confirmed(screen: Screen) -> None:
    scripts = {"variant-1": OPEN, "variant-2": FAST}
    report = screen(Target(scripts, fresh=(50.0, 50.0, 2)))
    beaten = screen(Target(scripts)).variant(FOLD)
    assert report.variant(STATIC).status == "too_slow"
    assert "not timed to the end" not in report.variant(FOLD).reason
    assert calls(report.variant(FOLD)) > calls(beaten)
    assert report.chosen not in (STATIC, None)


class Counted(Target):
    """Counts the workers that are open at once."""

    def __init__(self) -> None:
        super().__init__({"variant-2": FAST})
        self.open: list[LocalWorker] = []
        self.most_fresh = 0

    def start(self, job: Job, timeout_s: float) -> tuple[Any, dict[str, Any]]:
        worker, ready = super().start(job, timeout_s)
        if job.scratch.parent.name.startswith("fresh"):
            self.open = [w for w in self.open if w._process.poll() is None]
            self.open.append(worker._worker)
            self.most_fresh = max(self.most_fresh, len(self.open))
        return worker, ready


@pytest.mark.parametrize(("room", "at_once"), [(1 << 40, 3), (1, 1)])
def test_a_model_too_large_for_three_is_confirmed_one_after_the_other(
    room: int, at_once: int, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimize.profiling.confirm.FRESH_BYTES", room)
    target = Counted()
    report = screen(target)
    assert report.chosen == STATIC
    latency = report.variant(STATIC).latency
    assert latency is not None
    assert (latency.processes, target.most_fresh) == (3, at_once)


def test_less_than_three_fresh_processes_confirm_nothing(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the time limit leaves time for but one of three that do not fit side by side."""
    opened: list[Contender] = []

    def open_first(target: Any, contender: Contender, limits: Limits) -> None:
        fresh = contender.job.scratch.name.startswith("fresh")
        if not fresh or contender not in opened:
            open_worker(target, contender, limits)
            opened.append(contender)

    monkeypatch.setattr("optimize.profiling.confirm.open_worker", open_first)
    monkeypatch.setattr("optimize.profiling.confirm.FRESH_BYTES", 1)
    # So few calls are enough to accept at so little confidence.
    report = screen(Target({"variant-2": FAST}), confidence=0.6)
    row = report.variant(STATIC)
    assert row.latency is not None
    assert row.latency.processes == 1
    assert row.status == "undecided"
    assert row.reason.startswith("only 1 of 3 fresh processes were timed")
    assert report.chosen is None


HOPELESS = "prune{kind=mask,ratio=0.97}"


def test_who_cannot_be_confirmed_in_time_keeps_what_was_timed(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm = Screening.confirm

    def late(self: Screening, limits: Limits, observer: Any) -> None:
        confirm(self, replace(limits, deadline=0.0), observer)

    monkeypatch.setattr(Screening, "confirm", late)
    report = screen(Target({"variant-1": FAST, "variant-2": FAST}), everything=True)
    assert report.exit_code == 3
    assert report.chosen is None
    row = report.variant(FOLD)
    assert row.status == "undecided"
    assert row.reason.startswith("no time was left to confirm it in fresh processes; by screening")
    assert calls(row) >= 100
    assert all(row.status != "kept" for row in report.variants)


def test_a_hopeless_accuracy_shows_in_a_part_of_the_samples(screen: Screen) -> None:
    chains = (Chain.parse(HOPELESS),)
    report = screen(Target({}), chains=chains)
    row, source = report.variants[1], report.variants[0]
    assert row.accuracy is not None
    assert source.accuracy is not None
    assert row.status == "inaccurate"
    assert row.accuracy.samples == source.accuracy.samples // 5
    assert f"{row.accuracy.samples} of {source.accuracy.samples} samples" in row.reason
    whole = screen(Target({}), chains=chains, everything=True).variants[1]
    assert whole.accuracy is not None
    assert whole.accuracy.samples == source.accuracy.samples


def test_a_good_accuracy_takes_all_samples(screen: Screen) -> None:
    report = screen(Target({}))
    assert {row.accuracy.samples for row in report.variants if row.accuracy} == {
        report.data.evaluation_samples
    }


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every call took so long that most samples are better left for later."""
    monkeypatch.setattr("optimize.judging.evaluate.PART_S", -1.0)


SLOW: Script = (50.0, 50.0, 2)


@pytest.mark.usefixtures("in_parts")
def test_only_who_is_chosen_is_evaluated_on_all_samples(screen: Screen) -> None:
    report = screen(Target({"variant-1": SLOW, "variant-2": FAST}))
    slow, fast, source = (report.variant(name) for name in (FOLD, STATIC, "source"))
    total = report.data.evaluation_samples
    assert report.chosen == STATIC
    assert fast.accuracy is not None
    assert fast.accuracy.samples == total
    assert slow.status == "too_slow"
    assert slow.accuracy is not None
    assert slow.accuracy.samples == total // 5
    assert slow.reason.endswith(f"; {total // 5} of {total} samples were evaluated so far")
    assert source.status in ("kept", "skipped")
    whole = screen(Target({"variant-2": FAST}), everything=True)
    assert {v.accuracy.samples for v in whole.variants if v.accuracy} == {total}
    # In two parts or in one: the same outputs, compared with the same.
    again = whole.variant(STATIC).accuracy
    assert again is not None
    assert (again.value, again.change_low) == (fast.accuracy.value, fast.accuracy.change_low)


@pytest.mark.usefixtures("in_parts")
def test_who_is_behind_the_chosen_one_anyway_is_skipped(screen: Screen) -> None:
    quick: Script = (1.0, 1.0, 2)  # cheap calls, which are timed to the end
    chains = tuple(map(Chain.parse, ("fold,fuse,fp16", STATIC)))
    target = Target({"variant-1": quick, "variant-2": (0.5, 0.5, 2)})
    alone = LocalTarget().device().granted_cores  # so many threads that one is evaluated at a time
    report = screen(target, chains=chains, threads=alone)
    row = report.variant("fold,fuse,fp16")
    assert row.accuracy is not None
    assert row.accuracy.samples < report.data.evaluation_samples
    assert row.status == "skipped"
    assert row.reason.startswith(f"not evaluated to the end: {STATIC} is chosen before it; ")


@pytest.mark.usefixtures("in_parts")
def test_what_only_a_part_of_the_samples_shows_is_never_kept(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("complete", "front"):
        monkeypatch.setattr(f"optimize.judging.settle.Settling.{step}", lambda *_: None)
    report = screen(Target({"variant-1": SLOW, "variant-2": FAST}))
    row = report.variant(STATIC)
    assert report.chosen is None
    assert row.status == "undecided"
    assert "may miss the floor" in row.reason


@pytest.mark.usefixtures("in_parts")
def test_a_winner_that_proves_inaccurate_gives_way_to_whom_it_beat(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part does not show it beyond doubt: here nothing does."""
    monkeypatch.setattr("optimize.judging.scoring.HOPELESS_ERROR", 0.0)
    hopeless = str(Chain.parse(HOPELESS))
    chains = tuple(map(Chain.parse, (FOLD, HOPELESS)))
    target = Target({"variant-1": (6.0, 6.0, 2), "variant-2": FAST})
    report = screen(target, chains=chains, metric="cosine", floor=Floor.parse("cosine=0.999"))
    assert report.variant(hopeless).status == "inaccurate"
    assert report.chosen == FOLD
    assert calls(report.variant(FOLD)) > 500


@pytest.mark.usefixtures("in_parts")
def test_whom_an_inaccurate_variant_beat_early_is_back(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A median is soon shown to hold: others are given up before anybody is evaluated wholly."""
    monkeypatch.setattr("optimize.judging.scoring.HOPELESS_ERROR", 0.0)
    chains = tuple(map(Chain.parse, (FOLD, HOPELESS)))
    target = Target({"variant-1": (6.0, 6.0, 2), "variant-2": FAST})
    budgets = (Budget.parse("p50=20ms"),)
    floor = Floor.parse("cosine=0.999")
    report = screen(target, chains=chains, metric="cosine", floor=floor, budgets=budgets)
    assert report.variant(str(Chain.parse(HOPELESS))).status == "inaccurate"
    assert report.chosen == FOLD
    compared = screen(
        target, chains=chains, metric="cosine", floor=floor, budgets=budgets, everything=True
    )
    assert compared.chosen == FOLD


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("objective", ["size", "accuracy", "latency"])
def test_without_a_budget_on_latency_something_is_chosen(objective: Any, screen: Screen) -> None:
    budgets = (Budget.parse("size=10MB"),)
    report = screen(Target({}), objective=objective, budgets=budgets)
    assert report.chosen is not None
    chosen = report.variant(report.chosen).accuracy
    assert chosen is not None
    assert not chosen.provisional


@pytest.mark.usefixtures("in_parts")
def test_who_breaks_in_the_second_part_costs_itself_only(screen: Screen) -> None:
    scripts = {"variant-1": (6.0, 6.0, 2), "variant-2": FAST}
    report = screen(Target(scripts, breaks="variant-2"))
    assert report.variant(STATIC).status == "failed"
    assert "SIGSEGV" in report.variant(STATIC).reason
    assert report.chosen == FOLD


@pytest.mark.usefixtures("in_parts")
def test_a_source_that_breaks_in_the_second_part_keeps_nothing_and_loses_nothing(
    screen: Screen,
) -> None:
    scripts = {"variant-1": (6.0, 6.0, 2), "variant-2": FAST}
    report = screen(Target(scripts, breaks="variant-0"))
    assert report.chosen is None
    assert report.exit_code != 0
    assert {row.status for row in report.variants} <= {"failed", "undecided", "skipped"}
    assert "the source cannot be judged" in report.variant(STATIC).reason
    assert report.variant(STATIC).latency is not None


def test_a_comparison_evaluates_wholly_what_an_earlier_run_gave_up(
    screen: Screen, tmp_path: Path
) -> None:
    chains, cache = (Chain.parse(HOPELESS),), tmp_path / "cache"
    part = screen(Target({}), chains=chains, cache=cache).variants[1].accuracy
    whole = screen(Target({}), chains=chains, cache=cache, everything=True).variants[1].accuracy
    assert part is not None
    assert whole is not None
    assert whole.samples > part.samples


@pytest.mark.usefixtures("in_parts")
def test_if_nothing_holds_the_nearest_miss_is_evaluated(screen: Screen) -> None:
    slower, source = (60.0, 60.0, 2), {"variant-0": (70.0, 70.0, 2)}
    report = screen(Target({**source, "variant-1": slower, "variant-2": SLOW}))
    total = report.data.evaluation_samples
    far, near = report.variant(FOLD).accuracy, report.variant(STATIC).accuracy
    assert far is not None
    assert near is not None
    assert (far.samples, near.samples) == (total // 5, total)
    assert report.nearest_miss is not None
    assert report.nearest_miss.startswith(STATIC)
    # One that is inaccurate besides is no near miss; the next is evaluated, too.
    chains = tuple(map(Chain.parse, (FOLD, HOPELESS)))
    report = screen(Target({**source, "variant-1": slower, "variant-2": SLOW}), chains=chains)
    assert report.variant(str(Chain.parse(HOPELESS))).status == "inaccurate"
    nearest = report.variant(FOLD).accuracy
    assert nearest is not None
    assert nearest.samples == total


@pytest.mark.usefixtures("in_parts")
def test_a_second_run_evaluates_nothing_again(screen: Screen, tmp_path: Path) -> None:
    scripts = {"variant-1": SLOW, "variant-2": FAST}
    first = screen(Target(scripts), cache=tmp_path / "cache")
    target = Target(scripts)
    again = screen(target, cache=tmp_path / "cache")
    assert target.started == 0
    assert [(v.chain, v.status, v.accuracy) for v in again.variants] == [
        (v.chain, v.status, v.accuracy) for v in first.variants
    ]


def test_what_missed_one_floor_is_evaluated_anew_for_another(
    screen: Screen, tmp_path: Path
) -> None:
    """A part of the samples was enough to tell for the first floor, and says nothing of others."""
    chains = (Chain.parse(HOPELESS),)
    first = screen(Target({}), chains=chains, cache=tmp_path / "cache").variants[1]
    other = screen(
        Target({}), chains=chains, cache=tmp_path / "cache", floor=Floor.parse("drop=0.9")
    ).variants[1]
    assert first.accuracy is not None
    assert other.accuracy is not None
    assert first.accuracy.samples < 100
    assert other.accuracy.samples > 300


def test_who_leads_is_confirmed_by_fresh_processes_alone(screen: Screen) -> None:
    """Screening shows only that it is the fastest; its share of the error is a half."""
    report = screen(Target({"variant-1": (6.0, 6.0, 2), "variant-2": (3.0, 3.0, 2)}))
    chosen, slower = report.variant(STATIC), report.variant(FOLD)
    assert report.chosen == STATIC
    assert (chosen.status, slower.status) == ("kept", "skipped")
    assert chosen.reason.startswith("in 3 fresh processes, p99 holds: 0 of ")
    # ln(2 / 0.005) of evidence, of which each call that does not exceed gives -ln(1 - 0.01).
    assert calls(chosen) >= np.log(2 / 0.005) / -np.log(0.99)
    assert calls(slower) <= 600


def test_who_led_and_is_not_confirmed_leaves_the_next_a_quarter(screen: Screen) -> None:
    scripts = {"variant-0": SLOW, "variant-1": (6.0, 6.0, 2), "variant-2": FAST}
    report = screen(Target(scripts, fresh=SLOW))
    assert report.variant(STATIC).status == "too_slow"
    assert report.variant(STATIC).reason.startswith("in 3 fresh processes, ")
    assert report.chosen == FOLD
    assert calls(report.variant(FOLD)) >= np.log(2 / 0.0025) / -np.log(0.99)


def test_who_is_not_evaluated_in_half_of_the_time_has_its_turn_later(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluating ends for the time being when half of what is left is used; then it goes on."""
    monkeypatch.setattr("optimize.judging.screen.EVALUATE_SHARE", 0.0)
    monkeypatch.setattr("optimize.judging.evaluate.Evaluation.side_by_side", 1)
    target = Target({"variant-1": (6.0, 6.0, 2), "variant-2": FAST})
    report = screen(target, time_limit_s=600.0)
    assert report.chosen == STATIC
    assert all(row.accuracy for row in report.variants)
    assert calls(report.variant(FOLD)) > 100
