"""Models with side files: what those of more than 2 GB go through, shown on small ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

from optimize.building.build import Builder, Sources
from optimize.building.remember import Remembered
from optimize.cache.store import Store
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain
from optimize.passes.files import load_proto, save_proto
from optimize.results import output

if TYPE_CHECKING:
    from conftest import GraphMaker, Outputs

CHAINS = ("fold", "fold,int8{mode=weights}")
_LOAD = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"x": numpy.load(sys.argv[2])})[0])
"""


@pytest.fixture
def source(graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model that counts as too large for one file; its folder was moved since it was made."""
    for name in ("base", "files"):
        monkeypatch.setattr(f"optimize.passes.{name}.INLINE_MOST", 4096)
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((64, 64), np.float32) / 8 for n in ("w1", "w2")}
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"]),  # to be folded
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Mul", ["a", "two"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    made = graph(
        nodes,
        {"x": ("float32", ("n", 64))},
        {"y": ("float32", ("n", 64))},
        {**weights, "one": np.ones(64, np.float32)},
        external="weights/w.bin",
    )
    return Model.read(Path(shutil.move(made.path.parent, tmp_path / "moved")) / made.path.name)


def execute(step: Pass, model: Model, context: Context) -> PassResult:
    return step(model, context)


def refuse(step: Pass, model: Model, context: Context) -> PassResult:
    raise AssertionError(f"{step} ran again")


def build(source: Model, rows: Dataset, folder: Path, store: Store, run: Any) -> list[Model]:
    folder.mkdir()
    builder = Builder(
        Sources(source), Context(folder, rows.take(range(2))), Remembered(store, run, {})
    )
    variants = [builder.build(Chain.parse(text)) for text in CHAINS]
    assert [variant.reason for variant in variants] == ["", ""]
    return [variant.model for variant in variants if variant.model]


def side_files(model: Model) -> list[str]:
    proto = onnx.load(model.path, load_external_data=False)
    return sorted({e.value for t in proto.graph.initializer for e in t.external_data[:1]})


def loaded_elsewhere(path: Path, rows: Dataset, cwd: Path) -> Any:
    """Outputs by plain onnxruntime in a process of its own, in another folder."""
    cwd.mkdir()
    np.save(cwd / "x.npy", np.concatenate(rows.inputs["x"]))
    command = [sys.executable, "-c", _LOAD, str(path), "x.npy", "y.npy"]
    subprocess.run(command, cwd=cwd, check=True, timeout=60)
    return np.load(cwd / "y.npy")


def test_side_files_go_through_passes_cache_and_result(
    source: Model, rows: Dataset, outputs: Outputs, tmp_path: Path
) -> None:
    want = outputs(source, rows)
    with Store(tmp_path / "cache") as store:
        first = build(source, rows, tmp_path / "run-1", store, execute)
        again = build(source, rows, tmp_path / "run-2", store, refuse)
        assert [model.digest for model in again] == [model.digest for model in first]
        for model in (*first, *again):
            assert side_files(model) == ["model.onnx.data"]  # never one file of more than 2 GB
        path = output.write(
            tmp_path / "out", json.dumps({}), {"members": output.members(again[-1])}, again[-1], {}
        )
    assert path is not None
    shutil.rmtree(tmp_path / "cache")  # what was written must stand for itself
    shutil.rmtree(tmp_path / "run-1")
    shutil.rmtree(tmp_path / "moved")
    moved = Path(shutil.move(tmp_path / "out", tmp_path / "served")) / path.name
    assert {file.name for file in moved.parent.iterdir()} >= {"model.onnx", "model.onnx.data"}
    got = loaded_elsewhere(moved, rows, tmp_path / "service")
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


def test_changed_graphs_keep_their_weights_beside_them(
    source: Model, rows: Dataset, outputs: Outputs, tmp_path: Path
) -> None:
    (tmp_path / "pass").mkdir()
    context = Context(tmp_path / "pass", rows.take(range(2)))
    saved = save_proto(load_proto(source), context)
    assert side_files(saved) == ["model.onnx.data"]
    assert saved.path.stat().st_size < 4096
    np.testing.assert_array_equal(outputs(saved, rows), outputs(source, rows))
