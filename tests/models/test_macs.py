"""Multiply-accumulates against brute force on small graphs, and against torch's own counter."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from optimize.models.cost import Cost, count_cost
from optimize.models.macs import taps, winograd_gain

Arrays = Mapping[str, Any]
RNG = np.random.default_rng(0)


def save(
    path: Path, nodes: Sequence[Any], inputs: Arrays, weights: Arrays, outputs: Sequence[str]
) -> Path:
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def cost(
    folder: Path, nodes: Any, inputs: Arrays, weights: Arrays, outputs: Sequence[str] = ("y",)
) -> Cost:
    nodes = nodes if isinstance(nodes, list) else [nodes]
    return count_cost(save(folder / "small.onnx", nodes, inputs, weights, outputs), inputs)


def f(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


@given(
    st.integers(0, 9),
    st.integers(0, 6),
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 6),
)
def test_taps_are_those_that_brute_force_counts(
    positions: int, kernel: int, size: int, stride: int, dilation: int, pad: int
) -> None:
    pairs = itertools.product(range(positions), range(kernel))
    inside = sum(0 <= o * stride + k * dilation - pad < size for o, k in pairs)
    assert taps(positions, kernel, size, stride, dilation, pad) == inside


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.integers(1, 2))
    several = lambda low, high: draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))  # noqa: E731
    group = draw(st.sampled_from([1, 2]))
    kernel, dilations, size = several(1, 3), several(1, 2), several(7, 9)
    return {
        "x": (draw(st.integers(1, 2)), 2 * group, *size),
        "w": (2 * group, 2, *kernel),
        "attributes": {"group": group, "strides": several(1, 3), "dilations": dilations, "pads": several(0, 2) + several(0, 2)},
    }  # fmt: skip


@given(convolutions())
@settings(max_examples=30, deadline=None)
def test_convolutions_against_products_that_are_not_zero(
    tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]
) -> None:
    """Ones convolved with ones: each output is the number of its products that are no padding."""
    folder = tmp_path_factory.mktemp("conv")
    x, w = np.ones(case["x"], np.float32), np.ones(case["w"], np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **case["attributes"])
    counted = cost(folder, node, {"x": x}, {"w": w})
    import onnxruntime

    y = onnxruntime.InferenceSession(str(folder / "small.onnx")).run(None, {"x": x})[0]
    assert counted.direct.total == y.sum()
    assert counted.macs_by_op == {"Conv": y.size * w[0].size}
    assert counted.weight_bytes == w.nbytes


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(tmp_path: Path, auto_pad: str) -> None:
    x, w = np.ones((1, 1, 8, 9), np.float32), np.ones((2, 1, 4, 2), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, strides=[2, 3])
    counted = cost(tmp_path, node, {"x": x}, {"w": w})
    import onnxruntime

    y = onnxruntime.InferenceSession(str(tmp_path / "small.onnx")).run(None, {"x": x})[0]
    assert counted.direct.total == y.sum()


@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(3, 4))
@settings(max_examples=20, deadline=None)
def test_transposed_convolutions(
    tmp_path_factory: pytest.TempPathFactory, stride: int, pad: int, dilation: int, kernel: int
) -> None:
    folder = tmp_path_factory.mktemp("transposed")
    x, w = np.ones((1, 2, 5, 6), np.float32), np.ones((2, 3, kernel, kernel), np.float32)
    node = helper.make_node(
        "ConvTranspose",
        ["x", "w"],
        ["y"],
        strides=[stride] * 2,
        pads=[pad] * 4,
        dilations=[dilation] * 2,
    )
    counted = cost(folder, node, {"x": x}, {"w": w})
    import onnxruntime

    y = onnxruntime.InferenceSession(str(folder / "small.onnx")).run(None, {"x": x})[0]
    assert counted.direct.total == y.sum()
    assert counted.macs == x.size * 3 * kernel**2


def test_products_of_matrices(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert cost(tmp_path, node, {"x": f(2, 3, 5, 7)}, {"w": f(7, 11)}).macs == 2 * 3 * 5 * 7 * 11
    both = cost(tmp_path, node, {"x": f(2, 1, 5, 7), "w": f(3, 7, 4)}, {})
    assert (both.macs, both.weight_bytes) == (2 * 3 * 5 * 7 * 4, 0)
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transA=1, transB=1)
    assert cost(tmp_path, gemm, {"x": f(7, 5)}, {"w": f(11, 7), "b": f(11)}).macs == 5 * 7 * 11
    einsum = helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij,kj->bik")
    assert cost(tmp_path, einsum, {"x": f(2, 3, 5)}, {"w": f(7, 5)}).macs == 2 * 3 * 5 * 7


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(tmp_path: Path, op: str, gates: int) -> None:
    steps, batch, size, hidden = 6, 2, 3, 5
    weights = {"w": f(2, gates * hidden, size), "r": f(2, gates * hidden, hidden)}
    node = helper.make_node(
        op, ["x", "w", "r"], ["y"], hidden_size=hidden, direction="bidirectional"
    )
    counted = cost(tmp_path, node, {"x": f(steps, batch, size)}, weights)
    assert counted.macs == 2 * steps * batch * gates * hidden * (size + hidden)
    first = 2 * batch * gates * hidden * hidden  # of a state that is zero
    assert counted.direct.total == counted.macs - first


def test_a_fused_attention_costs_what_its_parts_cost(tmp_path: Path) -> None:
    batch, length, hidden, heads = 2, 5, 8, 2
    weights = {"w": f(hidden, 3 * hidden), "b": f(3 * hidden)}
    inputs = {"x": f(batch, length, hidden)}
    projected = batch * length * hidden * 3 * hidden
    scores = 2 * batch * heads * length * length * (hidden // heads)
    for causal in (0, 1):
        node = helper.make_node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=heads, unidirectional=causal)  # fmt: skip
        counted = cost(tmp_path, node, inputs, weights)
        assert counted.macs_by_op == {"com.microsoft.Attention": projected + scores}
        assert counted.direct.total == projected + (scores // 2 if causal else scores)


def test_integer_operators(tmp_path: Path) -> None:
    x, w = RNG.integers(0, 9, (5, 7)).astype(np.uint8), RNG.integers(0, 9, (7, 11)).astype(np.int8)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    counted = cost(tmp_path, node, {"x": x}, {"w": w})
    assert counted.macs == counted.direct.integer == 5 * 7 * 11
    assert (counted.weight_count, counted.weight_bytes) == (77, 77)
    one = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "u": np.array(0, np.uint8)}
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s", "u"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "u"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    counted = cost(tmp_path, pair, {"x": f(5, 7)}, {"w": w, **one})
    assert counted.macs == counted.direct.integer == 5 * 7 * 11
    assert (counted.weight_count, counted.weight_bytes) == (77, 77)
    # Weights alone in bytes: a runtime may quantize what they are multiplied with, in the call.
    half = [*pair[2:3], helper.make_node("MatMul", ["x", "wd"], ["y"])]
    assert cost(tmp_path, half, {"x": f(5, 7)}, {"w": w, **one}).direct.integer == 5 * 7 * 11


def test_nodes_may_stand_in_any_order(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "v"], ["y"]),
        helper.make_node("Relu", ["z"], ["a"]),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
    ]
    weights = {"w": f(4, 5), "v": f(5, 6)}
    assert cost(tmp_path, nodes, {"x": f(3, 4)}, weights).direct.total == 3 * 4 * 5 + 3 * 5 * 6


def test_what_a_runtime_leaves_out_is_not_needed(tmp_path: Path) -> None:
    product = lambda a, b, to: helper.make_node("MatMul", [a, b], [to])  # noqa: E731
    weights = {"v": f(4, 4), "w": f(4, 4)}
    folded = [product("v", "w", "vw"), product("x", "vw", "y")]
    assert cost(tmp_path, folded, {"x": f(3, 4)}, weights).macs == 3 * 16
    twice = [
        product("x", "w", "a"),
        product("x", "w", "b"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    counted = cost(tmp_path, twice, {"x": f(3, 4)}, weights)
    assert (counted.macs, counted.direct.total) == (2 * 3 * 16, 3 * 16)
    unused = [product("x", "v", "never"), product("x", "w", "y")]
    assert cost(tmp_path, unused, {"x": f(3, 4)}, weights).direct.total == 3 * 16


def body(name: str, weight: str) -> Any:
    node = helper.make_node("MatMul", ["x", weight], [name])
    return helper.make_graph([node], name, [], [helper.make_empty_tensor_value_info(name)])


@pytest.mark.parametrize("taken", [True, False])
def test_what_values_decide_is_counted_but_not_needed(tmp_path: Path, taken: bool) -> None:
    branches = {"then_branch": body("t", "w"), "else_branch": body("e", "v")}
    inputs = {"x": f(3, 4), "c": np.array(taken)}
    nodes = [helper.make_node("If", ["c"], ["b"], **branches), helper.make_node("MatMul", ["x", "u"], ["y"])]  # fmt: skip
    weights = {"w": f(4, 5), "v": f(4, 9), "u": f(4, 2)}
    counted = cost(tmp_path, nodes, inputs, weights, ("b", "y"))
    assert counted.macs == 3 * 4 * (5 if taken else 9) + 3 * 4 * 2
    assert counted.direct.total == 3 * 4 * 2
    assert counted.weight_count == 8


@pytest.mark.parametrize("trips", [0, 1, 5])
def test_a_loop_need_not_run(tmp_path: Path, trips: int) -> None:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["s", "w"], ["t"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_tensor_value_info("i", 7, ()), helper.make_tensor_value_info("go", 9, ()), helper.make_tensor_value_info("s", 1, (3, 4))],
        [helper.make_tensor_value_info("on", 9, ()), helper.make_tensor_value_info("t", 1, (3, 4))],
    )  # fmt: skip
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=inner)
    counted = cost(tmp_path, node, {"x": f(3, 4), "n": np.array(trips)}, {"w": f(4, 4)})
    assert counted.macs == trips * 3 * 4 * 4
    assert (counted.direct.total, counted.winograd.total, counted.weight_bytes) == (0, 0, 0)


@pytest.mark.parametrize("by", ["NonZero", "Slice"])
def test_shapes_that_hang_on_values_are_not_needed(tmp_path: Path, by: str) -> None:
    nodes = [
        helper.make_node("NonZero", ["m"], ["n"]),
        helper.make_node("Squeeze", ["n", "zero"], ["i"]),
        helper.make_node("Gather", ["x", "i"], ["s"]),
    ]
    if by == "Slice":
        nodes = [helper.make_node("Slice", ["x", "zero", "m"], ["s"])]
    nodes += [helper.make_node("MatMul", ["s", "w"], ["y"]), helper.make_node("MatMul", ["x", "v"], ["z"])]  # fmt: skip
    mask = np.array([1, 1, 0] if by == "NonZero" else [2], np.int64)
    weights = {"w": f(4, 5), "v": f(4, 2), "zero": np.array([0], np.int64)}
    counted = cost(tmp_path, nodes, {"x": f(3, 4), "m": mask}, weights, ("y", "z"))
    assert counted.macs == 2 * 4 * 5 + 3 * 4 * 2
    assert counted.direct.total == 3 * 4 * 2


def test_slices_by_shapes_are_needed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["t"], ["end"]),
        helper.make_node("Slice", ["x", "zero", "end"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    weights = {"w": f(4, 5), "zero": np.array([0], np.int64)}
    counted = cost(tmp_path, nodes, {"x": f(3, 4), "t": f(2)}, weights)
    assert counted.direct.total == 2 * 4 * 5


def test_what_follows_from_shapes_alone_is_not_needed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("MatMul", ["zeros", "w"], ["bias"]),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "bias"], ["y"]),
    ]
    assert cost(tmp_path, nodes, {"x": f(3, 4)}, {"w": f(4, 5)}).direct.total == 3 * 4 * 5


def test_bytes_that_are_moved_before_a_product_stay_bytes(tmp_path: Path) -> None:
    """A runtime may quantize the other operand, too, so that one in bytes is enough."""
    quantized = {"q": RNG.integers(0, 9, (11, 7)).astype(np.int8), "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    counted = cost(tmp_path, nodes, {"x": f(5, 7)}, quantized)
    assert (counted.direct.plain, counted.direct.integer) == (0, 5 * 7 * 11)
    plain = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]  # fmt: skip
    assert cost(tmp_path, plain, {"x": f(5, 7)}, {"w": f(7, 7), "v": f(7, 7)}).direct.integer == 0


@given(st.integers(1, 9), st.sampled_from([4, 8]))
def test_minimal_filtering_by_its_own_algorithm(kernel: int, tile: int) -> None:
    """F(m, r) takes m + r - 1 products, which no filter of r taps with m outputs can go below."""
    gain = winograd_gain(kernel, 1, tile)
    pieces = [(r, tile + 1 - r) for r in range(1, min(kernel, tile) + 1)]
    assert gain == max(r * m / (m + r - 1) for r, m in pieces)
    assert 1 <= gain <= kernel
    assert winograd_gain(kernel, 2, tile) == 1


def test_known_gains_of_minimal_filtering(tmp_path: Path) -> None:
    """5.06 of F(6x6, 3x3) and 2.25 of F(2x2, 3x3), as their papers say."""
    x, w = f(1, 4, 32, 32), f(4, 4, 3, 3)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    counted = cost(tmp_path, node, {"x": x}, {"w": w})
    assert counted.direct.total / counted.winograd.total == pytest.approx(324 / 64)
    xq, wq = x.astype(np.uint8), w.astype(np.uint8)
    counted = cost(
        tmp_path, helper.make_node("ConvInteger", ["x", "w"], ["y"]), {"x": xq}, {"w": wq}
    )
    assert counted.direct.total / counted.winograd.total == pytest.approx(36 / 16)
    strided = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2])
    counted = cost(tmp_path, strided, {"x": x}, {"w": w})
    assert counted.direct == counted.winograd


def test_costs_survive_a_file(tmp_path: Path) -> None:
    counted = cost(tmp_path, helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": f(2, 3)}, {"w": f(3, 4)})  # fmt: skip
    assert Cost.from_json(json.dumps(asdict(counted))) == counted


def test_recurrent_layers_of_padded_sequences_may_stop_at_once(tmp_path: Path) -> None:
    inputs = {"x": f(6, 2, 3), "n": np.array([6, 6], np.int32)}
    node = helper.make_node("LSTM", ["x", "w", "r", "", "n"], ["y"], hidden_size=5)
    counted = cost(tmp_path, node, inputs, {"w": f(1, 20, 3), "r": f(1, 20, 5)})
    assert (counted.direct.total, counted.weight_count) == (0, 0)


def test_a_table_that_is_looked_up_is_not_read_whole(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["t", "i"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    counted = cost(tmp_path, nodes, {"i": np.array([1, 2])}, {"t": f(1000, 4), "w": f(4, 5)})
    assert counted.weight_bytes == 4 * 4 * 5


def test_operators_without_a_rule_are_named(tmp_path: Path) -> None:
    node = helper.make_node("DFT", ["x"], ["y"])
    assert cost(tmp_path, node, {"x": f(1, 8, 1)}, {}).unknown_ops == ("DFT",)


def test_external_data_is_found(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": f(2, 64)},
        {"w": f(64, 64)},
        ["y"],
    )
    whole = count_cost(path, {"x": f(2, 64)})
    onnx.save(
        onnx.load(str(path)),
        str(path),
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    assert (tmp_path / "m.data").is_file()
    assert count_cost(path, {"x": f(2, 64)}) == whole


class TestTorch:
    """torch.utils.flop_counter counts two FLOPs a multiply-accumulate, by its own formulas."""

    @staticmethod
    def nets() -> dict[str, tuple[Any, Any]]:
        import torch
        from torch import nn

        image = torch.zeros(2, 4, 12, 10)
        cnn = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, stride=2),
            nn.Conv2d(8, 6, (1, 3), dilation=(1, 2), padding=(0, 2)), nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
            nn.Flatten(), nn.Linear(320, 7),
        )  # fmt: skip
        encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        return {"cnn": (cnn, image), "transformer": (encoder, torch.zeros(2, 9, 16))}

    @pytest.mark.parametrize("name", ["cnn", "transformer"])
    def test_exported_networks(self, name: str, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        net, x = self.nets()[name]
        net = net.train()  # the fused inference path of transformers hides its products
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            net(x)
        path = tmp_path / "net.onnx"
        torch.onnx.export(
            net.eval(), (x,), str(path), dynamo=True, verbose=False, external_data=False
        )
        name = onnx.load(str(path)).graph.input[0].name
        counted = count_cost(path, {name: x.numpy()})
        assert 2 * counted.macs == counter.get_total_flops()
        assert counted.direct.total <= counted.macs
        assert counted.unknown_ops == ()

    @given(
        st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(0, 2),
        st.integers(1, 2), st.integers(1, 4),
    )  # fmt: skip
    @settings(max_examples=25, deadline=None)
    def test_random_convolutions(
        self, tmp_path_factory: pytest.TempPathFactory, group: int, width: int, kernel: int,
        stride: int, pad: int, dilation: int, batch: int,
    ) -> None:  # fmt: skip
        torch = pytest.importorskip("torch")
        from torch.utils.flop_counter import FlopCounterMode

        x, w = f(batch, group * width, 9, 8), f(group * 2, width, kernel, kernel)
        with FlopCounterMode(display=False) as counter:
            torch.conv2d(
                torch.from_numpy(x), torch.from_numpy(w), None, stride, pad, dilation, group
            )
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], group=group, strides=[stride] * 2, pads=[pad] * 4,
            dilations=[dilation] * 2,
        )  # fmt: skip
        counted = cost(tmp_path_factory.mktemp("conv"), node, {"x": x}, {"w": w})
        assert 2 * counted.macs == counter.get_total_flops()
        assert 0 < counted.winograd.total <= counted.direct.total <= counted.macs
        assert pad > 0 or counted.direct.total == counted.macs

    @given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans())
    @settings(max_examples=20, deadline=None)
    def test_random_products(
        self, tmp_path_factory: pytest.TempPathFactory, m: int, k: int, n: int, flip: bool, turn: bool
    ) -> None:  # fmt: skip
        torch = pytest.importorskip("torch")
        from torch.utils.flop_counter import FlopCounterMode

        x, w = f(m, k), f(k, n)
        with FlopCounterMode(display=False) as counter:
            torch.mm(torch.from_numpy(x), torch.from_numpy(w))
        node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=int(flip), transB=int(turn))
        given_x, given_w = (x.T if flip else x).copy(), (w.T if turn else w).copy()
        counted = cost(tmp_path_factory.mktemp("gemm"), node, {"x": given_x}, {"w": given_w})
        assert 2 * counted.direct.total == counter.get_total_flops()
        assert counted.weight_bytes == w.nbytes
