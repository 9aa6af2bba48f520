"""Ranges, integer kernels and the choice of layers to keep in float."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from optimize.errors import InputError, NotApplicable, OptimizeError
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.run import feed, open_session
from optimize.passes.base import PassResult
from optimize.passes.chain import Chain
from optimize.passes.quantizers import layers, ranges, ranking
from optimize.passes.quantizers.nncf_engine import unsigned_activations
from optimize.passes.quantizers.ranges import least_squares_range, suitable

if TYPE_CHECKING:
    from conftest import GraphMaker

Apply = Callable[..., PassResult]
Outputs = Callable[..., Any]
Cosine = Callable[[Any, Any], float]
INTEGER = ("QLinearConv", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul")
FLOAT = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "FusedGemm")


@pytest.fixture(scope="module")
def network(digits_onnx: Path) -> Model:
    return Model.read(digits_onnx)


def kernels(model: Model, folder: Path) -> Counter[str]:
    """Operators that onnxruntime runs, after its own fusions under the model's options."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    for key, value in model.config:
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return Counter(node.op_type for node in nodes)


def served(model: Model, samples: Dataset) -> Any:
    """First outputs under the model's own options."""
    session = open_session(model)
    return np.concatenate([session.run(None, samples.sample(i))[0] for i in range(len(samples))])


def mlp(graph: GraphMaker, depth: int = 3, fragile: int | None = None, gemm: bool = False) -> Model:
    """Layers of 64 columns; one of them may have weights that 8 bits a tensor cannot hold.

    The fragile layer's weights carry its signal at a hundredth of the size of two that cancel.
    """
    rng = np.random.default_rng(5)
    weights, nodes, at = {}, [], "x"
    for layer in range(depth):
        weight = rng.standard_normal((64, 64)) / 8
        if layer == fragile:
            weight[0] += 30  # read by a channel that is always zero
        weights[f"w{layer}"] = weight.astype(np.float32)
        extra = []
        if gemm:
            weights[f"b{layer}"] = rng.standard_normal(64).astype(np.float32)
            extra = [f"b{layer}"]
        kind = "Gemm" if gemm else "MatMul"
        last = "y" if layer == depth - 1 else f"a{layer}"
        nodes.append(
            helper.make_node(kind, [at, f"w{layer}", *extra], [last], name=f"layer{layer}")
        )
        at = last
        if layer < depth - 1:
            nodes.append(helper.make_node("Tanh", [at], [f"h{layer}"]))
            at = f"h{layer}"
    shape = ("float32", ("n", 64))
    return graph(nodes, {"x": shape}, {"y": shape}, weights)


@pytest.fixture
def zeroed(rows: Dataset) -> Dataset:
    """The rows, with a first channel that is zero."""
    arrays = [array.copy() for array in rows.inputs["x"]]
    for array in arrays:
        array[:, 0] = 0
    return Dataset("zeroed", {"x": arrays}, batch_first=True)


def histogram(values: Any) -> tuple[Any, float, float]:
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    return np.histogram(values, 512, (low, high))[0].astype(float), float(low), float(high)


