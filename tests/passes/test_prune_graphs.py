"""Random graphs: what is cut out equals what is multiplied by zero, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from prunable import SIZE, Builder, networks

from optimize.models.data import Dataset
from optimize.passes.pruning.graph import measured_shapes, plain
from optimize.passes.pruning.groups import Dependencies, dependencies
from optimize.passes.pruning.shrink import shrink

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def images(count: int = 2) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 3, SIZE, SIZE), np.float32) for _ in range(count)]
    return Dataset("images", {"image": arrays}, batch_first=True)


def run(proto: Any, feed: dict[str, Any], names: list[str] | None = None) -> list[Any]:
    if names is not None:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        proto = copy
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def choose(found: Dependencies, rng: np.random.Generator) -> Any:
    """Remove a random part of each group, at least one channel staying."""
    keep = np.ones(found.count, bool)
    for group in found.groups:
        count = int(rng.integers(0, len(group.channels)))
        keep[rng.choice(group.channels, count, replace=False)] = False
    return keep


def masked(proto: Any, found: Dependencies, keep: Any) -> tuple[Any, dict[str, str]]:
    """The original graph with every channel that goes multiplied by zero, wherever it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names: dict[str, str] = {}
    nodes = []
    for node in proto.graph.node:
        own = onnx.NodeProto()
        own.CopyFrom(node)
        own.input[:] = [names.get(name, name) for name in node.input]
        nodes.append(own)
        for output in node.output:
            for k, labels in enumerate(found.axes.get(output, ())):
                if labels is None or keep[labels].all():
                    continue
                shape = [1] * len(found.axes[output])
                shape[k] = len(labels)
                mask = numpy_helper.from_array(
                    keep[labels].astype(np.float32).reshape(shape), f"{output}.mask{k}"
                )
                copy.graph.initializer.append(mask)
                name = f"{output}.masked{k}"
                nodes.append(
                    helper.make_node("Mul", [names.get(output, output), mask.name], [name])
                )
                names[output] = name
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy, names


@QUICK
@given(proto=networks(), seed=st.integers(0, 99))
def test_cut_channels_equal_channels_of_zeros(proto: Any, seed: int) -> None:
    proto = plain(proto)
    shapes = measured_shapes(proto, images())
    found = dependencies(proto, shapes)
    keep = choose(found, np.random.default_rng(seed))
    small = shrink(proto, found, shapes, keep)
    onnx.checker.check_model(small, full_check=True)
    reference, names = masked(proto, found, keep)
    labelled = sorted(found.axes)
    for index in range(2):
        feed = images().sample(index)
        want = run(reference, feed, [proto.graph.output[0].name])[0]
        got = run(small, feed)[0]
        assert got.shape == want.shape == (1, 5)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * (1 + np.abs(want).max()))
        # The same of every tensor in between, without the channels that went.
        wanted = run(reference, feed, [names.get(name, name) for name in labelled])
        for name, value, full in zip(labelled, run(small, feed, labelled), wanted, strict=True):
            for axis, labels in enumerate(found.axes[name]):
                if labels is not None:
                    full = np.compress(keep[labels], full, axis)
            scale = 1 + np.abs(full).max(initial=0)
            np.testing.assert_allclose(value, full, rtol=1e-4, atol=1e-5 * scale)


@QUICK
@given(proto=networks())
def test_nothing_removed_is_exact(proto: Any) -> None:
    proto = plain(proto)
    shapes = measured_shapes(proto, images())
    found = dependencies(proto, shapes)
    same = shrink(proto, found, shapes, np.ones(found.count, bool))
    feed = images().sample(0)
    np.testing.assert_array_equal(run(same, feed)[0], run(proto, feed)[0])


@QUICK
@given(proto=networks())
def test_every_layer_is_in_a_group_or_has_a_reason(proto: Any) -> None:
    proto = plain(proto)
    found = dependencies(proto, measured_shapes(proto, images()))
    layers = {
        index
        for index, node in enumerate(proto.graph.node)
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    }
    grouped = {layer for group in found.groups for layer in group.layers}
    assert grouped | set(found.untouched) == layers
    assert all(found.untouched.values())
    # What computes the output never gives up a channel.
    last = max(layers)
    assert last in found.untouched
    assert last not in grouped


def found_in(builder: Builder, output: str) -> tuple[Any, Dependencies]:
    proto = plain(builder.model(output))
    return proto, dependencies(proto, measured_shapes(proto, images()))


