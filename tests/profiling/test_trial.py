"""Candidates timed beside a reference by real workers; nothing here depends on how long they take."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from optimize.errors import WorkerError
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.profiling.trial import Trial
from optimize.targets.base import Settings
from optimize.targets.local import LocalTarget

if TYPE_CHECKING:
    from conftest import GraphMaker


@pytest.fixture
def trial(rows: Dataset) -> Trial:
    return Trial(LocalTarget(), Settings(), rows, {"p99": 10**6})


def test_every_candidate_gets_shares_of_the_reference(
    trial: Trial, graph: GraphMaker, tmp_path: Path
) -> None:
    model = graph.linear()
    sent: Trial = pickle.loads(pickle.dumps(trial))  # as it travels to the child
    with sent.race(model, "onnxruntime", tmp_path / "race", None) as race:
        assert race.shares([], 0.99) == []
        assert race.reference_ns(0.99) > 0  # it was timed alone
        shares = race.shares([model, model], 0.99)
        assert race.reference_ns(0.99) >= race.reference_ns(0.5) > 0
    assert len(shares) == 2
    assert all(share.typical > 0 and share.tail > 0 for share in shares)


def test_a_candidate_that_does_not_run_is_an_error(
    trial: Trial, graph: GraphMaker, tmp_path: Path
) -> None:
    model = graph.linear()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    other = Model.of("openvino", (broken,), model.signature)
    with (
        trial.race(model, "onnxruntime", tmp_path / "race", None) as race,
        pytest.raises(WorkerError),
    ):
        race.shares([other], 0.99)


def test_results_belong_to_budget_settings_and_samples(trial: Trial, rows: Dataset) -> None:
    others = (
        Trial(trial.target, trial.settings, rows, {"p99": 2 * 10**6}),
        Trial(trial.target, Settings(threads=2), rows, {"p99": 10**6}),
        Trial(trial.target, trial.settings, rows.take(range(3)), {"p99": 10**6}),
    )
    assert all(other.identity != trial.identity for other in others)
    again = Trial(LocalTarget(), Settings(), rows, {"p99": 10**6})
    assert again.identity == trial.identity
