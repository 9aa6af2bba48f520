"""The prune pass on trained networks, on data that it has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from shipped import FASHION

from optimize.errors import InputError, NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult
from optimize.passes.chain import Chain

if TYPE_CHECKING:
    from conftest import Digits, GraphMaker

Apply = Callable[..., PassResult]
Outputs = Callable[..., Any]


@pytest.fixture(scope="module")
def network(digits_onnx: Path) -> Model:
    return Model.read(digits_onnx)


@pytest.fixture(scope="module")
def calibration(all_digits: Digits) -> Dataset:
    """Digits that the tests do not look at."""
    return Dataset("digits", {"image": [x[None] for x in all_digits.image[:160]]}, None, True)


@pytest.fixture(scope="module")
def resnet(shipped_onnx: Model) -> Model:
    return shipped_onnx


@pytest.fixture(scope="module")
def images() -> Dataset:
    with np.load(FASHION / "data.npz") as stored:
        pixels, labels = stored["image"], stored["labels"]
    arrays = [pixel.reshape(1, 1, 28, 28) for pixel in pixels[:600]]
    return Dataset("images", {"image": arrays}, labels[:600], batch_first=True)


def error(got: Any, want: Any) -> float:
    """Squared error as a share of the variance."""
    want = want.astype(np.float64)
    return float(np.square(got - want).sum() / np.square(want - want.mean(0)).sum())


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for t in onnx.load(model.path).graph.initializer}


def test_ratio_zero_changes_nothing(network: Model, digits_samples: Dataset, apply: Apply) -> None:
    result = apply("prune{ratio=0}", network, digits_samples)
    assert not result.changed
    assert result.model == network


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_refit_wins_back_what_pruning_lost(
    scope: str, network: Model, calibration: Dataset, digits_samples: Dataset,
    digits_logits: Any, digits: Digits, apply: Apply, outputs: Outputs,
) -> None:  # fmt: skip
    text = f"prune{{ratio=0.5,scope={scope},multiple=1"
    cut = apply(f"{text},refit=false}}", network, calibration)
    refitted = apply(f"{text}}}", network, calibration)
    lost = error(outputs(cut.model, digits_samples), digits_logits)
    left = error(outputs(refitted.model, digits_samples), digits_logits)
    assert left < 0.5 * lost
    assert cut.model.size_bytes < 0.75 * network.size_bytes
    assert refitted.model.signature == network.signature
    right = np.mean(outputs(refitted.model, digits_samples).argmax(1) == digits.labels)
    assert right > np.mean(digits_logits.argmax(1) == digits.labels) - 0.05


def test_a_residual_network_keeps_its_accuracy(
    resnet: Model, images: Dataset, apply: Apply, outputs: Outputs
) -> None:
    calibration, test = images.take(range(120)), images.take(range(120, 600))
    result = apply("prune{ratio=0.25,multiple=1}", resnet, calibration)
    before, after = outputs(resnet, test), outputs(result.model, test)
    assert test.labels is not None
    drop = np.mean(before.argmax(1) == test.labels) - np.mean(after.argmax(1) == test.labels)
    assert drop < 0.03
    assert error(after, before) < 0.05
    assert result.model.size_bytes < 0.65 * resnet.size_bytes
    assert result.model.signature == resnet.signature
    text = " ".join(result.notes)
    assert "76 of 304 channels removed" in text
    assert "it computes the output logits" in text
    assert "refitted by least squares in place of training" in text


def test_convolutions_keep_whole_blocks(resnet: Model, images: Dataset, apply: Apply) -> None:
    few = images.take(range(20))
    for isa, block in ((frozenset({"avx512f"}), 16), (frozenset({"avx2"}), 8)):
        result = apply("prune{ratio=0.4,refit=false}", resnet, few, isa=isa)
        kernels = [shape for shape in shapes(result.model).values() if len(shape) == 4]
        assert all(shape[0] % block == 0 for shape in kernels)
        assert result.changed


def test_rounding_that_removes_nothing_is_told(
    resnet: Model, images: Dataset, apply: Apply
) -> None:
    with pytest.raises(NotApplicable, match=r"multiples of 64; use a larger ratio, or multiple=1"):
        apply("prune{ratio=0.1,multiple=64}", resnet, images.take(range(10)))


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_dead_channels_go_first(
    importance: str, graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear()
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            array[:, ::2] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, model.path)
    text = f"prune{{ratio=0.5,importance={importance},refit=false}}"
    result = apply(text, Model.read(model.path), rows)
    want = np.concatenate(
        [
            np.maximum(np.maximum(x @ w1, 0) @ w2, 0)
            for w1, w2 in [[numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer]]
            for x in rows.inputs["x"]
        ]
    )  # fmt: skip
    np.testing.assert_allclose(outputs(result.model, rows), want, rtol=1e-4, atol=1e-5)
    assert sorted(shapes(result.model).values()) == [(32, 64), (64, 32)]


def test_channels_that_others_stand_in_for_cost_nothing(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    """Every hidden unit has a twin of twice its size: the refit makes up for a half exactly."""
    model = graph.linear()
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w1":
            array[:, 32:] = 2 * array[:, :32]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, model.path)
    source = Model.read(model.path)
    many = [np.random.default_rng(i).standard_normal((40, 64), np.float32) for i in range(20)]
    result = apply("prune{ratio=0.5}", source, Dataset("many", {"x": many}))
    assert error(outputs(result.model, rows), outputs(source, rows)) < 1e-4
    # The second has a bias now, which the refit may set.
    assert sorted(shapes(result.model).values()) == [(32, 64), (64,), (64, 32)]


def hidden_half(
    graph: GraphMaker, last: list[Any], more: dict[str, Any], rows: int | str = "n"
) -> Model:
    """``x`` to 64 features ``r``, the second half always 1, and what ``last`` makes of them."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((16, 64)).astype(np.float32),
        "b1": np.zeros(64, np.float32),
        "w2": rng.standard_normal((64, 8)).astype(np.float32),
    }
    weights["w1"][:, 32:], weights["b1"][32:] = 0, 1
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        *last,
    ]
    given, made = ("float32", (rows, 16)), ("float32", (rows, 8))
    return graph(nodes, {"x": given}, {"y": made}, weights | more)