def quantization_error(values: Any, low: float, high: float) -> float:
    """Squared error of 255 uniform steps, value by value, in double precision."""
    step = (high - low) / 255
    rounded = low + step * np.rint((np.clip(values, low, high) - low) / step)
    return float(((values - rounded) ** 2).sum())


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "student", "exponential", "uniform"]),
)
def test_a_least_squares_range_is_as_good_as_any(seed: int, kind: str) -> None:
    """Against the best of many ranges tried on the values themselves."""
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: rng.standard_normal(4000),
        "student": lambda: rng.standard_t(4, 4000),
        "exponential": lambda: rng.exponential(1, 4000),
        "uniform": lambda: rng.uniform(-1, 2, 4000),
    }[kind]()
    counts, low, high = histogram(values)
    found = least_squares_range(counts, low, high)
    assert low <= found[0] <= 0 <= found[1] <= high
    shares = np.linspace(0.2, 1, 17)
    best = min(
        quantization_error(values, a * low, b * high)
        for a in (shares if low < 0 else [0.0])
        for b in shares
    )
    # A bin is narrower than two steps, so that rounding within it is noise.
    assert quantization_error(values, *found) <= 1.25 * best


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 3000), scale=st.floats(1e-3, 1e3))
def test_values_are_counted_as_numpy_counts_them(seed: int, size: int, scale: float) -> None:
    values = np.random.default_rng(seed).normal(0.3, scale, size).astype(np.float32)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    found = ranges.histogram(values, low, high)
    expected = np.histogram(values, ranges.BINS, (low, high))[0]
    # In float32 a value at the edge of two bins may fall into the next: the sums of both agree.
    assert found.sum() == size
    assert np.abs(np.cumsum(found) - np.cumsum(expected)).max() <= max(2, size // 100)


@pytest.mark.parametrize("channels", [4, 64, 384, 1536])
def test_values_are_drawn_from_all_channels(channels: int) -> None:
    drawn = ranges.Drawn(20_000)
    values = np.tile(np.arange(channels, dtype=np.float32), 400_000 // channels)
    found = drawn(values)
    assert found.size == 20_000
    counts = np.bincount(found.astype(int), minlength=channels)
    expected = 20_000 / channels
    assert counts.min() > 0.3 * expected if expected > 40 else counts.min() >= 1
    assert not np.array_equal(drawn(values), found)  # an outlier's place is seen some time


def test_a_heavy_tail_is_clipped_and_a_uniform_is_not() -> None:
    rng = np.random.default_rng(0)
    # One value in a million: clipping it costs less than all others gain.
    counts, low, high = histogram(np.concatenate([rng.standard_normal(10**6), [20.0]]))
    assert least_squares_range(counts, low, high)[1] < 0.8 * high
    counts, low, high = histogram(rng.uniform(-1, 1, 100_000))
    np.testing.assert_allclose(least_squares_range(counts, low, high), (low, high), rtol=0.03)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-1.0, 2.0)])
def test_an_empty_histogram_keeps_the_range(low: float, high: float) -> None:
    assert least_squares_range(np.zeros(16), low, high) == (low, high)


def test_values_of_a_mask_do_not_widen_a_range(
    graph: GraphMaker, apply: Apply, outputs: Outputs, cosine: Cosine
) -> None:
    """Three columns of the input hold a mask's -3.4e38, where the weights are zero."""
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((64, 64)) / 8).astype(np.float32)
    weight[:3] = 0
    shape = ("float32", ("n", 64))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = graph(nodes, {"x": shape}, {"y": shape}, {"w": weight})
    arrays = [rng.standard_normal((1, 64), np.float32) for _ in range(16)]
    for array in arrays:
        array[:, :3] = np.finfo(np.float32).min
    samples = Dataset("masked", {"x": arrays})
    true = outputs(model, samples)
    result = apply("int8{mode=static,calibration=mse}", model, samples)
    assert cosine(outputs(result.model, samples), true) > 0.999


def test_histograms_take_samples_of_the_commonest_shape_and_few() -> None:
    shapes = [3, 5, 5, 3, 5] * 20
    data = Dataset("mixed", {"x": [np.full((1, n), i) for i, n in enumerate(shapes)]})
    chosen = suitable(data, "entropy")
    assert len(chosen) == 32
    assert {array.shape for array in chosen.inputs["x"]} == {(1, 5)}
    assert suitable(data, "mse") is data


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("mode=static", {"QLinearConv": 2, "QGemm": 1}),
        ("mode=static,per=tensor", {"QLinearConv": 2, "QGemm": 1}),
        ("mode=static,calibration=mse", {"QLinearConv": 2, "QGemm": 1}),
        ("mode=static,ops=conv", {"QLinearConv": 2, "QGemm": 0}),
    ],
)
def test_static_int8_runs_in_integer_kernels(
    network: Model,
    digits_samples: Dataset,
    digits_logits: Any,
    apply: Apply,
    outputs: Outputs,
    cosine: Cosine,
    tmp_path: Path,
    options: str,
    wanted: Mapping[str, int],
) -> None:
    model = apply(f"fold,fuse,int8{{{options}}}", network, digits_samples).model
    ran = kernels(model, tmp_path)
    assert {name: ran[name] for name in wanted} == wanted
    assert not any(ran[name] for name in ("Conv", "FusedConv"))
    assert cosine(outputs(model, digits_samples), digits_logits) > 0.999


@pytest.mark.parametrize("gemm", [False, True])
def test_products_alone_leave_their_results_in_float(
    graph: GraphMaker, rows: Dataset, apply: Apply, tmp_path: Path, gemm: bool
) -> None:
    model = apply("int8{mode=static,ops=matmul}", mlp(graph, gemm=gemm), rows).model
    made = {name: n for n in onnx.load(str(model.path)).graph.node for name in n.output}
    for node in made.values():
        if node.op_type == "QuantizeLinear" and node.input[0] in made:
            assert made[node.input[0]].op_type not in ("MatMul", "Gemm")
    ran = kernels(model, tmp_path)
    assert not any(ran[name] for name in FLOAT)
    assert sum(ran[name] for name in INTEGER) == 3


