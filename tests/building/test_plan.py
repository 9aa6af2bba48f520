"""The built-in plan tries what is known to help a kind of model, and nothing hopeless."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from onnx import helper

from optimize.building.plan import built_in, restricted, strategies, trained
from optimize.errors import InputError
from optimize.models.model import Model
from optimize.passes.chain import Chain

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import GraphMaker

SHAPE = ("float32", ("n", 64))


def texts(model: Model, calibrated: bool = True) -> list[str]:
    return [str(chain) for chain in built_in(model, calibrated)]


@pytest.mark.parametrize(
    ("chain", "names"),
    [
        ("source", ()),
        ("fold,fuse,fp16", ("fold", "fuse", "fp16")),
        ("fold,int8{mode=dynamic}", ("fold", "int8", "dynamic")),
        (
            "fold,int8{mode=static,engine=nncf},bf16@openvino",
            ("fold", "int8", "bf16", "static", "nncf"),
        ),
    ],
)
def test_a_chain_goes_by_its_passes_and_choices(chain: str, names: tuple[str, ...]) -> None:
    assert strategies(Chain.parse(chain)) == names


def test_a_plan_is_restricted_to_what_is_named() -> None:
    chains = [Chain.parse(t) for t in ("fold,fp16", "int8{mode=static}", "int8{mode=dynamic}")]
    assert list(map(str, restricted(chains, ["fp16", "dynamic"]))) == [
        "fold,fp16",
        "int8{mode=dynamic}",
    ]
    with pytest.raises(InputError, match=r"--strategies fp32: no chain .* dynamic, fold, fp16"):
        restricted(chains, ["fp32"])


@pytest.fixture
def attention(graph: GraphMaker) -> Model:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "x"], ["y"]),
    ]
    square = ("float32", (64, 64))
    return graph(nodes, {"x": square}, {"y": square})


@pytest.fixture
def activation(graph: GraphMaker) -> Model:
    return graph([helper.make_node("Relu", ["x"], ["y"])], {"x": SHAPE}, {"y": SHAPE})


def test_chains_are_distinct_canonical_and_never_the_source(
    digits_onnx: Path, attention: Model, activation: Model, graph: GraphMaker
) -> None:
    for model in (Model.read(digits_onnx), attention, activation, graph.linear()):
        plan = texts(model)
        assert len(set(plan)) == len(plan) > 0
        assert "source" not in plan
        assert [str(Chain.parse(text)) for text in plan] == plan


def test_every_model_gets_fusion_half_precision_and_int8(
    digits_onnx: Path, attention: Model, activation: Model
) -> None:
    for model in (Model.read(digits_onnx), attention, activation):
        plan = " ".join(texts(model))
        for name in ("fold", "fuse", "fp16", "int8"):
            assert name in plan


def test_convolutions_get_static_ranges(digits_onnx: Path) -> None:
    plan = texts(Model.read(digits_onnx))
    assert "fold,fuse,int8{mode=static}" in plan
    assert any("ops=conv" in text for text in plan)


def test_transformers_quantize_their_matrix_products_only(attention: Model) -> None:
    plan = texts(attention)
    quantized = [text for text in plan if "mode=static" in text or "mode=dynamic" in text]
    assert any("mode=static" in text for text in quantized)
    # Fused attention hides its weights from the quantizer.
    assert not any("fuse" in text for text in quantized)
    assert any("smooth" in text for text in quantized)


def test_a_transformer_that_begins_with_convolutions_gets_both(graph: GraphMaker) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("MatMul", ["c", "c"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "c"], ["y"]),
    ]
    shape = ("float32", ("n", 1, 8, 8))
    plan = texts(graph(nodes, {"x": shape, "w": ("float32", (1, 1, 1, 1))}, {"y": shape}))
    assert any("smooth,int8" in text for text in plan)
    assert any("ops=conv" in text for text in plan)


def test_weights_in_few_bits_are_for_matrix_products(graph: GraphMaker, activation: Model) -> None:
    assert any("mode=weights" in text for text in texts(graph.linear()))
    assert not any("mode=weights" in text for text in texts(activation))


def test_without_real_data_nothing_is_calibrated(
    digits_onnx: Path, attention: Model, activation: Model
) -> None:
    for model in (Model.read(digits_onnx), attention, activation):
        with_data, without = texts(model), texts(model, calibrated=False)
        assert not any("mode=static" in text for text in without)
        needy = ("mode=static", "smooth")
        assert without == [text for text in with_data if not any(n in text for n in needy)]
        assert len(without) < len(with_data)


def asked(model: Model, module: bool, runtimes: tuple[str, ...] = (), **options: str) -> list[str]:
    chains = trained(model, module, runtimes or ("onnxruntime",), **options)
    return [str(chain) for chain in chains]


def test_options_for_training_add_chains_each_also_quantized(digits_onnx: Path) -> None:
    model = Model.read(digits_onnx)
    assert asked(model, True) == []
    assert asked(model, True, distill="t.py:f") == [
        "distill{hook=t.py:f}",
        "distill{hook=t.py:f},fold,fuse,int8{mode=static}",
    ]
    assert asked(model, True, ("openvino",), student="a.py:small", prune="0.5") == [
        "student{arch=a.py:small},distill@openvino",
        "student{arch=a.py:small},distill,fold,int8{mode=static,engine=nncf}@openvino",
        "prune{ratio=0.5,on=module},distill@openvino",
        "prune{ratio=0.5,on=module},distill,fold,int8{mode=static,engine=nncf}@openvino",
    ]
    both = asked(model, True, prune="p99", distill="t.py:f")
    assert both[0] == "prune{on=module,to=p99},distill{hook=t.py:f}"


def test_without_a_module_the_graph_is_pruned(digits_onnx: Path, attention: Model) -> None:
    model = Model.read(digits_onnx)
    assert asked(model, False, prune="0.5")[0] == "prune{ratio=0.5}"
    assert asked(model, False, prune="p95")[0] == "prune{to=p95}"
    assert asked(attention, False, prune="0.5")[1].endswith("int8{mode=dynamic}")
