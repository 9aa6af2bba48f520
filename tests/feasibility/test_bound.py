"""Bounds of a run's models: what is kept, what must not fail, and which precision counts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_reports import profile

from optimize.budgets.budget import Budget
from optimize.building.plan import built_in
from optimize.cache.entries import key_of
from optimize.cache.store import Store
from optimize.feasibility.bound import Bounder, _in_time, changes_architecture, typical
from optimize.feasibility.peaks import Peaks
from optimize.feasibility.roofline import Bounds
from optimize.models.data import Dataset
from optimize.passes.chain import Chain
from optimize.processes.child import Child, ChildDied
from optimize.results.latency import LatencyReport
from optimize.results.report import VariantReport
from optimize.targets.local import LocalTarget

VERSIONS = {"onnxruntime": "1", "numpy": "1"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as opened:
        yield opened


@pytest.fixture(autouse=True)
def _ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the processes of all that a test has made."""
    made: list[Bounder] = []
    begin = Bounder.__post_init__

    def noted(self: Bounder) -> None:
        begin(self)
        made.append(self)

    monkeypatch.setattr(Bounder, "__post_init__", noted)
    yield
    for one in made:
        one.close()


def bounder(store: Store | None) -> Bounder:
    return Bounder(LocalTarget().device(), 1, VERSIONS, store)


class NoChild:
    def call(self, *_: Any) -> Any:
        raise AssertionError("what is kept is not made again")

    def close(self) -> None:
        pass


def test_peaks_and_costs_are_kept(graph: Any, rows: Dataset, store: Store) -> None:
    model = graph.linear()
    first = bounder(store)
    bounds = first.judge_source(model, rows)
    assert first.notes == []
    assert bounds is not None
    assert bounds.cost.direct.total == 2 * 64 * 64
    assert bounds.peaks.gops["int8"] >= 4 * bounds.peaks.gops["float32"] > 0
    first.settle()
    again = bounder(store)
    again._child = NoChild()  # type: ignore[assignment]
    again.prepare()
    assert again.judge_source(model, rows) == first.source
    again.settle()
    assert first.source is not None
    assert again.bound(model, Chain.parse("fold")) == first.source.ms["float32"]


def test_what_is_counted_beside_the_builds_is_not_counted_again(graph: Any, rows: Dataset) -> None:
    known, source, rival = bounder(None), graph.linear(), graph.linear(constants=True)
    assert known.judge_source(source, rows) is not None
    known.count_ahead(rival)
    known.rest()
    known._child = NoChild()  # type: ignore[assignment]
    assert known.bound(rival, Chain.parse("fold")) is not None


def test_what_could_not_be_counted_beside_the_builds_has_no_bound(
    graph: Any, rows: Dataset, tmp_path: Path
) -> None:
    known = bounder(None)
    assert known.judge_source(graph.linear(), rows) is not None
    gone = replace(graph.linear(), path=tmp_path / "gone.onnx", digest="gone")
    known.count_ahead(gone)
    known.rest()
    assert known.bound(gone, Chain.parse("fold")) is None


def test_a_glance_says_what_is_possible_and_a_longer_look_what_is_not(
    graph: Any, rows: Dataset, store: Store
) -> None:
    model, known = graph.linear(), bounder(store)
    key = key_of(known._peak_parts())
    known.prepare()
    seen = known.judge_source(model, rows)
    assert seen is not None
    assert known.infeasible([Budget.parse("p99=1s")], 1) is None
    assert store.document(key) is None
    found = known.infeasible([Budget.parse("p99=1ns")], 1)
    assert found is not None
    assert found.factor > 100
    assert store.document(key) is not None
    settled = known.source
    assert settled is not None
    assert all(settled.ms[precision] <= seen.ms[precision] for precision in seen.ms)
    known._child = NoChild()  # type: ignore[assignment]
    assert known.infeasible([Budget.parse("p99=1ns")], 1) == found