def test_all_operators_of_an_old_operator_set_are_quantized(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs, cosine: Cosine
) -> None:
    """Quantization by channel came with operator set 13."""
    model = graph.linear(opset=11)
    result = apply("int8{mode=static}", model, rows)
    assert result.model.opset >= 13
    assert cosine(outputs(result.model, rows), outputs(model, rows)) > 0.999


MIXED = ["int8{mode=static,ops=matmul", "int8{mode=static,ops=all", "int8{mode=dynamic"]


@pytest.mark.parametrize("text", MIXED)
@pytest.mark.parametrize("keep", [1, 2])
def test_keep_leaves_exactly_that_many_layers_in_float(
    graph: GraphMaker, rows: Dataset, apply: Apply, tmp_path: Path, text: str, keep: int
) -> None:
    model = apply(f"{text},keep={keep}}}", mlp(graph, 4), rows).model
    ran = kernels(model, tmp_path)
    assert sum(ran[name] for name in FLOAT) == keep
    assert sum(ran[name] for name in INTEGER) == 4 - keep


@pytest.mark.parametrize("keep", [1, 2])
def test_keep_counts_convolutions_with_biases_too(
    network: Model,
    digits_samples: Dataset,
    digits_logits: Any,
    apply: Apply,
    cosine: Cosine,
    tmp_path: Path,
    keep: int,
) -> None:
    result = apply(f"int8{{mode=static,keep={keep}}}", network, digits_samples)
    ran = kernels(result.model, tmp_path)
    assert sum(ran[name] for name in FLOAT) == keep
    assert sum(ran[name] for name in INTEGER) == 3 - keep
    full = served(apply("int8{mode=static}", network, digits_samples).model, digits_samples)
    got = served(result.model, digits_samples)
    assert cosine(got, digits_logits) >= cosine(full, digits_logits)
    assert any("in float, by accuracy recovered per microsecond" in note for note in result.notes)


@pytest.mark.parametrize("keep", [0, 1])
def test_gemms_are_products_in_dynamic_mode_too(
    graph: GraphMaker, rows: Dataset, apply: Apply, cosine: Cosine, outputs: Outputs, keep: int
) -> None:
    source = mlp(graph, gemm=True)
    result = apply(f"int8{{mode=dynamic,keep={keep}}}", source, rows)
    assert result.model.count("MatMulInteger") == 3 - keep
    assert result.model.count("MatMul", "Gemm") == keep
    assert result.notes[0] == f"Gemm quantized (3 nodes; {3 - keep} activations)"
    assert cosine(outputs(result.model, rows), outputs(source, rows)) > 0.99


