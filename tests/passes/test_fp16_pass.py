"""Half precision: half the weights, the same interface, a bounded error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimize.errors import InputError, NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult
from optimize.passes.chain import Chain

if TYPE_CHECKING:
    from conftest import GraphMaker

Apply = Callable[..., PassResult]
Outputs = Callable[..., Any]


def test_weights_are_halved_and_the_interface_stays(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply
) -> None:
    model = Model.read(digits_onnx)
    result = apply("fold,fuse,fp16", model, digits_samples)
    assert result.model.size_bytes < 0.65 * model.size_bytes
    assert result.model.signature == model.signature
    types = {tensor.data_type for tensor in onnx.load(result.model.path).graph.initializer}
    assert TensorProto.FLOAT16 in types
    assert Model.read(digits_onnx) == model


def test_outputs_are_within_half_precision(
    digits_onnx: Path, digits_samples: Dataset, digits_logits: Any, apply: Apply, outputs: Outputs
) -> None:
    result = apply("fold,fuse,fp16", Model.read(digits_onnx), digits_samples)
    got = outputs(result.model, digits_samples)
    assert np.abs(got - digits_logits).max() < 0.01 * np.abs(digits_logits).max()
    assert np.mean(got.argmax(1) == digits_logits.argmax(1)) >= 0.99


def test_casts_are_counted(graph: GraphMaker, rows: Dataset, apply: Apply) -> None:
    result = apply("fp16", graph.linear(), rows)
    assert result.model.count("Cast") == 2
    assert result.notes == ("2 casts inserted",)


@pytest.mark.parametrize("options", [{"constants": True}, {"external": "w.bin"}, {"opset": 11}])
def test_weights_are_found_wherever_they_lie(
    options: dict[str, Any], graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear(**options)
    result = apply("fp16", model, rows)
    assert result.model.size_bytes < 0.6 * model.size_bytes
    want = outputs(model, rows)
    assert np.abs(outputs(result.model, rows) - want).max() < 0.005 * np.abs(want).max()


def test_operators_that_are_kept_stay_in_single_precision(
    graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    shape = ("float32", ("n", 64))
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model = graph(nodes, {"x": shape}, {"y": shape}, {"w": weights})
    casts = {
        text: apply(text, model, rows).model.count("Cast")
        for text in ("fp16", "fp16{keep=none}", "fp16{keep=MatMul+Softmax}")
        if "MatMul" not in text
    }
    assert casts["fp16"] > casts["fp16{keep=none}"]
    with pytest.raises(NotApplicable):
        apply("fp16{keep=MatMul+Softmax}", model, rows)


def test_a_model_without_single_precision_is_left_alone(
    graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    shape = ("float32", ("n", 64))
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, {"y": shape})
    with pytest.raises(NotApplicable, match="hardly any"):
        apply("fp16", model, rows)


def test_a_quantized_model_is_left_alone(graph: GraphMaker, rows: Dataset, apply: Apply) -> None:
    with pytest.raises(NotApplicable, match="already quantized"):
        apply("int8{mode=static},fp16", graph.linear(), rows)


def test_an_operator_that_there_is_not_is_no_reason_to_keep_the_variant(
    graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    assert apply("fp16{keep=Softmax}", graph.linear(), rows).changed
    with pytest.raises(NotApplicable, match="keep=Sofmax: there is no such operator"):
        apply("fp16{keep=Sofmax}", graph.linear(), rows)


def test_operators_to_keep_are_joined_by_plus() -> None:
    with pytest.raises(InputError, match=r"not of the form Softmax\+LayerNormalization"):
        Chain.parse("fp16{keep=Softmax/Add}")
