"""SmoothQuant on the graph: the outputs stay, and static INT8 survives activation outliers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from optimize.errors import InputError, NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult
from optimize.passes.chain import Chain
from optimize.passes.smooth import layer_error, smoothing_scale

if TYPE_CHECKING:
    from conftest import GraphMaker

Apply = Callable[..., PassResult]
Outputs = Callable[..., Any]
Cosine = Callable[[Any, Any], float]
WIDTH = 32
STATIC = "int8{mode=static,ops=matmul}"


def outlying(count: int = 24, rows: int = 4) -> Dataset:
    """Rows in which one channel is 100 times as large as the others."""
    rng = np.random.default_rng(3)
    arrays = [rng.standard_normal((1, rows, WIDTH), np.float32) for _ in range(count)]
    for array in arrays:
        array[..., 5] *= 100
    return Dataset("outlying", {"x": arrays}, batch_first=True)


def plain(count: int = 12) -> Dataset:
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal((1, 4, WIDTH), np.float32) for _ in range(count)]
    return Dataset("plain", {"x": arrays}, batch_first=True)


def network(
    graph: GraphMaker,
    seed: int = 0,
    norm: bool = False,
    gemm: bool = False,
    readers: int = 1,
    shown: bool = False,
    residual: bool = False,
) -> Model:
    """Input, or its layer norm with an outlier in its weights, into products that share it."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    nodes, source = [], "x"
    if norm:
        scale = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
        scale[5] = 60
        weights |= {"gamma": scale, "beta": rng.standard_normal(WIDTH).astype(np.float32)}
        nodes.append(helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["normal"]))
        source = "normal"
    if gemm:
        weights["shape"] = np.array([-1, WIDTH])
        nodes.append(helper.make_node("Reshape", [source, "shape"], ["flat"]))
        source = "flat"
    made = []
    for index in range(readers):
        weight = (rng.standard_normal((WIDTH, 16)) / 6).astype(np.float32)
        name, out = f"w{index}", f"p{index}"
        if gemm:
            weights |= {name: weight.T.copy(), f"b{index}": np.ones(16, np.float32)}
            nodes.append(helper.make_node("Gemm", [source, name, f"b{index}"], [out], transB=1))
        else:
            weights[name] = weight
            nodes.append(helper.make_node("MatMul", [source, name], [out]))
        made.append(out)
    nodes.append(helper.make_node("Sum", made, ["sum"]))
    nodes.append(helper.make_node("Relu", ["sum"], ["hidden"]))
    weights["last"] = (rng.standard_normal((16, 8)) / 4).astype(np.float32)
    nodes.append(helper.make_node("MatMul", ["hidden", "last"], ["y"]))
    shape = ("n", 8) if gemm else ("n", "rows", 8)
    outputs: dict[str, Any] = {"y": ("float32", shape)}
    if shown:
        outputs[source] = ("float32", None)
    if residual and source != "x":
        nodes.append(helper.make_node("Neg", [source], ["rest"]))
        outputs["rest"] = ("float32", None)
    return graph(nodes, {"x": ("float32", ("n", "rows", WIDTH))}, outputs, weights)


def all_outputs(model: Model, samples: Dataset) -> list[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    return [
        array for index in range(len(samples)) for array in session.run(None, samples.sample(index))
    ]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10**6),
    norm=st.booleans(),
    gemm=st.booleans(),
    readers=st.integers(1, 3),
    shown=st.booleans(),
    residual=st.booleans(),
    alpha=st.sampled_from(["auto", "0", "0.5", "1"]),
)
def test_outputs_are_kept_whatever_the_graph(
    graph: GraphMaker,
    apply: Apply,
    seed: int,
    norm: bool,
    gemm: bool,
    readers: int,
    shown: bool,
    residual: bool,
    alpha: str,
) -> None:
    shown = shown and (norm or gemm)
    model = network(graph, seed, norm, gemm, readers, shown, residual)
    samples = outlying(6)
    result = apply(f"smooth{{alpha={alpha}}}", model, samples)
    for got, want in zip(
        all_outputs(result.model, samples), all_outputs(model, samples), strict=True
    ):
        scale = np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * scale)
    assert result.model.signature == model.signature


@pytest.mark.parametrize("options", [{}, {"gemm": True}, {"readers": 3}])
def test_static_int8_of_an_outlier_channel_comes_much_nearer(
    graph: GraphMaker, apply: Apply, outputs: Outputs, cosine: Cosine, options: dict[str, Any]
) -> None:
    samples = outlying()
    model = network(graph, **options)
    # The outlier channel itself says little, as in transformers: its weights are small.
    proto = onnx.load(str(model.path))
    for tensor in proto.graph.initializer:
        if tensor.name in ("w0", "w1", "w2"):
            weight = numpy_helper.to_array(tensor).copy()
            weight[(slice(None), 5) if options.get("gemm") else 5] /= 100
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(proto, str(model.path))
    model = Model.read(model.path)
    true = outputs(model, samples)
    rough = outputs(apply(STATIC, model, samples).model, samples)
    smooth = outputs(apply(f"smooth,{STATIC}", model, samples).model, samples)
    lost, still_lost = 1 - cosine(rough, true), 1 - cosine(smooth, true)
    assert lost > 0.01
    assert still_lost < lost / 20