def test_what_other_data_ranked_is_ranked_anew(
    graph: GraphMaker, rows: Dataset, apply: Apply, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, folder = mlp(graph), tmp_path_factory.getbasetemp()
    before = set(folder.glob("*layers.json"))
    for count in (24, 12, 24):
        data = rows.take(range(count))
        apply("int8{mode=static,ops=matmul,keep=1}", model, rows, calibration=data)
    assert len(set(folder.glob("*layers.json")) - before) == 2


def test_as_many_layers_are_ranked_as_are_kept(
    graph: GraphMaker, rows: Dataset, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "MOST_LAYERS", 1)
    result = apply("int8{mode=static,ops=matmul,keep=2}", mlp(graph, 4), rows)
    assert result.notes[-1].count("layer") == 2


@pytest.mark.parametrize("keep", [3, 9])
def test_keeping_all_is_no_quantization(
    graph: GraphMaker, rows: Dataset, apply: Apply, keep: int
) -> None:
    for text in MIXED:
        with pytest.raises(NotApplicable, match=f"keep={keep} leaves none of 3 layers in INT8"):
            apply(f"{text},keep={keep}}}", mlp(graph, 3), rows)


@pytest.mark.parametrize("mode", ["static,ops=matmul,per=tensor", "dynamic,per=tensor"])
def test_the_fragile_layer_is_kept_first(
    graph: GraphMaker,
    zeroed: Dataset,
    apply: Apply,
    cosine: Cosine,
    outputs: Outputs,
    mode: str,
) -> None:
    model = mlp(graph, 4, fragile=0)
    true = outputs(model, zeroed)
    uniform = cosine(served(apply(f"int8{{mode={mode}}}", model, zeroed).model, zeroed), true)
    result = apply(f"int8{{mode={mode},keep=1}}", model, zeroed)
    assert any(note.endswith(": layer0") for note in result.notes)
    kept = cosine(served(result.model, zeroed), true)
    assert 1 - kept < (1 - uniform) / 10


@pytest.mark.parametrize("gemm", [False, True])
def test_a_model_with_all_layers_restored_is_the_float_model(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs, gemm: bool
) -> None:
    source = mlp(graph, gemm=gemm)
    quantized = onnx.load(str(apply("int8{mode=static,ops=matmul}", source, rows).model.path))
    reference = onnx.load(str(source.path))
    names = layers.quantized_layers(quantized, reference)
    assert names == ["layer0", "layer1", "layer2"]
    restored = source.path.with_name("restored.onnx")
    onnx.save(layers.restore(quantized, reference, names), str(restored))
    assert not Model.read(restored).quantized
    np.testing.assert_array_equal(outputs(restored, rows), outputs(source, rows))


def test_a_restored_layer_behind_a_relu_does_not_read_what_the_relu_removes(
    graph: GraphMaker, rows: Dataset, apply: Apply, cosine: Cosine, outputs: Outputs
) -> None:
    """Quantizers drop a ReLU whose result's range begins at zero."""
    rng = np.random.default_rng(0)
    weights = {
        name: (rng.standard_normal(shape) / 8).astype(np.float32)
        for name, shape in (("w0", (64, 64)), ("b0", 64), ("w1", (64, 64)), ("b1", 64))
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["h"], name="relu"),
        helper.make_node("Gemm", ["h", "w1", "b1"], ["y"], name="second"),
    ]
    shape = ("float32", ("n", 64))
    source = graph(nodes, {"x": shape}, {"y": shape}, weights)
    quantized = apply("int8{mode=static,ops=all}", source, rows).model
    assert quantized.count("Relu") == 0
    proto = layers.restore(onnx.load(str(quantized.path)), onnx.load(str(source.path)), ["second"])
    onnx.save(proto, str(quantized.path))
    assert cosine(outputs(quantized, rows), outputs(source, rows)) > 0.999


def test_a_branch_still_reads_what_a_relu_made(
    graph: GraphMaker, rows: Dataset, apply: Apply, cosine: Cosine, outputs: Outputs
) -> None:
    """Quantizers drop the ReLU for its readers in the graph itself, which a branch is not in."""
    sides = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("MatMul", ["r", "w2"], [side])],
            side,
            [],
            [onnx.ValueInfoProto(name=side)],
        )
        for side in ("then", "else")
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "limit"], ["on"]),
        helper.make_node("If", ["on"], ["y"], **sides),
    ]
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) for name in ("w1", "w2")}
    shape = ("float32", ("n", 64))
    source = graph(nodes, {"x": shape}, {"y": shape}, weights | {"limit": np.float32(2)})
    quantized = apply("int8{mode=static}", source, rows).model
    assert cosine(outputs(quantized, rows), outputs(source, rows)) > 0.99


def test_errors_are_relative_to_each_output() -> None:
    want = [[np.array([3.0, 4.0]), np.array([1])], [np.array([0.0, 0.0]), np.array([2])]]
    got = [[np.array([3.0, 4.5]), np.array([7])], [np.array([0.5, 0.0]), np.array([2])]]
    assert ranking.output_error(got, want) == pytest.approx((0.25 + 0.25) / 25)  # integers: none
    assert ranking.output_error(want, want) == 0
    got[1][0][0], want[1][0][0] = np.nan, np.nan  # of a sample that holds NaN
    assert ranking.output_error(got, want) == pytest.approx(0.25 / 25)


def test_worth_is_accuracy_for_time() -> None:
    slow, quick = ranking.Layer("a", 1.0, 50.0), ranking.Layer("b", 1.0, 10.0)
    assert quick.worth(1) == pytest.approx(5 * slow.worth(1))
    assert ranking.Layer("c", 1.0, 0.0).worth(1) > quick.worth(1)


