"""A whole run with a search: judged like any other, and the same again without work."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from watched import Watched

from optimize.budgets.budget import Budget, Floor
from optimize.building.build import Variant
from optimize.commands.console import SHOWN_TRIALS, show, shown
from optimize.passes.chain import Chain
from optimize.request import Request
from optimize.results.report import Result
from optimize.run.pipeline import run
from optimize.targets.base import Job

TRIALS = 4
PLAN = ("fold,fuse", "fold,fuse,int8{mode=static}")


Again = Callable[..., tuple[Result, list[Job]]]


@pytest.fixture(scope="module")
def again(
    digits_onnx: Path,
    digits_npz: Path,
    known_device: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Again:
    folder = tmp_path_factory.mktemp("search")
    shutil.copytree(known_device, folder / "cache")

    def start(**changes: Any) -> tuple[Result, list[Job]]:
        target = Watched()
        request = Request(
            digits_onnx,
            (Budget.parse("p90=2s"),),
            floor=Floor.parse("drop=0.1"),
            data=str(digits_npz),
            chains=tuple(map(Chain.parse, PLAN)),
            threads=1,
            max_samples=200,
            trials=TRIALS,
            tune_session=True,
            out=folder / "out",
            cache=folder / "cache",
        )
        result = run(replace(request, **changes), target=target)
        assert result.error is None
        return result, target.jobs

    return start


@pytest.fixture(scope="module")
def first(again: Again) -> Result:
    result, workers = again()
    assert workers
    return result


def test_trials_are_rows_with_verdicts_of_their_own(first: Result) -> None:
    rows = [row for row in first.report.variants if row.trial]
    measured = [row for row in rows if row.digest or row.status == "failed"]
    assert len(measured) == TRIALS
    assert len({row.chain for row in first.report.variants}) == len(first.report.variants)
    assert all(row.reason for row in rows)
    for row in measured:
        if row.status != "failed":
            assert row.accuracy is not None
            assert row.latency is not None
            assert row.speedup is not None
            assert [step.step for step in row.steps] == list(
                map(str, Chain.parse(row.chain).passes)
            )
    assert any(f"{TRIALS} of {TRIALS} trials made" in note for note in first.report.notes)


def test_the_session_is_tuned_on_the_best_and_shown(first: Result) -> None:
    tuned = [r for r in first.report.variants if "session{" in r.chain and not r.trial]
    cores = first.report.device.granted_cores
    if cores > 1:
        assert any(row.config.get("intra_op_num_threads") == str(cores) for row in tuned)
    bases = {row.chain.rpartition(",session")[0] for row in tuned}
    assert len(bases) <= 1
    assert all(row.status != "failed" for row in tuned)


def test_the_same_again_makes_the_same_trials_without_work(first: Result, again: Again) -> None:
    second, workers = again()
    assert workers == []
    told = [(row.chain, row.status, row.digest, row.latency and row.latency.samples)
            for row in first.report.variants]  # fmt: skip
    assert told == [(row.chain, row.status, row.digest, row.latency and row.latency.samples)
                    for row in second.report.variants]  # fmt: skip
    assert second.report.chosen == first.report.chosen


def test_more_trials_go_on_from_there(first: Result, again: Again) -> None:
    more, _ = again(trials=TRIALS + 1)
    before = [row.chain for row in first.report.variants]
    after = [row.chain for row in more.report.variants]
    assert after[: len(before)] == before


def test_time_that_is_up_ends_the_search(again: Again) -> None:
    result, _ = again(trials=500, time_limit_s=8.0)
    note = next(note for note in result.report.notes if "trials made" in note)
    assert "the time limit left none for more" in note


def test_a_failing_trial_is_a_row_and_the_search_goes_on(
    again: Again, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.run import beyond

    build = beyond.build_one
    planned = {str(prefix) for text in PLAN for prefix in Chain.parse(text).prefixes()}
    failed: list[Chain] = []

    def failing(builder: Any, limits: Any, chain: Chain) -> Variant:
        if failed or str(chain) in {"source", *planned}:
            return build(builder, limits, chain)
        failed.append(chain)
        return Variant(chain, None, "failed", "prune raised on purpose")

    monkeypatch.setattr(beyond, "build_one", failing)
    result, _ = again(cache=None, trials=2, tune_session=False)
    rows = [row for row in result.report.variants if row.trial]
    assert [row.chain for row in rows if row.status == "failed"] == list(map(str, failed))
    assert rows[0].reason == "prune raised on purpose"
    assert any(row.latency for row in rows)


def test_the_table_shows_the_plan_and_the_best_trials(first: Result) -> None:
    row = next(row for row in first.report.variants if row.latency and row.accuracy)
    rng = np.random.default_rng(0)
    many = [
        replace(row, chain=f"trial-{n}", trial=True, status=status, speedup=float(speed))
        for n, (status, speed) in enumerate(
            zip(["kept", "inaccurate"] * 20, rng.uniform(1, 3, 40), strict=True)
        )
    ]  # fmt: skip
    planned = [row for row in first.report.variants if not row.trial]
    report = replace(first.report, variants=(*planned, *many), chosen=planned[0].chain)
    rows = shown(report)
    assert rows[: len(planned)] == planned
    assert len(rows) <= len(planned) + SHOWN_TRIALS
    console = Console(file=io.StringIO(), width=200)
    show(replace(first, report=report), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"and {len(planned) + 40 - len(rows)} trials" in text