def test_a_layer_norm_takes_the_scale_up(graph: GraphMaker, apply: Apply) -> None:
    model = network(graph, norm=True, readers=3)
    result = apply("smooth{alpha=0.5}", model, plain())
    before, after = dict(model.op_counts), dict(result.model.op_counts)
    # The second product's input is a Relu's, which gets a product of its own.
    assert after == before | {"Mul": before.get("Mul", 0) + 1}
    weights = {
        t.name: numpy_helper.to_array(t)
        for t in onnx.load(str(result.model.path)).graph.initializer
    }
    assert np.abs(weights["gamma"]).max() < 60


@pytest.mark.parametrize("extra", ["shown", "residual"])
def test_a_layer_norm_that_others_read_is_left_alone(
    graph: GraphMaker, apply: Apply, extra: str
) -> None:
    model = network(graph, norm=True, **{extra: True})  # type: ignore[arg-type]
    result = apply("smooth{alpha=0.5}", model, plain())
    proto = onnx.load(str(result.model.path))
    gamma = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "gamma")
    assert gamma[5] == 60
    assert result.model.count("Mul") == 2


def test_auto_leaves_inputs_without_outliers_as_they_are(graph: GraphMaker, apply: Apply) -> None:
    rng = np.random.default_rng(0)
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ("float32", ("n", WIDTH))},
        {"y": ("float32", ("n", 64))},
        {"w": rng.uniform(-1, 1, (WIDTH, 64)).astype(np.float32)},
    )
    arrays = [rng.uniform(-1, 1, (64, WIDTH)).astype(np.float32) for _ in range(8)]
    result = apply("smooth", model, Dataset("even", {"x": arrays}))
    assert (result.changed, result.model) == (False, model)
    assert result.notes == ("no layer gains by it",)


def test_a_layer_in_a_subgraph_reads_what_it_read_before(
    graph: GraphMaker, apply: Apply, outputs: Outputs
) -> None:
    """A branch of an If reads the layer norm's output from outside."""
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["normal"], [f"{op}_out"])], op, [],
            [helper.make_tensor_value_info(f"{op}_out", onnx.TensorProto.FLOAT, None)],
        )
        for op in ("Neg", "Identity")
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    gamma = np.ones(WIDTH, np.float32)
    gamma[5] = 60
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma"], ["normal"]),
        helper.make_node("MatMul", ["normal", "w"], ["y"]),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Relu", ["z"], ["rest"]),
    ]
    model = graph(
        nodes,
        {"x": ("float32", ("n", "rows", WIDTH)), "flag": ("bool", ())},
        {"rest": ("float32", None), "y": ("float32", None)},
        {"gamma": gamma, "w": rng.standard_normal((WIDTH, 8)).astype(np.float32)},
    )
    flags = [np.array(index % 2 == 0) for index in range(8)]
    samples = Dataset("flags", {"x": list(outlying(8).inputs["x"]), "flag": flags})
    result = apply("smooth{alpha=0.5}", model, samples)
    got, want = outputs(result.model, samples), outputs(model, samples)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("alpha", ["x", "-0.1", "1.5", "nan"])
def test_alpha_is_checked(alpha: str) -> None:
    with pytest.raises(InputError, match="neither auto nor between 0 and 1"):
        Chain.parse(f"smooth{{alpha={alpha}}}")


def test_the_number_of_samples_is_checked() -> None:
    with pytest.raises(InputError, match="smooth: samples=0 is not at least 1"):
        Chain.parse("smooth{samples=0}")


def test_it_says_why_it_does_not_apply(
    graph: GraphMaker, apply: Apply, digits_onnx: Path, digits_samples: Dataset
) -> None:
    model = network(graph)
    with pytest.raises(NotApplicable, match="needs --data or --calibration"):
        apply("smooth", model, plain(), calibration=None)
    with pytest.raises(NotApplicable, match="already quantized"):
        apply("int8,smooth", model, plain())
    relu = graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        {"x": ("float32", ("n", 4, WIDTH))},
        {"y": ("float32", ("n", 4, WIDTH))},
    )
    with pytest.raises(NotApplicable, match="no MatMul or Gemm"):
        apply("smooth", relu, plain())


def test_the_scale_follows_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    rows, weights = rng.standard_normal((64, 8)), rng.standard_normal((8, 5))
    for alpha in (0.0, 0.3, 1.0):
        scale = smoothing_scale(rows.astype(np.float32), weights.astype(np.float32), alpha)
        wanted = np.abs(rows).max(0) ** alpha / np.abs(weights).max(1) ** (1 - alpha)
        wanted /= np.exp(np.log(wanted).mean())
        np.testing.assert_allclose(scale, wanted, rtol=1e-4)


def test_the_error_of_a_layer_is_that_of_onnxruntimes_integers() -> None:
    """Against a plain computation with integers, in double precision."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((200, 16)).astype(np.float32)
    weights = rng.standard_normal((16, 4)).astype(np.float32)
    low, high = min(rows.min(), 0), max(rows.max(), 0)
    step = (float(high) - float(low)) / 255
    zero = round(-float(low) / step)
    x = np.clip(np.rint(rows.astype(np.float64) / step) + zero, 0, 255).astype(np.int64) - zero
    steps = np.abs(weights).max(0).astype(np.float64) / 127
    got = (x @ np.rint(weights / steps).astype(np.int64)) * step * steps
    true = rows.astype(np.float64) @ weights
    assert layer_error(rows, weights) == pytest.approx(
        ((got - true) ** 2).mean() / (true**2).mean(), rel=0.02
    )
