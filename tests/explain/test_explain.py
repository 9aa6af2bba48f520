"""The right cause comes first: real artefacts and real profiles' nodes, constructed times."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from optimize.explain.evidence import Evidence, GraphFacts, Kernel, Overhead
from optimize.explain.facts import graph_facts, session_graph
from optimize.explain.why import why_not_faster
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult

if TYPE_CHECKING:
    from conftest import GraphMaker

Apply = Callable[..., PassResult]
See = Callable[..., Evidence]
AVX2, VNNI = ("avx2", "fma", "f16c"), ("avx2", "avx512_vnni")
FREE = Overhead(0, 0, 0)


@pytest.fixture
def see(tmp_path: Path) -> See:
    """Evidence with the node types of onnxruntime's own profile, at times that the test gives."""

    def look(
        model: Model,
        samples: Dataset,
        us: Mapping[str, float] | None = None,
        default: float = 10,
        **changes: Any,
    ) -> Evidence:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(
            str(model.path), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, samples.sample(0))
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = Counter(e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time"))
        kernels = tuple(
            Kernel(op, n, 1e3 * n * (us or {}).get(op, default)) for op, n in nodes.items()
        )
        p50 = sum(kernel.ns for kernel in kernels)
        fields: dict[str, Any] = {
            "kernels": kernels, "p50_ns": p50, "overhead": FREE, "graph": graph_facts(model),
            "session": session_graph(model),
        }  # fmt: skip
        return Evidence(**(fields | changes))

    return look


def images(channels: int = 4) -> Dataset:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, channels, 8, 8), np.float32) for _ in range(16)]
    return Dataset("images", {"x": arrays}, batch_first=True)


def transposed(graph: GraphMaker) -> Model:
    """A transposed convolution, for which onnxruntime has no integer kernel."""
    shape = ("float32", ("n", 4, 8, 8))
    weights = {"w": np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], pads=[1, 1, 1, 1], name="up")
    return graph([node], {"x": shape}, {"y": shape}, weights)


def attention(graph: GraphMaker, clipped: bool) -> Model:
    """Softmax(x x^T) x, with a Clip between that no fusion knows."""
    shape = ("float32", ("n", 6, 16))
    weights = {"low": np.float32(-3), "high": np.float32(3)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["s"]),
        helper.make_node("Clip", ["s", "low", "high"], ["c"]),
        helper.make_node("Softmax", ["c" if clipped else "s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["y"]),
    ]
    kept = nodes if clipped else [n for n in nodes if n.op_type != "Clip"]
    return graph(kept, {"x": shape}, {"y": shape}, weights if clipped else None)


def test_fp16_on_a_cpu(graph: GraphMaker, rows: Dataset, apply: Apply, see: See) -> None:
    model = graph.linear()
    half = apply("fp16", model, rows).model
    first, *_ = why_not_faster(see(half, rows), see(model, rows), AVX2)
    assert first.startswith("float16 is only stored, not computed: this CPU has no float16")
    assert "2 of 2 products in float32" in first
    fast = why_not_faster(see(half, rows), see(model, rows), ("avx512_fp16",))[0]
    assert "this CPU" not in fast


def test_pairs_that_do_not_fuse(graph: GraphMaker, apply: Apply, see: See) -> None:
    model, data = transposed(graph), images()
    quantized = apply("int8{mode=static}", model, data).model
    first, *_ = why_not_faster(see(quantized, data), see(model, data), VNNI)
    assert first.startswith("1 ConvTranspose run in float32 between quantize/dequantize pairs")
    assert first.endswith("onnxruntime has no integer kernel for ConvTranspose")
    without_session = see(quantized, data, session=None)
    assert "1 ConvTranspose run in float32" in why_not_faster(without_session, see(model, data))[0]


def test_float_operators_that_remain(
    graph: GraphMaker, rows: Dataset, apply: Apply, see: See
) -> None:
    rng = np.random.default_rng(0)
    weights = {w: (rng.standard_normal((64, 64)) / 8).astype(np.float32) for w in ("w1", "w2")}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Sinh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["y"]),
    ]
    shape = ("float32", ("n", 64))
    model = graph(nodes, {"x": shape}, {"y": shape}, weights)
    times = {"Sinh": 900.0, "MatMul": 50.0}
    quantized = apply("int8{mode=static,ops=matmul}", model, rows).model
    source = see(model, rows, times)
    first, *_ = why_not_faster(see(quantized, rows, times), source, VNNI)
    assert first.startswith("1 Sinh stay in float; they take 9")
    assert "ends at 1.1x the source's speed" in first  # 1000 us over the 900 of Sinh


