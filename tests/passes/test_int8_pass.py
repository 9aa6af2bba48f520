"""INT8 in every mode: integer operators in the graph, outputs near the float model's."""

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
VNNI = frozenset({"avx512_vnni"})
STATIC = [
    "int8{mode=static}",
    "int8{mode=static,calibration=percentile}",
    "int8{mode=static,calibration=entropy}",
    "int8{mode=static,per=tensor}",
    "int8{mode=static,ops=conv}",
    "int8{mode=static,ops=matmul}",
    "int8{mode=static,samples=16}",
]


@pytest.fixture(scope="module")
def network(digits_onnx: Path) -> Model:
    return Model.read(digits_onnx)


def error(got: Any, want: Any) -> float:
    """The largest deviation as a share of the largest magnitude."""
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())


def test_static_int8_of_a_trained_network(
    network: Model, digits_samples: Dataset, digits_logits: Any, apply: Apply, outputs: Outputs
) -> None:
    for text in STATIC:
        result = apply(f"fold,fuse,{text}", network, digits_samples)
        assert result.model.quantized, text
        assert result.model.count("QuantizeLinear") > 0, text
        got = outputs(result.model, digits_samples)
        # Histograms and few samples cut rare large logits off.
        assert error(got, digits_logits) < (0.15 if text in STATIC[:1] + STATIC[3:6] else 0.4), text
        assert np.mean(got.argmax(1) == digits_logits.argmax(1)) >= 0.95, text
    assert Model.read(network.path) == network