def test_a_glance_may_take_a_cache_for_the_memory_and_is_not_kept_as_such(
    graph: Any, rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = bounder(None)
    cached = Peaks({"float32": 50.0, "int8": 200.0}, 400.0, 5.0, winograd=False)
    measured = iter([cached, replace(cached, gops={"float32": 40.0}, bandwidth_gbs=20.0)])
    monkeypatch.setattr(known, "_measured", lambda _: next(measured))
    assert known.judge_source(graph.linear(), rows) is not None
    known.settle()
    assert known.source is not None
    assert known.source.peaks == replace(cached, bandwidth_gbs=20.0)


def test_a_kept_glance_refuses_nothing_where_there_is_no_time_to_look_longer(
    graph: Any, rows: Dataset, store: Store
) -> None:
    killed = bounder(store)
    assert killed.judge_source(graph.linear(), rows) is not None
    killed.close()
    again = replace(bounder(store), hurried=True)
    assert again.judge_source(graph.linear(), rows) is None
    assert again.infeasible([Budget.parse("p99=1ns")], 1) is None


def test_peaks_of_a_disturbed_moment_refuse_nothing(
    graph: Any, rows: Dataset, store: Store
) -> None:
    model, budget = graph.linear(), Budget.parse("p99=50ms")
    once = bounder(store)
    peaks = once.judge_source(model, rows).peaks  # type: ignore[union-attr]
    slow = replace(peaks, gops={kind: speed / 1e8 for kind, speed in peaks.gops.items()})
    key = key_of(once._peak_parts())
    store.put(key, json.dumps(asdict(slow)).encode(), {"what": "peaks"})
    again = bounder(store)
    source = again.judge_source(model, rows)
    assert source is not None
    assert source.floor_ms > 50
    assert again.infeasible([budget], 1) is None
    assert json.loads(store.document(key) or "")["gops"]["float32"] > slow.gops["float32"]


def test_a_chain_that_asks_for_threads_is_bounded_by_them(
    graph: Any, rows: Dataset, store: Store
) -> None:
    model, known = graph.linear(), bounder(store)
    source = known.judge_source(model, rows)
    assert source is not None
    # So much to do that the call's own overhead is nothing beside it.
    much = replace(source.cost, direct=replace(source.cost.direct, plain=10**12))
    much = replace(much, winograd=much.direct)
    known.source = Bounds.of(much, source.peaks, 1)
    one, two = Chain.parse("fold"), Chain.parse("fold,session{threads=2}")
    plain = known.planned(one)
    assert plain is not None
    assert known.planned(two) == pytest.approx(plain / 2, rel=0.01)
    served = model.configured({"intra_op_num_threads": "4"})
    bound, served_by_four = known.bound(model, one), known.bound(served, two)
    assert bound is not None
    assert served_by_four is not None
    assert served_by_four <= bound
    found = known.infeasible([Budget.parse("p99=1ms")], 2)
    assert found is not None
    assert "with 2 threads" in found.reason


def test_who_has_no_time_gets_no_bound_but_what_is_known(
    graph: Any, rows: Dataset, store: Store
) -> None:
    model = graph.linear()
    hurried = bounder(store)
    hurried.hurried = True
    assert hurried.judge_source(model, rows) is None
    assert "the time limit leaves no time" in hurried.notes[0]
    other = bounder(store)
    assert other.judge_source(model, rows) is not None
    other.settle()
    assert hurried.judge_source(model, rows) is not None


def test_a_bound_that_was_beaten_is_none_and_the_peaks_are_forgotten(
    graph: Any, rows: Dataset, store: Store
) -> None:
    model, known = graph.linear(), bounder(store)
    bounds = known.judge_source(model, rows)
    assert bounds is not None
    known.settle()
    row = VariantReport("source", "onnxruntime", "kept", "", LatencyReport.of(profile(1.0), 0.99))
    assert known.checked(row, 0.5).bound_ms == 0.5
    assert known.checked(row, None).bound_ms is None
    assert known.notes == []
    assert known.checked(row, 2.0).bound_ms is None
    assert "faster than its bound" in known.notes[0]
    assert store.document(key_of(known._peak_parts())) is None


def test_what_cannot_be_counted_has_no_bound_and_a_note(
    graph: Any, rows: Dataset, store: Store
) -> None:
    model = graph.linear()
    model.path.write_bytes(b"no graph")
    lost = bounder(store)
    assert lost.judge_source(model, rows) is None
    assert len(lost.notes) == 1
    assert lost.notes[0].startswith("no bound of the latency is known: ")
    assert lost.bound(model, Chain()) is None
    assert lost.planned(Chain()) is None


def test_what_takes_too_long_is_given_up() -> None:
    child = Child()
    with pytest.raises(ChildDied, match="SIGALRM"):
        child.call(_in_time, 1, partial(time.sleep, 60))
    assert child.call(_in_time, 1, partial(abs, -3)) == 3
    child.close()


def test_a_typical_call_is_below_the_median(graph: Any) -> None:
    rng = np.random.default_rng(0)
    arrays = [np.zeros((1, n), np.float32) for n in rng.permutation(np.arange(1, 101))]
    size = next(iter(typical(Dataset("x", {"x": arrays})).values())).size
    assert 25 <= size <= 35


def test_chains_that_leave_operations_out_are_not_bound_by_the_source(
    graph: Any, rows: Dataset, store: Store
) -> None:
    assert changes_architecture(Chain.parse("prune{on=module,ratio=0.5},fold"))
    assert not changes_architecture(Chain.parse("fold,fuse,int8{mode=static}"))
    runtimes = ("onnxruntime", "openvino")
    plan = built_in(graph.linear(), True, runtimes, everything=True)
    assert [str(chain) for chain in plan if changes_architecture(chain)] == []
    known = bounder(store)
    model = graph.linear()
    bounds = known.judge_source(model, rows)
    assert bounds is not None
    compiled = replace(model, format="openvino")
    assert known.bound(compiled, Chain.parse("fold@openvino")) == bounds.floor_ms
    assert known.bound(compiled, Chain.parse("prune{ratio=0.5}@openvino")) is None
    hinted = model.configured({"INFERENCE_PRECISION_HINT": "bf16"})
    assert known.bound(hinted, Chain.parse("bf16@openvino")) == bounds.ms.get("bfloat16")
    assert known.planned(Chain.parse("fold,int8{mode=static}")) == bounds.ms["int8"]
    assert known.planned(Chain.parse("fold,fuse,fp16")) == bounds.ms["float16"]
    assert known.planned(Chain.parse("int8{mode=weights,bits=4}")) == bounds.ms["int4"]
    assert known.planned(Chain.parse("prune{ratio=0.5}")) is None


def test_what_is_begun_is_neither_waited_for_nor_heard() -> None:
    child = Child()
    child.begin(int, "no number")
    child.begin(time.sleep, 0.2)
    assert child.call(abs, -3) == 3
    child.begin(time.sleep, 60)
    child.close()
    assert child.call(abs, -4) == 4
    child.begin(os._exit, 7)
    with pytest.raises(ChildDied, match="code 7"):
        child.call(abs, -5)
    child.close()