def test_a_tiny_model(graph: GraphMaker, rows: Dataset, apply: Apply, see: See) -> None:
    model = graph.linear()
    quantized = apply("int8{mode=static}", model, rows).model
    small = {"p50_ns": 7000.0, "overhead": Overhead(5000, 200, 2000)}
    first, *_ = why_not_faster(
        see(quantized, rows, default=2, **small), see(model, rows, default=2, **small), VNNI
    )
    assert first.startswith("The model is tiny: of 7 µs a call, the runtime itself takes")
    assert "5 µs for the call and 0.2 µs for each of" in first


def test_a_model_that_is_quantized_already(
    graph: GraphMaker, rows: Dataset, apply: Apply, see: See
) -> None:
    source = see(apply("int8{mode=static}", graph.linear(), rows).model, rows)
    first, *_ = why_not_faster(source, source, VNNI)
    assert first.startswith("The source is already quantized (")
    assert "2 products in integers" in first


def test_a_fusion_that_cannot_match(graph: GraphMaker, apply: Apply, see: See) -> None:
    rng = np.random.default_rng(0)
    data = Dataset("d", {"x": [rng.standard_normal((1, 6, 16), np.float32)] * 4}, batch_first=True)
    model = attention(graph, clipped=True)
    fused = apply("fold,fuse", model, data).model
    first, *_ = why_not_faster(see(fused, data), see(model, data), VNNI)
    assert first.startswith("No fusion matched 1 attention")
    assert first.endswith("Clip between its products belongs to no fusion")
    plain = see(attention(graph, clipped=False), data)
    assert not any("Clip" in text for text in why_not_faster(plain, plain))


def test_a_network_that_is_quantized_well_is_not_blamed(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply, see: See
) -> None:
    model = Model.read(digits_onnx)
    quantized = apply("fold,fuse,int8{mode=static}", model, digits_samples).model
    source, fast = see(model, digits_samples, default=100), see(quantized, digits_samples)
    assert fast.session is not None
    assert not fast.session.products  # onnxruntime itself left no product in float
    said = why_not_faster(fast, source, VNNI)
    assert len(said) <= 2
    assert not any("did not fuse" in text or "no 8-bit" in text for text in said)


def test_dynamic_convolutions_are_slow(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply, see: See
) -> None:
    model = Model.read(digits_onnx)
    quantized = apply("fold,fuse,int8{mode=dynamic,ops=conv}", model, digits_samples).model
    slow = see(quantized, digits_samples, {"ConvInteger": 500.0})
    first, *_ = why_not_faster(slow, see(model, digits_samples), VNNI)
    # onnxruntime's pooling keeps its blocked layout, whose reordering counts as convolution.
    assert first.startswith("2 ConvInteger")
    assert "take 1.04 ms, the source's convolutions" in first
    assert "ranges are found in the call have no fast kernel" in first


def test_products_without_dot_product_instructions(
    graph: GraphMaker, rows: Dataset, apply: Apply, see: See
) -> None:
    model = graph.linear()
    quantized = see(apply("int8", model, rows).model, rows)
    old = why_not_faster(quantized, see(model, rows), AVX2)
    assert any(text.startswith("This CPU has no 8-bit dot product") for text in old)
    for isa in (VNNI, ()):  # there are such instructions, or nobody knows
        new = why_not_faster(quantized, see(model, rows), isa)
        assert not any("dot product" in text for text in new)


def test_zeros_that_no_kernel_skips(graph: GraphMaker, rows: Dataset, see: See) -> None:
    dense = see(graph.linear(), rows)
    shape = ("float32", ("n", 64))
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    weight[np.abs(weight) < 0.9] = 0
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    sparse = see(graph([node], {"x": shape}, {"y": shape}, {"w": weight}), rows)
    assert sparse.graph.zeros == pytest.approx(np.mean(weight == 0))
    assert any("of the weights are zeros" in text for text in why_not_faster(sparse, dense))
    assert not any("zeros" in text for text in why_not_faster(dense, dense))


def test_zeros_of_a_mask_are_no_weights(graph: GraphMaker) -> None:
    weights = {
        "w": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32),
        "mask": np.triu(np.full((64, 64), -1e9, np.float32), 1),
    }
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["y"]),
    ]
    shape = ("float32", (64, 64))
    assert graph_facts(graph(nodes, {"x": shape}, {"y": shape}, weights)).zeros == 0


def test_nothing_is_made_up(graph: GraphMaker, rows: Dataset, apply: Apply, see: See) -> None:
    nothing = Evidence((), 1e6, GraphFacts())
    assert why_not_faster(nothing, nothing, AVX2) == ()
    quantized = apply("int8", graph.linear(), rows).model
    other = see(quantized, rows, runtime="openvino", session=None)
    assert why_not_faster(other, see(graph.linear(), rows), AVX2) == ()