def features(rows: int) -> Dataset:
    rng = np.random.default_rng(1)
    return Dataset(
        "features", {"x": [rng.standard_normal((rows, 16), np.float32) for _ in range(100)]}
    )


def test_what_is_added_in_place_of_a_bias_stays(
    graph: GraphMaker, apply: Apply, outputs: Outputs
) -> None:
    """As torch.addmm(skip, r, w2) is exported."""
    rng = np.random.default_rng(2)
    last = [
        helper.make_node("MatMul", ["x", "ws"], ["skip"]),
        helper.make_node("Gemm", ["r", "w2", "skip"], ["y"], name="last"),
    ]
    model = hidden_half(graph, last, {"ws": rng.standard_normal((16, 8)).astype(np.float32)})
    result = apply("prune{ratio=0.5}", model, features(1))
    # What the channels that are always 1 gave is lost, a constant, as there is no bias to set.
    gap = outputs(result.model, features(1)) - outputs(model, features(1))
    np.testing.assert_allclose(gap, np.broadcast_to(gap[0], gap.shape), atol=1e-4)
    assert any("computed bias): last" in note for note in result.notes)


def test_a_bias_for_every_row_is_refitted(
    graph: GraphMaker, apply: Apply, outputs: Outputs
) -> None:
    last = [helper.make_node("Gemm", ["r", "w2", "c"], ["y"])]
    bias = np.random.default_rng(2).standard_normal((300, 8)).astype(np.float32)
    model = hidden_half(graph, last, {"c": bias}, 300)
    result = apply("prune{ratio=0.5}", model, features(300))
    assert error(outputs(result.model, features(300)), outputs(model, features(300))) < 1e-6


def test_a_branch_gets_the_refitted_bias_too(
    graph: GraphMaker, apply: Apply, outputs: Outputs
) -> None:
    """It reads the product, and the sum of product and bias is read beside it."""
    sides = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node("Neg", ["m"], [side])], side, [], [onnx.ValueInfoProto(name=side)]
        )
        for side in ("then", "else")
    }
    last = [
        helper.make_node("MatMul", ["r", "w2"], ["m"]),
        helper.make_node("Add", ["m", "b2"], ["s"]),
        helper.make_node("If", ["on"], ["z"], **sides),
        helper.make_node("Mul", ["s", "z"], ["y"]),
    ]
    more = {"b2": np.ones(8, np.float32), "on": np.array(True)}
    model = hidden_half(graph, last, more)
    result = apply("prune{ratio=0.5}", model, features(1))
    assert error(outputs(result.model, features(1)), outputs(model, features(1))) < 1e-6


