"""Passes write to their own folder, whatever the libraries in them leave elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult

if TYPE_CHECKING:
    from conftest import GraphMaker, Outputs

Apply = Callable[..., PassResult]
SIDE = 8


@pytest.fixture
def inverse(tmp_path: Path) -> Model:
    """Two products around an operator whose shape onnxruntime's inference does not know.

    It then saves what it has to the current folder.
    """
    weight = np.eye(SIDE, dtype=np.float32) + np.float32(0.01)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Inverse", ["a"], ["b"], domain="com.microsoft"),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIDE, SIDE]) for name in "xy"
    )
    graph = helper.make_graph(nodes, "inverse", [x], [y], [numpy_helper.from_array(weight, "w")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "inverse" / "model.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return Model.read(path)


@pytest.fixture
def matrices() -> Dataset:
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((8, 1, SIDE, SIDE), np.float32)
    return Dataset("matrices", {"x": list(np.eye(SIDE, dtype=np.float32) + noise)})


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the user is in."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_current_folder_stays_empty(
    inverse: Model, matrices: Dataset, apply: Apply, elsewhere: Path
) -> None:
    result = apply("int8{mode=static}", inverse, matrices)
    assert result.model.quantized
    assert list(elsewhere.iterdir()) == []
    assert Path.cwd() == elsewhere


@pytest.mark.parametrize("text", ["fold", "fuse", "int8{mode=static}", "session{level=BASIC}"])
def test_a_model_may_be_named_from_the_current_folder(
    text: str,
    graph: GraphMaker,
    rows: Dataset,
    apply: Apply,
    outputs: Outputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(graph.linear(constants=True).path.parent)
    model = Model.read(Path("network.onnx"))
    result = apply(text, model, rows)
    got, want = outputs(result.model, rows), outputs(model, rows)
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
    assert [path.name for path in Path.cwd().iterdir()] == ["network.onnx"]


@pytest.mark.parametrize("options", [{}, {"external": "weights/w.bin"}])
@pytest.mark.parametrize("text", ["int8{mode=dynamic}", "int8{mode=static}", "int8{mode=weights}"])
def test_nothing_is_written_beside_the_model(
    text: str, options: dict[str, Any], graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    model = graph.linear(**options)
    before = model.path.parent.stat().st_mtime_ns  # changes with every file made or removed
    assert apply(text, model, rows).model.quantized
    assert model.path.parent.stat().st_mtime_ns == before
