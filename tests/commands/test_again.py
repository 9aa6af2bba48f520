"""The same command again: nothing is done twice, killed runs go on, and only --fresh measures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from running import Running
from watched import Watched

from optimize.budgets.budget import Budget
from optimize.cache.store import Store
from optimize.passes.chain import Chain
from optimize.request import Request
from optimize.results.report import Result, VariantReport
from optimize.run.pipeline import run
from optimize.targets.base import Job

CHAINS = ("fold,fuse", "fold,fuse,int8{mode=static}")


Again = Callable[..., tuple[Result, list[Job]]]


@pytest.fixture
def again(digits_onnx: Path, digits_npz: Path, tmp_path: Path, cache: Path) -> Again:
    """Run on the one cache, and tell which workers it took."""

    def start(**changes: Any) -> tuple[Result, list[Job]]:
        target = Watched()
        request = Request(
            digits_onnx,
            (Budget.parse("p90=2s"),),
            data=str(digits_npz),
            chains=tuple(map(Chain.parse, CHAINS)),
            threads=1,
            out=tmp_path / "out",
            cache=cache,
        )
        result = run(replace(request, **changes), target=target)
        assert result.error is None
        return result, target.jobs

    return start


def facts(row: VariantReport) -> VariantReport:
    """A row without what is another on every run."""
    return replace(row, build_s=0.0, profile_s=0.0, recalled=False, steps=())


def test_a_second_run_starts_no_worker_and_says_the_same(again: Again) -> None:
    first, workers = again()
    assert len(workers) >= len(CHAINS) + 1
    second, none = again()
    assert none == []
    assert second.report.chosen == first.report.chosen
    assert list(map(facts, second.report.variants)) == list(map(facts, first.report.variants))
    assert [row.profile_s for row in second.report.variants] == [0.0] * 3
    assert all(row.recalled for row in second.report.variants)
    assert any("3 of 3 variants are an earlier run's" in note for note in second.report.notes)


def test_what_is_asked_afresh_is_measured_again(again: Again) -> None:
    first, before = again()
    second, after = again(fresh=True)
    assert len(after) == len(before)
    assert not any(row.recalled for row in second.report.variants)
    assert second.report.variants[0].digest == first.report.variants[0].digest
    samples = [row.latency and row.latency.samples for row in second.report.variants]
    third, none = again()
    assert none == []
    assert [row.latency and row.latency.samples for row in third.report.variants] == samples


def test_another_promise_is_confirmed_by_samples_of_its_own(again: Again) -> None:
    again()
    other, workers = again(budgets=(Budget.parse("p90=1s"),))
    # Those timed side by side are known; what is chosen by them is not confirmed by them.
    assert len(workers) == 3
    assert len({job.model for job in workers}) == 1
    assert other.exit_code == 0


def test_a_new_chain_is_measured_beside_the_source_only(again: Again) -> None:
    # Without a budget on latency: the more contenders share an error, the more calls each needs.
    size = (Budget.parse("size=1GB"),)
    again(chains=(Chain.parse(CHAINS[0]),), budgets=size)
    _, workers = again(budgets=size)
    assert {job.scratch.parent.name for job in workers} <= {"variant-0", "variant-2"} | {
        job.scratch.parent.name for job in workers if job.scratch.parent.name.startswith("fresh")
    }


@pytest.mark.parametrize("moment", ["build:", "calls timed", "fresh process 2"])
def test_a_killed_run_goes_on_where_it_was(
    moment: str,
    start: Callable[..., Running],
    digits_onnx: Path,
    digits_npz: Path,
    tmp_path: Path,
    cache: Path,
) -> None:
    words = (
        digits_onnx, "--data", digits_npz, "--budget", "p90=2s", "--chain", CHAINS[0],
        "--chain", CHAINS[1], "--threads", 1, "--cache", cache, "--verbose",
        "--out", tmp_path / "out",
    )  # fmt: skip
    killed = start(*words)
    killed.wait_for(moment)
    killed.note_children(1)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    assert killed.orphans() == {}
    known = {entry.name for entry in cache.rglob("entries/*")}
    resumed = start(*words)
    code, stdout, stderr = resumed.finish()
    assert code == 0, stdout + stderr
    assert "damaged" not in stdout
    assert {entry.name for entry in cache.rglob("entries/*")} >= known
    assert not list(resumed.temporary.glob("optimize-*"))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "cache", "tmp"}


def test_two_runs_at_once_build_everything_once_and_are_both_right(
    start: Callable[..., Running], digits_onnx: Path, digits_npz: Path, tmp_path: Path, cache: Path
) -> None:
    def begin(out: Path) -> Running:
        return start(
            digits_onnx, "--data", digits_npz, "--budget", "p90=2s", "--chain", CHAINS[0],
            "--chain", CHAINS[1], "--threads", 1, "--cache", cache, "--out", out,
        )  # fmt: skip

    running = [begin(tmp_path / name) for name in ("one", "two")]
    for one in running:
        code, stdout, stderr = one.finish()
        assert code == 0, stdout + stderr
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("one", "two")]
    first, second = ({row["chain"]: row for row in r["variants"]} for r in reports)
    for chain in CHAINS:
        assert first[chain]["digest"] == second[chain]["digest"]
    # A pass's time is in the report of the run that carried it out, and in no other.
    kept = Store(cache).entries()
    passes = [entry.meta["what"] for entry in kept if " of " in entry.meta["what"]]
    built = [
        what for what in passes if what.split("{")[0].split(" ")[0] in ("fold", "fuse", "int8")
    ]
    assert len(built) == len(set(built)) >= 3
    total = sum(row["build_s"] for rows in (first, second) for row in rows.values())
    once = sum(entry.meta.get("seconds", 0) for entry in kept)
    assert total == pytest.approx(once, rel=1e-6)