def test_a_part_of_a_shape_in_an_old_operator_set(graph: GraphMaker, apply: Apply) -> None:
    """Before 10, Slice has attributes in place of inputs."""
    last = [
        helper.make_node("Shape", ["r"], ["shape"]),
        helper.make_node("Slice", ["shape"], ["count"], starts=[0], ends=[1], axes=[0]),
        helper.make_node("Concat", ["count", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["r", "target"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w2"], ["y"]),
    ]
    model = hidden_half(graph, last, {"rest": np.array([-1], np.int64)})
    proto = onnx.load(model.path)
    proto.opset_import[0].version = 9
    onnx.save(proto, model.path)
    with pytest.raises(NotApplicable, match="its number of channels is computed with"):
        apply("prune", Model.read(model.path), features(1))


@pytest.mark.parametrize("text", ["prune{ratio=0.5}", "fp16"])
def test_weights_that_old_files_list_as_inputs_are_constants(
    text: str, graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model, old = graph.linear(), graph.linear()
    proto = onnx.load(old.path)
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    onnx.save(proto, old.path)
    result = apply(text, Model.read(old.path), rows)
    assert result.model.signature == model.signature
    want = outputs(apply(text, model, rows).model, rows)
    np.testing.assert_array_equal(outputs(result.model, rows), want)


@pytest.mark.parametrize(
    ("text", "share"), [("kind=mask,ratio=0.5", 0.5), ("kind=mask,ratio=0.3,scope=global", 0.3)]
)
def test_masks_keep_shapes(
    text: str, share: float, network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    result = apply(f"prune{{{text}}}", network, digits_samples, calibration=None)
    before, after = onnx.load(network.path), onnx.load(result.model.path)
    old = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    heavy = [name for name, array in old.items() if array.ndim >= 2]
    assert all(new[name].shape == old[name].shape for name in heavy)
    zeros = sum(int((new[name] == 0).sum()) for name in heavy)
    assert zeros / sum(old[name].size for name in heavy) == pytest.approx(share, abs=0.01)
    for name in heavy:  # what stays is untouched, what goes is smaller
        stays = new[name] != 0
        np.testing.assert_array_equal(new[name][stays], old[name][stays])
    assert "not faster here" in " ".join(result.notes)


def test_two_of_four(graph: GraphMaker, rows: Dataset, apply: Apply) -> None:
    result = apply("prune{kind=2:4}", graph.linear(), rows, calibration=None)
    for tensor in onnx.load(result.model.path).graph.initializer:
        fours = numpy_helper.to_array(tensor).T.reshape(64, -1, 4)
        assert ((fours != 0).sum(-1) == 2).all()


@pytest.mark.parametrize("kind", ["mask,ratio=0.5", "2:4"])
def test_a_weight_that_is_an_output_keeps_its_values(
    kind: str, graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear()
    proto = onnx.load(model.path)
    shown = proto.graph.initializer[0]
    proto.graph.output.append(
        helper.make_tensor_value_info(shown.name, shown.data_type, shown.dims)
    )
    onnx.save(proto, model.path)
    result = apply(f"prune{{kind={kind}}}", Model.read(model.path), rows, calibration=None)
    weights = {t.name: t for t in onnx.load(result.model.path).graph.initializer}
    np.testing.assert_array_equal(
        numpy_helper.to_array(weights[shown.name]), numpy_helper.to_array(shown)
    )
    assert any((numpy_helper.to_array(t) == 0).sum() > 4 for t in weights.values())


def test_a_quantized_model_is_refused(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    done = apply("int8{mode=static}", network, digits_samples).model
    with pytest.raises(NotApplicable, match="already quantized; put prune before int8"):
        apply("prune", done, digits_samples)


def test_nothing_prunable_has_its_reasons(graph: GraphMaker, rows: Dataset, apply: Apply) -> None:
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")],
        {"x": ("float32", ("n", 64))}, {"y": ("float32", ("n", 8))},
        {"w": np.ones((64, 8), np.float32)},
    )  # fmt: skip
    with pytest.raises(NotApplicable, match="no channels can go; not touched, as it computes the "
                                            "output y: only"):  # fmt: skip
        apply("prune", model, rows)


def test_data_is_needed_unless_magnitudes_decide_alone(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    with pytest.raises(NotApplicable, match="--data or --calibration"):
        apply("prune", network, digits_samples, calibration=None)
    text = "prune{ratio=0.5,importance=magnitude,refit=false,multiple=4}"
    assert apply(text, network, digits_samples, calibration=None).changed


@pytest.mark.parametrize(
    ("text", "message"),
    [("ratio=1", "ratio=1 is not between"), ("ratio=-0.1", "not between"),
     ("multiple=-1", "multiple=-1 is negative"), ("kind=2:4,ratio=0.3", "half of the weights"),
     ("kind=mask,importance=activation", "takes ratio and scope only"), ("scope=tensor", "scope")],
)  # fmt: skip
def test_options_out_of_range(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Chain.parse(f"prune{{{text}}}")


def test_pruned_then_quantized(
    network: Model, calibration: Dataset, digits_samples: Dataset, digits_logits: Any,
    apply: Apply, outputs: Outputs,
) -> None:  # fmt: skip
    text = "prune{ratio=0.25,multiple=4},fold,fuse,int8{mode=static}"
    result = apply(text, network, calibration)
    assert result.model.quantized
    assert np.mean(outputs(result.model, digits_samples).argmax(1) == digits_logits.argmax(1)) > 0.9
