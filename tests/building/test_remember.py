"""Results of passes are kept between runs, and used only for exactly the same work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from optimize.building.remember import Remembered
from optimize.cache.store import Store
from optimize.errors import NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain
from optimize.passes.distill import Distill
from optimize.passes.fold import Fold
from optimize.passes.lower import Compile
from optimize.passes.prune import Prune
from optimize.processes.locks import lock

if TYPE_CHECKING:
    from conftest import GraphMaker, Outputs

Run = Callable[..., PassResult]


class Counted:
    """Runs passes in this process and counts them."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, step: Pass, model: Model, context: Context) -> PassResult:
        self.runs += 1
        return step(model, context)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def run(tmp_path: Path, rows: Dataset, counted: Counted) -> Run:
    """Apply one pass as a run of its own would, with the one cache."""
    number = iter(range(100))

    def apply(
        text: str, model: Model, versions: dict[str, str] | None = None, **changes: Any
    ) -> PassResult:
        folder = tmp_path / f"run-{next(number)}"
        folder.mkdir()
        context = Context(folder, rows.take(range(4)), rows, isa=frozenset({"avx512_vnni"}))
        with Store(tmp_path / "cache") as store:
            remembered = Remembered(store, counted, versions or {"onnx": "1"})
            return remembered(Chain.parse(text).passes[0], model, replace(context, **changes))

    return apply


def test_the_second_run_finds_the_first_ones_result(
    run: Run, graph: GraphMaker, rows: Dataset, outputs: Outputs, counted: Counted
) -> None:
    model = graph.linear()
    first, second = (run("int8{mode=static}", model) for _ in range(2))
    assert counted.runs == 1
    assert second.model.digest == first.model.digest
    assert second.notes == first.notes
    assert np.array_equal(outputs(second.model, rows), outputs(first.model, rows))


def test_exact_passes_keep_their_measured_difference(
    run: Run, graph: GraphMaker, counted: Counted
) -> None:
    model = graph.linear(constants=True)
    first, second = (run("fold", model) for _ in range(2))
    assert counted.runs == 1
    assert second.difference == first.difference
    assert (second.changed, second.model.digest) == (True, first.model.digest)


def test_options_of_the_session_come_back_without_a_copy(
    run: Run, graph: GraphMaker, counted: Counted
) -> None:
    model = graph.linear()
    first, second = (run("session{level=BASIC}", model) for _ in range(2))
    assert counted.runs == 1
    assert second.model.config == first.model.config != ()
    assert second.model.path == model.path


@pytest.mark.parametrize(
    "change",
    [
        {"versions": {"onnx": "2"}},
        {"seed": 1},
        {"isa": frozenset({"avx2"})},
        {"calibration": Dataset("other", {"x": [np.ones((1, 64), np.float32)] * 4}, None, True)},
    ],
)
def test_whatever_a_result_depends_on_makes_another(
    run: Run, graph: GraphMaker, counted: Counted, change: dict[str, Any]
) -> None:
    model = graph.linear()
    run("int8{mode=static}", model)
    run("int8{mode=static}", model, **change)
    run("int8{mode=static,per=tensor}", model)
    assert counted.runs == 3


def test_refusals_are_kept_with_their_reason(run: Run, graph: GraphMaker, counted: Counted) -> None:
    model = graph.linear()
    reasons = []
    for _ in range(2):
        with pytest.raises(NotApplicable) as refusal:
            run("int8{mode=static,ops=conv}", model)
        reasons.append(str(refusal.value))
    assert counted.runs == 1
    assert reasons[0] == reasons[1] != ""


def test_what_is_missing_today_may_be_there_tomorrow(
    graph: GraphMaker, rows: Dataset, counted: Counted, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("shutil.which", lambda _: None)
    module = replace(graph.linear(), format="torch")
    with Store(tmp_path / "cache") as store:
        remembered = Remembered(store, counted, {"torch": "2"})
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            context = Context(tmp_path / str(number), rows, runtime="inductor")
            with pytest.raises(NotApplicable, match=r"needs a C\+\+ compiler"):
                remembered(Compile(), module, context)
    assert counted.runs == 2


def test_a_damaged_entry_is_made_again(
    run: Run, graph: GraphMaker, counted: Counted, tmp_path: Path
) -> None:
    model = graph.linear()
    first = run("int8{mode=static}", model)
    for file in (tmp_path / "cache").rglob("model.onnx"):
        file.chmod(0o644)
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert run("int8{mode=static}", model).model.digest == first.model.digest
    assert counted.runs == 2


@dataclass
class Bench:
    """Only its identity matters here."""

    identity: Mapping[str, Any]


def test_what_was_timed_holds_for_its_budget_and_device_only(
    run: Run, graph: GraphMaker, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Prune, "apply", lambda _, model, context: PassResult(model, False))
    model = graph.linear()
    for identity in ({"p99": 1}, {"p99": 2}, {"p99": 1}, {"p99": 1, "cpu": "other"}):
        run("prune{to=p99}", model, bench=Bench(identity))
    assert counted.runs == 3
    for identity in ({"p99": 1}, {"p99": 2}):  # a pass that times nothing does not care
        run("fold", model, bench=Bench(identity))
    assert counted.runs == 4


def test_what_was_trained_holds_for_its_samples_only(
    run: Run, graph: GraphMaker, rows: Dataset, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distill, "takes", ("onnx", "torch"))
    monkeypatch.setattr(Distill, "apply", lambda _, model, context: PassResult(model, False))
    model = graph.linear()
    for training in (None, rows.take(range(3)), rows.take(range(2)), None):
        run("distill", model, training=training)
    assert counted.runs == 3


def test_a_finished_step_is_kept_however_late_it_is(
    run: Run, graph: GraphMaker, counted: Counted
) -> None:
    first, second = (run("int8{mode=static}", graph.linear(), deadline=0.0) for _ in range(2))
    assert counted.runs == 1
    assert second.model.digest == first.model.digest


@pytest.mark.parametrize("deadline", [0.0, None])  # training stops before its deadline
def test_what_was_cut_short_is_not_taken_for_the_whole(
    deadline: float | None,
    run: Run,
    graph: GraphMaker,
    counted: Counted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def apply(_: Pass, model: Model, context: Context) -> PassResult:
        return PassResult(model, False, cut_short=counted.runs == 1)

    monkeypatch.setattr(Distill, "takes", ("onnx", "torch"))
    monkeypatch.setattr(Distill, "apply", apply)
    for _ in range(3):
        run("distill", graph.linear(), deadline=deadline)
    assert counted.runs == 2


@dataclass(frozen=True)
class Timed(Fold):
    """A pass whose answer depends on the moment."""

    @property
    def times(self) -> bool:
        return True

    def apply(self, model: Model, context: Context) -> PassResult:
        raise NotApplicable("too slow just now")


def test_what_a_moment_has_refused_is_tried_again_and_alone(
    graph: GraphMaker, rows: Dataset, counted: Counted, tmp_path: Path
) -> None:
    model, alone = graph.linear(), []

    def execute(step: Pass, given: Model, context: Context) -> PassResult:
        alone.append(lock(tmp_path / "cache" / "v1" / "turn", shared=True) is None)
        return counted(step, given, context)

    with Store(tmp_path / "cache") as store:
        remembered = Remembered(store, execute, {"onnx": "1"})
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            with pytest.raises(NotApplicable, match="too slow just now"):
                remembered(Timed(), model, Context(tmp_path / str(number), rows))
    assert counted.runs == 2
    assert alone == [True, True]  # nobody else on the cache builds while candidates are timed