def group_names(proto: Any, found: Dependencies) -> list[list[str]]:
    return [[proto.graph.node[i].name for i in group.layers] for group in found.groups]


def test_a_residual_ties_the_layers_on_both_sides() -> None:
    b = Builder(np.random.default_rng(0))
    stem = b.conv("image", 8)
    inner = b.conv(stem, 6)
    back = b.conv(inner, 8)
    summed = b.node("Add", [stem, back], 8)
    proto, found = found_in(b, b.mean_head(summed))
    assert sorted(group_names(proto, found)) == sorted([[stem, back], [inner]])


def test_a_concat_ties_nothing() -> None:
    b = Builder(np.random.default_rng(0))
    left, right = b.conv("image", 8), b.conv("image", 4)
    joined = b.node("Concat", [left, right], 12, axis=1)
    proto, found = found_in(b, b.flat_head(joined))
    gemm = next(name for name in b.channels if name.startswith("gemm"))
    assert group_names(proto, found) == [[left], [right], [gemm]]


def test_a_depthwise_layer_goes_with_the_one_before() -> None:
    b = Builder(np.random.default_rng(0))
    expand = b.conv("image", 8, 1)
    deep = b.depthwise(expand)
    proto, found = found_in(b, b.mean_head(deep))
    assert group_names(proto, found) == [[expand, deep]]
    assert found.groups[0].width == 1


def test_a_grouped_convolution_goes_by_whole_groups() -> None:
    b = Builder(np.random.default_rng(0))
    before = b.conv("image", 8)
    grouped = b.depthwise(before, groups=4)
    proto, found = found_in(b, b.mean_head(grouped))
    assert group_names(proto, found) == [[before, grouped]]
    assert (len(found.groups[0].channels), found.groups[0].width) == (4, 2)


def test_softmax_over_channels_keeps_them() -> None:
    b = Builder(np.random.default_rng(0))
    layer = b.conv("image", 8)
    weights = b.node("Softmax", [layer], 8, axis=1)
    _, found = found_in(b, b.mean_head(weights))
    assert not found.groups
    assert found.untouched[0] == "Softmax takes all its channels together"


def test_what_is_added_to_the_input_stays() -> None:
    b = Builder(np.random.default_rng(0))
    layer = b.conv("image", 3)
    summed = b.node("Add", [layer, "image"], 3)
    _, found = found_in(b, b.mean_head(summed))
    assert not found.groups
    assert "fixed channels" in found.untouched[0]


def test_an_operator_without_a_rule_keeps_what_it_reads() -> None:
    b = Builder(np.random.default_rng(0))
    layer = b.conv("image", 8)
    normed = b.node("LRN", [layer], 8, size=3)
    _, found = found_in(b, b.mean_head(normed))
    assert not found.groups
    assert found.untouched[0] == "LRN reads it"


def test_a_weight_that_two_layers_share_is_cut_for_each() -> None:
    b = Builder(np.random.default_rng(0))
    shared = b.random(8, 8, 1, 1)
    first = b.node("Conv", [b.conv("image", 8), shared], 8)
    second = b.node("Conv", [b.unary(first, "Relu"), shared], 8)
    proto = plain(b.model(b.mean_head(second)))
    shapes = measured_shapes(proto, images())
    found = dependencies(proto, shapes)
    keep = choose(found, np.random.default_rng(3))
    reference, _ = masked(proto, found, keep)
    feed = images().sample(0)
    got = run(shrink(proto, found, shapes, keep), feed)[0]
    np.testing.assert_allclose(got, run(reference, feed)[0], rtol=1e-4, atol=1e-5)
    assert not keep.all()


def branch(builder: Builder, *nodes: Any) -> str:
    """An If whose branches are equal: the last node's output is theirs."""
    on = builder.weight(np.array(True))
    result = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    sides = {
        f"{side}_branch": helper.make_graph(nodes, side, [], result) for side in ("then", "else")
    }
    return builder.node("If", [on], 0, **sides)


