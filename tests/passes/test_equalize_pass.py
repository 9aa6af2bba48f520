"""Cross-layer equalisation: the same outputs, and per-tensor INT8 survives uneven channels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from optimize.errors import InputError, NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult
from optimize.passes.chain import Chain
from optimize.passes.equalize import fold_batch_norms

if TYPE_CHECKING:
    from conftest import GraphMaker

Apply = Callable[..., PassResult]
Outputs = Callable[..., Any]
Cosine = Callable[[Any, Any], float]
BETWEEN = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "Identity", "Clip", "Sigmoid")
IMAGE = {"x": ("float32", ("n", 3, 12, 12))}


def images(count: int = 12) -> Dataset:
    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((1, 3, 12, 12), np.float32) for _ in range(count)]
    return Dataset("images", {"x": arrays}, batch_first=True)


class Net:
    """A chain of convolutions, as nodes and weights, whose channels differ by ``spread``."""

    def __init__(self, seed: int, spread: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.spread = spread
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.at, self.channels = "x", 3

    def conv(self, channels: int = 8, depthwise: bool = False, bias: bool = True) -> Net:
        number = len(self.nodes)
        channels = self.channels if depthwise else channels
        fan = 1 if depthwise else self.channels
        weight = self.rng.standard_normal((channels, fan, 3, 3)) / np.sqrt(9 * fan)
        # Powers from 1/spread to spread, one for each output channel.
        weight *= self.spread ** self.rng.uniform(-1, 1, (channels, 1, 1, 1))
        names = [f"w{number}"] + [f"b{number}"] * bias
        self.weights[names[0]] = weight.astype(np.float32)
        if bias:
            self.weights[names[1]] = self.rng.standard_normal(channels).astype(np.float32)
        group = channels if depthwise else 1
        self._add("Conv", names, kernel_shape=[3, 3], pads=[1] * 4, group=group)
        self.channels = channels
        return self

    def norm(self) -> Net:
        number = len(self.nodes)
        names = [f"{part}{number}" for part in ("gamma", "beta", "mean", "variance")]
        for name in names:
            low = 0.5 if name.startswith(("gamma", "variance")) else -1
            self.weights[name] = self.rng.uniform(low, 2, self.channels).astype(np.float32)
        return self._add("BatchNormalization", names, epsilon=1e-3)

    def between(self, op: str) -> Net:
        if op in ("MaxPool", "AveragePool"):
            return self._add(op, [], kernel_shape=[3, 3], pads=[1] * 4)
        if op == "Clip":
            self.weights |= {"zero": np.float32(0), "six": np.float32(6)}
            return self._add(op, ["zero", "six"])
        return self._add(op, [])

    def head(self, transposed: bool) -> Net:
        self._add("GlobalAveragePool", [])
        self._add("Flatten", [])
        for number in (1, 2):
            weight = self.rng.standard_normal((self.channels, 6)).astype(np.float32)
            if number == 1:
                weight *= self.spread ** self.rng.uniform(-1, 1, 6)
            name = f"head{number}"
            self.weights[name] = (weight.T.copy() if transposed else weight).astype(np.float32)
            self.weights[f"{name}_bias"] = self.rng.standard_normal(6).astype(np.float32)
            self._add("Gemm", [name, f"{name}_bias"], transB=int(transposed))
            self.channels = 6
            if number == 1:
                self._add("Relu", [])
        return self

    def _add(self, op: str, extra: list[str], **attributes: Any) -> Net:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.at, *extra], [out], **attributes))
        self.at = out
        return self

    def save(self, graph: GraphMaker, *shown: str) -> Model:
        outputs = dict.fromkeys((self.at, *shown), ("float32", None))
        return graph(self.nodes, IMAGE, outputs, self.weights)


def weights(model: Model) -> dict[str, Any]:
    proto = onnx.load(str(model.path))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def spread(weight: Any) -> float:
    ranges = np.abs(weight).reshape(len(weight), -1).max(1)
    return float(ranges.max() / np.median(ranges))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10**6),
    layers=st.lists(
        st.tuples(st.booleans(), st.booleans(), st.booleans(), st.sampled_from(BETWEEN)),
        min_size=2,
        max_size=4,
    ),
    head=st.sampled_from([None, False, True]),
)
def test_outputs_are_kept_whatever_the_graph(
    graph: GraphMaker,
    apply: Apply,
    outputs: Outputs,
    seed: int,
    layers: list[tuple[bool, bool, bool, str]],
    head: bool | None,
) -> None:
    net = Net(seed, 4)
    for depthwise, bias, norm, op in layers:
        net.conv(depthwise=depthwise, bias=bias)
        if norm:
            net.norm()
        net.between(op)
    if head is not None:
        net.head(head)
    model = net.save(graph)
    try:
        result = apply("equalize", model, images(4))
    except NotApplicable:
        # ReLU6 or a sigmoid between all of them, and no Gemm after a Gemm.
        assert head is None
        assert all(op in ("Clip", "Sigmoid") for *_, op in layers[:-1])
        return
    got, want = outputs(result.model, images(4)), outputs(model, images(4))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_uneven_channels_no_longer_ruin_int8_per_tensor(
    graph: GraphMaker, apply: Apply, outputs: Outputs, cosine: Cosine
) -> None:
    net = Net(1, 10).conv(16).between("Relu").conv(depthwise=True).between("Relu").conv(16)
    # What one layer scales up the next one takes back, as trained networks do.
    flat = [name for name in net.weights if name.startswith("w")]
    for first, second in pairwise(flat):
        ranges = np.abs(net.weights[first]).reshape(16, -1).max(1)
        axis = 0 if net.weights[second].shape[1] == 1 else 1
        shape = [-1 if a == axis else 1 for a in range(4)]
        net.weights[second] = (net.weights[second] / ranges.reshape(shape)).astype(np.float32)
    for name in net.weights:
        if name.startswith("b"):
            net.weights[name] *= 0
    model = net.save(graph)
    int8 = "int8{mode=static,per=tensor}"
    true = outputs(model, images())
    rough = cosine(outputs(apply(int8, model, images()).model, images()), true)
    even = cosine(outputs(apply(f"equalize,{int8}", model, images()).model, images()), true)
    assert rough < 0.98
    assert 1 - even < (1 - rough) / 5


def test_ranges_of_neighbours_become_equal(graph: GraphMaker, apply: Apply) -> None:
    model = Net(3, 10).conv(8).between("Relu").conv(8).save(graph)
    after = weights(apply("equalize", model, images(2)).model)
    out = np.abs(after["w0"]).max(axis=(1, 2, 3))
    into = np.abs(after["w2"]).max(axis=(0, 2, 3))
    np.testing.assert_allclose(out, into, rtol=1e-3)


@pytest.mark.parametrize("op", ["Clip", "Sigmoid"])
def test_what_is_not_homogeneous_stops_it(graph: GraphMaker, apply: Apply, op: str) -> None:
    with pytest.raises(NotApplicable, match="no two convolutions follow each other"):
        apply("equalize", Net(0, 4).conv().between(op).conv().save(graph), images(2))


def test_a_shown_output_stops_it(graph: GraphMaker, apply: Apply) -> None:
    with pytest.raises(NotApplicable, match="no two convolutions"):
        apply("equalize", Net(0, 4).conv().between("Relu").conv().save(graph, "t1"), images(2))


def test_residual_branches_are_untouched(graph: GraphMaker, apply: Apply) -> None:
    net = Net(0, 5).conv(8).between("Relu").conv(8).between("Relu").conv(8)
    net.nodes.append(helper.make_node("Add", ["t1", net.at], ["sum"]))
    net.at = "sum"
    model = net.save(graph)
    before, after = weights(model), weights(apply("equalize", model, images(2)).model)
    # t1 has two readers, so the first layer's channels must stay; the pair after it may change.
    np.testing.assert_array_equal(before["w0"], after["w0"])
    assert not np.array_equal(before["w2"], after["w2"])


def test_shared_weights_are_untouched(graph: GraphMaker, apply: Apply) -> None:
    net = Net(0, 5).conv(3).between("Relu").conv(3)
    net.nodes[-1].input[1] = "w0"
    del net.weights["w2"]
    with pytest.raises(NotApplicable, match="no two convolutions"):
        apply("equalize", net.save(graph), images(2))


def test_a_dead_channel_survives(graph: GraphMaker, apply: Apply, outputs: Outputs) -> None:
    net = Net(0, 5).conv(8).between("Relu").conv(8)
    net.weights["w0"][3] = 0
    net.weights["w2"][:, 5] = 0
    model = net.save(graph)
    result = apply("equalize", model, images(2))
    assert all(np.isfinite(value).all() for value in weights(result.model).values())
    want = outputs(model, images(2))
    np.testing.assert_allclose(
        outputs(result.model, images(2)), want, atol=1e-4 * np.abs(want).max()
    )


def test_the_trained_digits_network_keeps_its_logits(
    digits_onnx: Path, digits_samples: Dataset, digits_logits: Any, apply: Apply, outputs: Outputs
) -> None:
    model = Model.read(digits_onnx)
    assert model.count("BatchNormalization") == 2
    result = apply("equalize", model, digits_samples)
    assert result.model.count("BatchNormalization") == 0
    got = outputs(result.model, digits_samples)
    np.testing.assert_allclose(got, digits_logits, atol=1e-3 * np.abs(digits_logits).max())


@pytest.mark.parametrize("bias", [True, False])
def test_batch_norms_fold_into_convolutions(graph: GraphMaker, bias: bool) -> None:
    model = (
        Net(7, 3).conv(8, bias=bias).norm().between("Relu").conv(4, bias=bias).norm().save(graph)
    )
    proto = onnx.load(str(model.path))
    assert fold_batch_norms(proto) == 2
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    folded, original = (
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        for content in (proto.SerializeToString(), str(model.path))
    )
    for index in range(4):
        sample = images(4).sample(index)
        want = original.run(None, sample)[0]
        np.testing.assert_allclose(
            folded.run(None, sample)[0], want, atol=1e-5 * np.abs(want).max()
        )


def test_a_batch_norm_whose_input_is_read_elsewhere_stays(graph: GraphMaker) -> None:
    shown = Net(7, 3).conv(8).norm().save(graph, "t0")
    proto = onnx.load(str(shown.path))
    assert fold_batch_norms(proto) == 0


def test_half_precision_is_left_alone(graph: GraphMaker, apply: Apply) -> None:
    model = Net(0, 3).conv(8).norm().between("Relu").conv(8).save(graph)
    with pytest.raises(NotApplicable, match="no two convolutions"):
        apply("fp16,equalize", model, images(2))


def test_it_says_why_it_does_not_apply(graph: GraphMaker, apply: Apply, rows: Dataset) -> None:
    with pytest.raises(NotApplicable, match="already quantized"):
        apply("int8,equalize", graph.linear(), rows)
    with pytest.raises(NotApplicable, match="no two convolutions"):
        apply("equalize", graph.linear(), rows)
    with pytest.raises(InputError, match="rounds=0 is not at least 1"):
        Chain.parse("equalize{rounds=0}")