def test_static_int8_has_weights_in_bytes(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    result = apply("fold,fuse,int8{mode=static}", network, digits_samples)
    floats = [
        tensor.name
        for tensor in onnx.load(result.model.path).graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 64
    ]
    assert not floats
    assert result.model.signature == network.signature
    assert result.model.size_bytes < 0.6 * network.size_bytes


def test_only_the_operators_that_were_asked_for(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    def float_weights(text: str) -> set[int]:
        model = apply(f"fold,fuse,{text}", network, digits_samples).model
        proto = onnx.load(model.path)
        return {
            len(tensor.dims)
            for tensor in proto.graph.initializer
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) in (2, 4)
        }

    assert float_weights("int8{mode=static,ops=conv}") == {2}
    assert float_weights("int8{mode=static,ops=matmul}") == {4}


def test_scales_by_channel_or_by_tensor(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    def scales(text: str) -> int:
        model = apply(f"fold,fuse,{text}", network, digits_samples).model
        proto = onnx.load(model.path)
        lengths = {tensor.name: int(np.prod(tensor.dims)) for tensor in proto.graph.initializer}
        dequantized = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"]
        return max(lengths[node.input[1]] for node in dequantized)

    assert scales("int8{mode=static,per=tensor,ops=conv}") == 1
    assert scales("int8{mode=static,ops=conv}") == 32


def test_the_number_of_calibration_samples_is_told(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    few = apply("int8{mode=static,samples=16}", network, digits_samples)
    assert "calibrated on 16 samples" in few.notes
    all_of_them = apply("int8{mode=static}", network, digits_samples.take(range(40)))
    assert "calibrated on 40 samples" in all_of_them.notes


def test_ranges_come_from_the_calibration_data(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear()
    tiny = Dataset("tiny", {"x": [x / 100 for x in rows.inputs["x"]]}, batch_first=True)
    good = apply("int8{mode=static}", model, rows)
    clipped = apply("int8{mode=static}", model, rows, calibration=tiny)
    want = outputs(model, rows)
    assert error(outputs(good.model, rows), want) < 0.05
    assert error(outputs(clipped.model, rows), want) > 0.5  # everything is cut off at 1%


@pytest.mark.parametrize(
    ("text", "operator", "most"),
    [
        ("int8", "MatMulInteger", 0.05),
        ("int8{mode=dynamic,per=tensor}", "MatMulInteger", 0.05),
        ("int8{mode=dynamic,ops=matmul}", "MatMulInteger", 0.05),
        ("int8{mode=static}", "QuantizeLinear", 0.05),
        ("int8{mode=static,calibration=percentile}", "QuantizeLinear", 0.1),
        ("int8{mode=static,calibration=entropy}", "QuantizeLinear", 0.5),
        ("int8{mode=weights}", "com.microsoft::MatMulNBits", 0.02),
        ("int8{mode=weights,bits=4}", "com.microsoft::MatMulNBits", 0.25),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"external": "w.bin"}, {"opset": 11}], ids=["plain", "side file", "opset 11"]
)
def test_matrix_products_in_every_mode(
    text: str,
    operator: str,
    most: float,
    options: dict[str, Any],
    graph: GraphMaker,
    rows: Dataset,
    apply: Apply,
    outputs: Outputs,
) -> None:
    model = graph.linear(**options)
    result = apply(text, model, rows)
    assert result.model.count(operator) >= 2
    assert result.model.quantized
    assert result.model.size_bytes < 0.55 * model.size_bytes
    assert result.difference is None  # nothing is promised
    got = outputs(result.model, rows)
    assert error(got, outputs(model, rows)) < most
    assert Model.read(model.path) == model


def test_four_bits_are_smaller_than_eight_and_less_exact(
    graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear()
    eight, four = (apply(f"int8{{mode=weights,bits={b}}}", model, rows).model for b in (8, 4))
    assert four.size_bytes < 0.6 * eight.size_bytes
    want = outputs(model, rows)
    assert error(outputs(eight, rows), want) < error(outputs(four, rows), want)


@pytest.mark.parametrize("text", ["fold,int8", "fold,int8{mode=static}", "fold,int8{mode=weights}"])
def test_weights_in_constant_nodes_are_quantized_once_folded(
    text: str, graph: GraphMaker, rows: Dataset, apply: Apply, outputs: Outputs
) -> None:
    model = graph.linear(constants=True)
    result = apply(text, model, rows)
    assert result.model.quantized
    assert result.model.size_bytes < 0.6 * model.size_bytes
    assert error(outputs(result.model, rows), outputs(model, rows)) < 0.05


@pytest.mark.parametrize("text", ["int8", "int8{mode=weights}", "int8{mode=static}"])
def test_weights_in_constant_nodes_are_quantized_or_the_way_there_is_told(
    text: str, graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    try:
        assert apply(text, graph.linear(constants=True), rows).model.quantized
    except NotApplicable as reason:
        assert "fold" in str(reason)


def test_an_lstm_is_quantized_dynamically(
    apply: Apply, outputs: Outputs, cosine: Callable[..., float], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.LSTM(16, 32, batch_first=True).eval()
    torch.onnx.export(
        net, (torch.randn(1, 5, 16),), str(tmp_path / "lstm.onnx"), input_names=["x"],
        output_names=["y", "h", "c"], dynamo=False,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    data = Dataset("d", {"x": [rng.standard_normal((1, 5, 16), np.float32) for _ in range(8)]})
    model = Model.read(tmp_path / "lstm.onnx")
    result = apply("fold,int8", model, data)
    assert result.model.count("com.microsoft::DynamicQuantizeLSTM") == 1
    assert result.model.size_bytes < 0.5 * model.size_bytes
    assert cosine(outputs(result.model, data), outputs(model, data)) > 0.99


@pytest.mark.parametrize("isa", [frozenset({"avx2"}), VNNI])
@pytest.mark.parametrize("text", ["int8", "int8{mode=static}"])
def test_weights_have_seven_bits_where_products_would_overflow(
    text: str, isa: frozenset[str], graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    result = apply(text, graph.linear(), rows, isa=isa)
    weights = [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load(result.model.path).graph.initializer
        if tensor.data_type == TensorProto.INT8 and list(tensor.dims) == [64, 64]
    ]
    assert len(weights) == 2
    largest = max(int(np.abs(w).max()) for w in weights)
    assert largest <= 64 if isa != VNNI else largest > 64


def test_convolutions_are_not_quantized_dynamically_unasked(
    network: Model, digits_samples: Dataset, apply: Apply
) -> None:
    unasked = apply("fold,fuse,int8", network, digits_samples)
    assert unasked.model.count("ConvInteger") == 0
    assert unasked.model.count("MatMulInteger") == 1  # the head
    asked = apply("fold,fuse,int8{mode=dynamic,ops=conv}", network, digits_samples)
    assert asked.model.count("ConvInteger") == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("int8{mode=static,ops=conv}", "no convolution"),
        ("int8{mode=dynamic,ops=conv}", "no convolution"),
        ("int8,int8", "already quantized"),
        ("int8{mode=static},int8", "already quantized"),
        ("int8{mode=weights},int8{mode=static}", "already quantized"),
    ],
)
def test_what_does_not_apply_says_why(
    text: str, reason: str, graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    with pytest.raises(NotApplicable, match=reason):
        apply(text, graph.linear(), rows)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("int8", "no operator that dynamic quantization speeds up"),
        ("int8{mode=static}", "no operator that static quantization speeds up"),
        ("int8{mode=static,ops=matmul}", "no MatMul or Gemm"),
        ("int8{mode=weights}", "no MatMul with constant weights"),
        ("int8{mode=weights,bits=4}", "no MatMul with constant weights"),
    ],
)
def test_a_model_without_products_cannot_be_quantized(
    text: str, reason: str, graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    shape = ("float32", ("n", 64))
    model = graph([helper.make_node("Sigmoid", ["x"], ["y"])], {"x": shape}, {"y": shape})
    with pytest.raises(NotApplicable, match=reason):
        apply(text, model, rows)


def test_static_ranges_need_real_data(graph: GraphMaker, rows: Dataset, apply: Apply) -> None:
    with pytest.raises(NotApplicable, match=r"int8\{mode=static\} needs --data or --calibration"):
        apply("int8{mode=static}", graph.linear(), rows, calibration=None)
    assert apply("int8", graph.linear(), rows, calibration=None).model.quantized


@pytest.mark.parametrize(
    "text",
    ["int8{mode=dynamic,calibration=entropy}", "int8{samples=10}", "int8{bits=4}",
     "int8{mode=weights,ops=conv}", "int8{mode=weights,per=tensor}",
     "int8{mode=static,samples=0}"],
)  # fmt: skip
def test_options_that_the_mode_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="int8"):
        Chain.parse(text)


def test_histograms_take_samples_of_one_shape(
    graph: GraphMaker, apply: Apply, outputs: Outputs
) -> None:
    rng = np.random.default_rng(0)
    counts = [1, 3, 1, 1, 2, 1]
    data = Dataset("d", {"x": [rng.standard_normal((n, 64), np.float32) for n in counts]})
    model = graph.linear()
    result = apply("int8{mode=static,calibration=percentile}", model, data)
    assert "calibrated on 4 samples" in result.notes
    assert error(outputs(result.model, data), outputs(model, data)) < 0.4
