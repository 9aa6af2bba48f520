"""Folding computes once what is constant, and changes no output."""

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
    from conftest import GraphMaker

Apply = Callable[..., PassResult]
Outputs = Callable[..., Any]
VECTOR = ("float32", ("n", 64))


def constant(name: str, array: Any) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def wasteful(graph: GraphMaker) -> Model:
    """Constants multiplied at run time, a sum computed twice, and a node that nobody needs."""
    two = np.full(64, 2, np.float32)
    nodes = [
        constant("two", two),
        helper.make_node("Mul", ["two", "two"], ["four"]),
        helper.make_node("Add", ["x", "four"], ["a"]),
        helper.make_node("Add", ["x", "four"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["y"]),
        helper.make_node("Exp", ["x"], ["dead"]),
    ]
    return graph(nodes, {"x": VECTOR}, {"y": VECTOR})


def test_constants_doubles_and_dead_code_go(graph: GraphMaker, rows: Dataset, apply: Apply) -> None:
    result = apply("fold", wasteful(graph), rows)
    assert dict(result.model.op_counts) == {"Add": 1, "Mul": 1}
    assert result.changed
    assert result.notes == ("4 fewer nodes",)


def test_the_outputs_stay_exactly_the_same(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    result = apply("fold", wasteful(graph), rows)
    want = np.concatenate([(x.astype(np.float64) + 4) ** 2 for x in rows.inputs["x"]])
    np.testing.assert_allclose(outputs(result.model, rows), want, rtol=1e-6)
    assert result.difference is not None
    assert result.difference.relative == 0


def test_the_input_file_is_not_touched(graph: GraphMaker, rows: Dataset, apply: Apply) -> None:
    model = wasteful(graph)
    result = apply("fold", model, rows)
    assert result.model.path != model.path
    assert Model.read(model.path) == model


def test_nothing_to_fold_gives_the_model_back(
    graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    model = graph.linear()
    result = apply("fold", model, rows)
    assert not result.changed
    assert result.model == model
    assert result.notes == ("nothing to fold",)


def test_weights_in_constant_nodes_become_initializers(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear(constants=True)
    result = apply("fold", model, rows)
    assert result.model.count("Constant") == 0
    assert len(onnx.load(result.model.path).graph.initializer) == 2
    np.testing.assert_array_equal(outputs(result.model, rows), outputs(model, rows))


def branching(graph: GraphMaker, condition: bool | None) -> Model:
    """``x`` times one of two matrices, each a Constant in its branch; None decides by the input."""
    rng = np.random.default_rng(0)
    branches = [
        helper.make_graph(
            [
                constant(f"w{name}", rng.standard_normal((64, 64)).astype(np.float32)),
                helper.make_node("MatMul", ["x", f"w{name}"], [f"y{name}"]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(f"y{name}", TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]
    choose = helper.make_node("If", ["on"], ["y"], then_branch=branches[0], else_branch=branches[1])
    if condition is not None:
        return graph([constant("on", np.array(condition)), choose], {"x": VECTOR}, {"y": VECTOR})
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["on"]),
        choose,
    ]
    return graph(nodes, {"x": VECTOR}, {"y": VECTOR}, {"limit": np.array(2.4, np.float32)})


def test_constants_in_branches_go_and_both_branches_stay_right(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = branching(graph, None)
    taken = {bool(x.max() > 2.4) for x in rows.inputs["x"]}
    assert taken == {True, False}  # both branches are seen
    result = apply("fold", model, rows)
    assert dict(result.model.op_counts) == {"ReduceMax": 1, "Greater": 1, "If": 1, "MatMul": 2}
    np.testing.assert_array_equal(outputs(result.model, rows), outputs(model, rows))


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_that_is_never_taken_goes(
    condition: bool, graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = branching(graph, condition)
    result = apply("fold", model, rows)
    assert dict(result.model.op_counts) == {"MatMul": 1}
    assert result.model.size_bytes < 0.6 * model.size_bytes
    np.testing.assert_array_equal(outputs(result.model, rows), outputs(model, rows))


def test_integer_weights_stay_integers(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    weights = np.random.default_rng(0).integers(-127, 128, (64, 64)).astype(np.int8)
    model = graph(
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Identity", ["product"], ["y"]),
        ],
        {"x": VECTOR},
        {"y": VECTOR},
        {"q": weights, "scale": np.array(0.01, np.float32)},
    )
    result = apply("fold", model, rows)
    assert result.model.count("DequantizeLinear") == 1
    assert result.model.size_bytes <= 1.05 * model.size_bytes
    np.testing.assert_array_equal(outputs(result.model, rows), outputs(model, rows))


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_any_operator_set_keeps_its_version(
    opset: int, graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear(opset=opset, constants=True)
    result = apply("fold", model, rows)
    assert result.model.opset == opset
    np.testing.assert_array_equal(outputs(result.model, rows), outputs(model, rows))


@pytest.mark.parametrize("location", ["network.onnx.data", "weights/w.bin"])
@pytest.mark.parametrize("text", ["fold", "fuse", "fold,fuse"])
def test_weights_in_a_side_file_survive(
    text: str,
    location: str,
    graph: GraphMaker,
    rows: Dataset,
    apply: Apply,
    outputs: Outputs,
    tmp_path: Path,
) -> None:
    model = graph.linear(external=location)
    result = apply(text, model, rows)
    np.testing.assert_array_equal(outputs(result.model, rows), outputs(model, rows))
    assert Model.read(model.path) == model


def test_shapes_stay_dynamic(digits_onnx: Path, digits_samples: Dataset, apply: Apply) -> None:
    model = Model.read(digits_onnx)
    result = apply("fold", model, digits_samples)
    assert result.model.signature == model.signature