def test_a_weight_that_a_branch_or_the_caller_reads_stays_whole_there() -> None:
    b = Builder(np.random.default_rng(0))
    pooled = b.node("Flatten", [b.node("GlobalAveragePool", ["image"], 3)], 3)
    first, second = b.random(3, 8), b.random(8, 5)
    hidden = b.unary(b.node("MatMul", [pooled, first], 8), "Relu")
    product = b.node("MatMul", [hidden, second], 5)
    most = branch(
        b,
        helper.make_node("MatMul", [pooled, first], ["inside"]),
        helper.make_node("ReduceMax", ["inside"], ["most"], keepdims=0),
    )
    proto = plain(b.model(b.node("Add", [product, most], 5)))
    proto.graph.output.append(helper.make_tensor_value_info(second, TensorProto.FLOAT, [8, 5]))
    shapes = measured_shapes(proto, images())
    found = dependencies(proto, shapes)
    keep = choose(found, np.random.default_rng(3))
    assert not keep.all()
    reference, _ = masked(proto, found, keep)
    feed = images().sample(0)
    pairs = zip(run(shrink(proto, found, shapes, keep), feed), run(reference, feed), strict=True)
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def _by_output(b: Builder, shape: str) -> str:
    return shape


def _by_branch(b: Builder, shape: str) -> str:
    return branch(b, helper.make_node("Identity", [shape], ["inside"]))


def _backwards(b: Builder, shape: str) -> str:
    ends = [b.weight(np.array([i], np.int64)) for i in (-1, -5, 0, -1)]
    return b.node("Slice", [shape, *ends], 0)


@pytest.mark.parametrize("read", [_by_output, _by_branch, _backwards])
def test_a_number_of_channels_that_is_read_stays(read: Callable[[Builder, str], str]) -> None:
    b = Builder(np.random.default_rng(0))
    layer = b.conv("image", 8)
    shown = read(b, b.node("Shape", [layer], 0))
    proto = plain(b.model(b.mean_head(layer)))
    proto.graph.output.append(helper.make_tensor_value_info(shown, TensorProto.INT64, None))
    found = dependencies(proto, measured_shapes(proto, images()))
    assert not found.groups
    assert found.untouched[0] == "its number of channels is computed with"


def test_a_resize_of_some_axes_keeps_what_it_reads() -> None:
    b = Builder(np.random.default_rng(0))
    sizes = b.weight(np.array([16, 16], np.int64))
    layer = b.conv("image", 8)
    larger = b.node("Resize", [layer, "", "", sizes], 8, axes=[2, 3], mode="nearest")
    _, found = found_in(b, b.mean_head(larger))
    assert not found.groups
    assert found.untouched[0] == "Resize reads it"


def attention(heads: int = 3, width: int = 4) -> Any:
    """Self-attention over rows of 6 features; the shapes of its heads are put together."""
    b = Builder(np.random.default_rng(0))
    size = heads * width
    first = b.weight(np.array([0], np.int64))
    second = b.weight(np.array([1], np.int64))
    shape = b.node("Shape", ["x"], 0)
    lengths = [b.node("Gather", [shape, at], 0) for at in (first, second)]
    split = [*lengths, b.weight(np.array([heads], np.int64)), b.weight(np.array([width], np.int64))]
    target = b.node("Concat", split, 0, axis=0)
    parts = []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        product = b.node("MatMul", ["x", b.random(6, size)], 0)
        biased = b.node("Add", [product, b.random(size)], 0)
        parts.append(b.node("Transpose", [b.node("Reshape", [biased, target], 0)], 0, perm=order))
    scores = b.node("Softmax", [b.node("MatMul", parts[:2], 0)], 0, axis=-1)
    mixed = b.node("Transpose", [b.node("MatMul", [scores, parts[2]], 0)], 0, perm=[0, 2, 1, 3])
    merged = [*lengths, b.weight(np.array([-1], np.int64))]
    rows = b.node("Reshape", [mixed, b.node("Concat", merged, 0, axis=0)], 0)
    last = b.node("MatMul", [rows, b.random(size, 5)], 0)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "length", 6])]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", "length", 5])]
    graph = helper.make_graph(b.nodes, "attention", inputs, outputs, b.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_attention_heads_go_as_wholes() -> None:
    proto = plain(attention())
    feed = {"x": np.random.default_rng(1).standard_normal((1, 7, 6)).astype(np.float32)}
    shapes = measured_shapes(proto, Dataset("rows", {"x": [feed["x"]]}))
    found = dependencies(proto, shapes)
    (group,) = found.groups
    assert (len(group.layers), len(group.channels), group.width) == (3, 3, 4)
    keep = np.ones(found.count, bool)
    keep[group.channels[1]] = False
    small = shrink(proto, found, shapes, keep)
    reference, _ = masked(proto, found, keep)
    got, want = run(small, feed)[0], run(reference, feed)[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert {tuple(t.dims) for t in small.graph.initializer} >= {(6, 8), (8, 5)}
