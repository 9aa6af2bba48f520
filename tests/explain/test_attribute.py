"""The layer that was spoilt has its name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from optimize.explain.layers import comparable, worst_layers
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult
from optimize.passes.chain import Chain
from optimize.processes.child import Child

if TYPE_CHECKING:
    from conftest import GraphMaker

Apply = Callable[..., PassResult]


def chain(graph: GraphMaker) -> Model:
    rng = np.random.default_rng(0)
    names = ["x", "a", "b", "c", "y"]
    weights = {f"w{i}": (rng.standard_normal((64, 64)) / 8).astype(np.float32) for i in range(4)}
    nodes = [
        helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], name=f"layer{i}")
        for i in range(4)
    ]
    shape = ("float32", ("n", 64))
    return graph(nodes, {"x": shape}, {"y": shape}, weights)


def spoilt(model: Model, weight: str, folder: Path) -> Model:
    """A copy whose weight holds as much noise as signal."""
    proto = onnx.load(str(model.path))
    tensor = next(t for t in proto.graph.initializer if t.name == weight)
    array = numpy_helper.to_array(tensor)
    noise = np.random.default_rng(1).standard_normal(array.shape).astype(np.float32) * array.std()
    tensor.CopyFrom(numpy_helper.from_array(array + noise, weight))
    folder.mkdir()
    onnx.save(proto, str(folder / "model.onnx"))
    return Model.read(folder / "model.onnx")


@pytest.mark.parametrize("layer", range(4))
def test_a_destroyed_layer_is_named(
    layer: int, graph: GraphMaker, rows: Dataset, tmp_path: Path
) -> None:
    model = chain(graph)
    found = worst_layers(model, spoilt(model, f"w{layer}", tmp_path / "spoilt"), rows)
    assert [loss.node for loss in found] == [f"layer{layer}"]
    # The noise has the signal's power: 0 dB, in theory.
    assert found[0].sqnr_db == pytest.approx(0, abs=1)
    assert f"layer{layer} (MatMul): SQNR falls from a clean input to" in str(found[0])


def test_a_destroyed_layer_is_named_among_quantized_ones(
    graph: GraphMaker, rows: Dataset, apply: Apply, tmp_path: Path
) -> None:
    model = chain(graph)
    bad = spoilt(model, "w2", tmp_path / "spoilt")
    quantized = apply("int8{mode=static,ops=matmul}", bad, rows).model
    assert worst_layers(model, quantized, rows, most=1)[0].node == "layer2"


def test_what_is_equal_loses_nothing(graph: GraphMaker, rows: Dataset, tmp_path: Path) -> None:
    model = chain(graph)
    shutil.copy(model.path, tmp_path / "same.onnx")
    assert worst_layers(model, Model.read(tmp_path / "same.onnx"), rows) == ()


def test_a_relu_that_the_quantizer_left_out_is_not_blamed(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply
) -> None:
    folded = apply("fold,fuse", Model.read(digits_onnx), digits_samples).model
    quantized = apply("int8{mode=static}", folded, digits_samples).model
    some = digits_samples.take(range(8))
    for loss in worst_layers(folded, quantized, some, most=9):
        assert loss.sqnr_db > 10, loss


def test_masks_do_not_count(graph: GraphMaker, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["a"], name="masked"),
        helper.make_node("Max", ["a", "low"], ["y"], name="kept"),
    ]
    shape = ("float32", ("n", 4))
    weights = {"mask": np.float32([0, 0, -3.4e38, 0]), "low": np.float32([-5] * 4)}
    model = graph(nodes, {"x": shape}, {"y": shape}, weights)
    weights["mask"] = np.float32([0, 0, -65504, 0])
    clipped = graph(nodes, {"x": shape}, {"y": shape}, weights)
    data = Dataset("d", {"x": [np.ones((1, 4), np.float32)]}, batch_first=True)
    assert worst_layers(model, clipped, data) == ()


def test_layers_are_compared_with_what_their_format_was_changed_from(
    graph: GraphMaker, tmp_path: Path
) -> None:
    source = chain(graph)
    before = spoilt(source, "w1", tmp_path / "before")
    static = "int8{mode=static}"
    for text, at_hand, standard in (
        (static, {}, source),
        (f"fold,fuse,{static},session{{spinning=false}}", {}, source),
        (f"fold,{static}", {"fold": before}, before),
        (f"equalize,{static}", {"equalize": before}, before),
        (f"equalize,{static}", {}, None),
        ("distill,fp16", {}, None),
        ("smooth", {}, None),
        ("int8{mode=static,recover=distill}", {}, None),
    ):
        assert comparable(Chain.parse(text), {"source": source, **at_hand}) is standard, text


def test_it_runs_in_the_child(graph: GraphMaker, rows: Dataset, tmp_path: Path) -> None:
    model = chain(graph)
    child = Child()
    try:
        found = child.call(worst_layers, model, spoilt(model, "w1", tmp_path / "spoilt"), rows, 1)
    finally:
        child.close()
    assert found[0].tensor == "b"