def test_only_kernels_that_differ_count_as_lost_time() -> None:
    def form(**kernels: tuple[int, float]) -> ranking.Form:
        spent = {(name, name): ranking.Spent(*given) for name, given in kernels.items()}
        return ranking.Form(0.1, spent)

    before = form(a=(1, 9.0), integer=(1, 5.0), transposes=(3, 21.0))
    after = form(a=(1, 90.0), float=(1, 6.0), dequantize=(1, 1.5), transposes=(1, 8.0))
    assert after.slower_than(before) == pytest.approx(6.0 + 1.5 - 5.0 - 13.0)
    assert before.slower_than(after) == pytest.approx(10.5)


class Known:
    """Stands for a quantized model: which layers are in float decides on all that is seen."""

    def __init__(self, kept: Sequence[str]) -> None:
        self.kept = kept

    def SerializeToString(self) -> Any:
        return self.kept


@pytest.mark.parametrize(
    ("together", "order"),
    [(False, ["slow", "b", "a", "c", "d"]), (True, ["slow", "b", "c", "a", "d"])],
)
def test_layers_are_ranked_by_accuracy_per_microsecond_and_anew_beside_those_put_back(
    together: bool, order: list[str], rows: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {"slow": 0.0, "a": 3.0, "b": 4.0, "c": 2.0, "d": 3.0}
    lost = {"slow": -50.0, "a": 20.0, "b": 20.0, "c": 20.0, "d": 1000.0}

    def run(kept: Any, _: Any) -> tuple[list[list[Any]], ranking.Kernels]:
        if isinstance(kept, Path):
            return [[np.array([1.0, 0.0])]], {}
        # Once b is in float, all that c costs is gone with it.
        us = {n: 0.0 if together and n == "c" and "b" in kept else lost[n] for n in kept}
        gap = sum(error for name, error in errors.items() if name not in kept)
        kernels = {("Conv", name): ranking.Spent(1, 100.0 + us[name]) for name in kept}
        others = [name for name in errors if name not in kept]
        kernels |= {("QLinearConv", name): ranking.Spent(1, 100.0) for name in others}
        return [[np.array([1.0, np.sqrt(gap)])]], kernels

    monkeypatch.setattr(ranking, "_run", run)
    ranked = ranking.rank(Path("float"), Known, [*errors], rows, 5, again_s=60)
    assert [layer.node for layer in ranked] == order


def test_kernels_of_one_name_are_added_up_call_by_call() -> None:
    calm = [100.0, 1.0] * 8
    assert ranking._usual(calm, 8) == ranking.Spent(2, pytest.approx(101.0))
    assert ranking._usual([*calm[:14], 900.0, 1.0], 8) == ranking.Spent(2, pytest.approx(101.0))
    assert ranking._usual([5.0, 7.0, 6.0], 2) == ranking.Spent(2, pytest.approx(9.0))


def test_the_slowest_layers_are_convolutions_under_any_name(graph: GraphMaker) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "small": rng.standard_normal((8, 8, 1, 1)).astype(np.float32),
        "large": rng.standard_normal((64, 8, 5, 5)).astype(np.float32),
        "w": rng.standard_normal((28, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "small"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "large"], ["c"], name="second"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="third"),
    ]
    shapes = {"x": ("float32", (1, 8, 32, 32))}, {"y": ("float32", (1, 64, 28, 4))}
    model = graph(nodes, *shapes, weights)
    images = Dataset("x", {"x": [rng.standard_normal((1, 8, 32, 32)).astype(np.float32)]})
    bench = ranking._Bench(images, Known, model.path)
    assert bench.slowest(["first", "second", "third"], 1) == ["second"]


def test_kernels_of_a_run_are_found_by_operator_and_name(graph: GraphMaker, rows: Dataset) -> None:
    model = mlp(graph)
    feeds = [feed(rows.sample(0))]
    outputs, kernels = ranking._run(model.path, feeds, "BASIC")
    np.testing.assert_array_equal(outputs[0][0], open_session(model).run(None, feeds[0])[0])
    times = ranking.owned(kernels, ["layer0", "layer1", "layer2"])
    assert all(us > 0 for us in times.values())
    assert [file.name for file in model.path.parent.iterdir()] == [model.path.name]


def test_signed_activations_become_unsigned_with_equal_outputs(graph: GraphMaker) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "scale": np.float32(0.03),
        "zero": np.int8(-7),
        "w": rng.integers(-127, 128, (16, 8)).astype(np.int8),
        "w_scale": np.full(8, 0.01, np.float32),
        "w_zero": np.zeros(8, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    model = graph(nodes, {"x": ("float32", ("n", 16))}, {"y": ("float32", ("n", 8))}, weights)
    proto = onnx.load(str(model.path))
    proto.graph.value_info.append(helper.make_tensor_value_info("q", TensorProto.INT8, None))
    sample = {"x": 4 * rng.standard_normal((50, 16)).astype(np.float32)}  # some are clipped
    level = onnxruntime.SessionOptions()
    level.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def run() -> Any:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), level, providers=["CPUExecutionProvider"]
        )
        return session.run(None, sample)[0]

    before = run()
    assert unsigned_activations(proto) == 1
    np.testing.assert_array_equal(run(), before)
    kinds = {t.name: numpy_helper.to_array(t).dtype for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "MatMul" and node.input[0] != "w":
            assert kinds[node.input[2]] == np.uint8
    assert kinds["w"] == np.int8
    assert unsigned_activations(proto) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8{mode=dynamic,calibration=mse}", "mode=dynamic takes no calibration"),
        ("int8{mode=dynamic,samples=5}", "mode=dynamic takes no calibration"),
        ("int8{mode=dynamic,symmetric=true}", "symmetric needs mode=static"),
        ("int8{mode=static,bits=4}", "bits=4 needs mode=weights"),
        ("int8{mode=weights,algorithm=hqq}", "hqq needs bits=4"),
        ("int8{mode=weights,keep=1}", "takes bits and algorithm only"),
        ("int8{mode=static,keep=-1}", "keep at least 0"),
        ("int8{mode=static,samples=0}", "samples must be at least 1"),
        ("int8{mode=dynamic,engine=nncf}", "engine=nncf takes mode=static, samples and drop only"),
        ("int8{mode=static,engine=nncf,per=tensor}", "engine=nncf takes mode=static"),
        ("int8{mode=static,engine=nncf,keep=2}", "engine=nncf takes mode=static"),
        ("int8{mode=static,engine=neural-compressor,symmetric=true}", "takes mode=static"),
        ("int8{mode=static,engine=neural-compressor,recover=distill}", "takes mode=static"),
        ("int8{mode=static,engine=nncf,recover=distill}", "takes mode=static"),
        ("int8{mode=static,engine=tensorrt}", "tensorrt is unknown"),
        ("int8{mode=static,drop=0.01}", "drop needs engine=nncf"),
        ("int8{mode=static,engine=nncf,drop=1}", "drop=1.0 is no share"),
    ],
)
def test_options_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Chain.parse(text)


def test_symmetric_activations_have_their_zero_in_the_middle(
    graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    model = apply("int8{mode=static,ops=matmul,symmetric=true}", mlp(graph), rows).model
    proto = onnx.load(str(model.path))
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    zeros = {
        int(weights[node.input[2]]) for node in proto.graph.node if node.op_type == "QuantizeLinear"
    }
    assert zeros <= {127, 128}


@pytest.mark.parametrize(("isa", "most"), [("avx2", 64), ("avx512_vnni", 128)])
def test_nncf_halves_weights_where_products_overflow(
    isa: str, most: int, network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    pytest.importorskip("nncf")
    text = "int8{mode=static,engine=nncf}"
    model = apply(text, network, digits_samples.take(range(16)), isa=frozenset({isa})).model
    weights = [
        numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load(model.path).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) >= 2
    ]
    assert weights
    assert most / 2 - 1 < max(np.abs(weight).max() for weight in weights) <= most


def test_nncf_puts_operators_back_until_the_outputs_agree(
    network: Model, digits_samples: Dataset, apply: Apply, cosine: Cosine
) -> None:
    pytest.importorskip("nncf")
    few = digits_samples.take(range(8))
    plain = apply("int8{mode=static,engine=nncf}", network, few).model
    want = served(network, few)
    allowed = (1 - cosine(served(plain, few), want)) / 3
    text = f"int8{{mode=static,engine=nncf,drop={allowed:.2g}}}"
    controlled = apply(text, network, few).model
    assert 0 < controlled.count("QuantizeLinear") < plain.count("QuantizeLinear")
    assert 1 - cosine(served(controlled, few), want) < 1.5 * allowed


def test_accuracy_control_ends_with_the_time(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    pytest.importorskip("nncf")
    text = "int8{mode=static,engine=nncf,drop=0.000001}"
    with pytest.raises(OptimizeError, match="did not end within the time limit"):
        apply(text, network, digits_samples.take(range(4)), deadline=time.monotonic() - 1)
