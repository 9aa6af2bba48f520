"""Passes on real networks, against onnxruntime's own outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from cpu import ISA
from onnx import TensorProto, helper, numpy_helper
from shipped import FASHION

from optimize.errors import NotApplicable, PassFailed
from optimize.models.data import Dataset, fit
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain

Apply = Callable[..., PassResult]


@pytest.fixture(scope="module")
def network(shipped_onnx: Model) -> Model:
    return shipped_onnx


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small random BERT encoder, exported by torch."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
    net = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    path = tmp_path_factory.mktemp("transformer") / "model.onnx"
    torch.onnx.export(
        net, (torch.randn(2, 9, 32),), str(path), input_names=["x"], output_names=["y"],
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    return Model.read(path)


@pytest.fixture(scope="module")
def images() -> Dataset:
    with np.load(FASHION / "data.npz") as stored:
        return Dataset("images", {"image": list(stored["image"][:64])}, stored["labels"][:64])


@pytest.fixture
def apply(tmp_path: Path, images: Dataset) -> Apply:
    """Run a chain of one pass."""

    def run(text: str, model: Model, data: Dataset | None = None, **changes: Any) -> PassResult:
        samples = fit(data or images, model.signature.inputs)
        (tmp_path / "out").mkdir(exist_ok=True)
        context = Context(tmp_path / "out", samples.take(range(3)), samples, 0, ISA)
        (step,) = Chain.parse(text).passes
        return step(model, replace(context, **changes))

    return run


def outputs(model: Model, data: Dataset) -> np.ndarray:
    """All first outputs by plain onnxruntime."""
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    arrays = fit(data, model.signature.inputs).inputs[name]
    return np.concatenate([session.run(None, {name: array})[0] for array in arrays])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.ravel() @ b.ravel()) / np.linalg.norm(a) / np.linalg.norm(b))


def test_fuse_folds_batch_norms_away(network: Model, images: Dataset, apply: Apply) -> None:
    before = network.digest
    result = apply("fuse", network)
    assert network.count("BatchNormalization") > 0
    assert result.model.count("BatchNormalization") == 0
    assert result.difference is not None
    np.testing.assert_allclose(
        outputs(result.model, images), outputs(network, images), rtol=1e-3, atol=1e-4
    )
    assert Model.read(network.path).digest == before


@pytest.mark.parametrize(
    "text",
    ["int8{mode=static}", "int8{mode=static,calibration=percentile}",
     "int8{mode=static,ops=conv}", "int8{mode=static,per=tensor}"],
)  # fmt: skip
def test_static_int8_agrees_on_most_images(
    text: str, network: Model, images: Dataset, apply: Apply
) -> None:
    result = apply(text, network)
    assert result.model.quantized
    assert result.model.size_bytes < 0.45 * network.size_bytes
    guesses = [outputs(model, images).argmax(1) for model in (network, result.model)]
    assert np.mean(guesses[0] == guesses[1]) >= 0.9


def test_static_int8_needs_data(network: Model, apply: Apply) -> None:
    with pytest.raises(NotApplicable, match="--data"):
        apply("int8{mode=static}", network, calibration=None)


def test_seven_bits_where_products_would_overflow(network: Model, apply: Apply) -> None:
    result = apply("int8{mode=static}", network, isa=frozenset({"avx2"}))
    assert "7 bits" in " ".join(result.notes)
    weights = [numpy_helper.to_array(t) for t in onnx.load(result.model.path).graph.initializer
               if t.data_type == TensorProto.INT8 and t.dims and len(t.dims) == 4]  # fmt: skip
    assert weights
    assert all(np.abs(w.astype(int)).max() <= 64 for w in weights)


def test_a_quantized_model_is_recognised(network: Model, apply: Apply, tmp_path: Path) -> None:
    done = apply("int8{mode=static}", network).model
    (tmp_path / "again").mkdir()
    for text in ("int8", "int8{mode=static}", "int8{mode=weights}", "fp16"):
        with pytest.raises(NotApplicable, match="already quantized"):
            apply(text, done, folder=tmp_path / "again")


def test_folding_keeps_integer_weights(network: Model, apply: Apply, tmp_path: Path) -> None:
    done = apply("int8{mode=static}", network).model
    (tmp_path / "again").mkdir()
    folded = apply("fold", done, folder=tmp_path / "again").model
    assert folded.quantized
    assert folded.size_bytes <= 1.02 * done.size_bytes


def test_fp16_halves_the_weights(network: Model, images: Dataset, apply: Apply) -> None:
    result = apply("fp16", network)
    assert result.model.size_bytes < 0.6 * network.size_bytes
    assert result.model.signature == network.signature
    assert cosine(outputs(result.model, images), outputs(network, images)) > 0.999


def vectors() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset("vectors", {"x": list(rng.standard_normal((16, 2, 9, 32), np.float32))})


@pytest.mark.parametrize(
    ("text", "least"),
    [("int8", 0.99), ("int8{mode=weights}", 0.999), ("int8{mode=weights,bits=4}", 0.97),
     ("int8{mode=static,ops=matmul}", 0.97), ("fp16", 0.999)],
)  # fmt: skip
def test_a_transformer_in_fewer_bits(
    text: str, least: float, transformer: Model, apply: Apply
) -> None:
    result = apply(text, transformer, vectors())
    assert cosine(outputs(result.model, vectors()), outputs(transformer, vectors())) > least


def test_fuse_says_what_matched(transformer: Model, apply: Apply) -> None:
    result = apply("fuse", transformer, vectors())
    assert "nodes became" in result.notes[0]
    assert "SkipLayerNormalization" in result.notes[0]
    np.testing.assert_allclose(
        outputs(result.model, vectors()), outputs(transformer, vectors()), rtol=1e-3, atol=1e-4
    )


def test_an_engine_that_is_not_installed_is_one_sentence(transformer: Model, apply: Apply) -> None:
    pytest.importorskip("optimize")
    import importlib.util

    if importlib.util.find_spec("onnxruntime_tools"):
        return  # it is installed: then the engine itself is asked
    with pytest.raises(NotApplicable, match=r"tailfit\[onnxruntime-tools\]"):
        apply("fuse{engine=onnxruntime-tools}", transformer, vectors())


def test_what_a_model_has_not_cannot_be_quantized(network: Model, apply: Apply) -> None:
    with pytest.raises(NotApplicable, match="no MatMul"):
        apply("int8{mode=weights}", network)


def small_graph(path: Path, opset: int = 17) -> Model:
    """x + fold(2 * 3), with the constants in Constant nodes, one of them in an If's branch."""
    two, three = (
        helper.make_node("Constant", [], [name],
                         value=numpy_helper.from_array(np.full((2,), v, np.float32)))
        for name, v in (("two", 2), ("three", 3))
    )  # fmt: skip
    branch = [
        helper.make_graph(
            [helper.make_node("Constant", [], [f"c{sign}"],
                              value=numpy_helper.from_array(np.full((2,), sign, np.float32))),
             helper.make_node("Mul", ["six", f"c{sign}"], [f"b{sign}"])],
            f"branch{sign}", [],
            [helper.make_tensor_value_info(f"b{sign}", TensorProto.FLOAT, [2])])
        for sign in (1, 5)
    ]  # fmt: skip
    graph = helper.make_graph(
        [two, three, helper.make_node("Mul", ["two", "three"], ["six"]),
         helper.make_node("If", ["on"], ["chosen"], then_branch=branch[0], else_branch=branch[1]),
         helper.make_node("Add", ["x", "chosen"], ["y"]),
         helper.make_node("Exp", ["x"], ["dead"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
         helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(made, path)
    return Model.read(path)


@pytest.mark.parametrize("opset", [11, 17])
def test_fold_reaches_constant_nodes_and_branches(opset: int, apply: Apply, tmp_path: Path) -> None:
    model = small_graph(tmp_path / "small.onnx", opset)
    rng = np.random.default_rng(0)
    data = Dataset("d", {"x": list(rng.standard_normal((4, 1, 2), np.float32)),
                         "on": [np.array(i % 2 == 0) for i in range(4)]})  # fmt: skip
    result = apply("fold", model, data)
    assert result.model.count("Mul", "Exp") == 0
    session = onnxruntime.InferenceSession(str(result.model.path))
    x = np.ones((3, 2), np.float32)
    for on, value in ((True, 7), (False, 31)):
        assert session.run(None, {"x": x, "on": np.array(on)})[0].tolist() == [[value] * 2] * 3


@dataclass(frozen=True)
class Liar(Pass):
    """Promises to keep the outputs and returns another network."""

    name: ClassVar[str] = "liar"
    summary: ClassVar[str] = "a test"
    tolerance: ClassVar[float | None] = 1e-3
    factor: float = 1.5

    def apply(self, model: Model, context: Context) -> PassResult:
        proto = onnx.load(model.path)
        for tensor in proto.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                changed = numpy_helper.to_array(tensor) * np.float32(self.factor)
                tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
        onnx.save(proto, context.folder / "model.onnx")
        return PassResult(Model.read(context.folder / "model.onnx"), True)


@dataclass(frozen=True)
class Broken(Pass):
    """Raises in the middle."""

    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "a test"

    def apply(self, model: Model, context: Context) -> PassResult:
        try:
            raise KeyError("throughput")
        except KeyError as error:
            raise RuntimeError("a later symptom") from error


def context(folder: Path, images: Dataset, model: Model) -> Context:
    return Context(folder, fit(images, model.signature.inputs).take(range(2)))


def test_a_pass_that_breaks_its_promise_fails(
    network: Model, images: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(PassFailed, match=r"liar changed the outputs by .* promises 0.001"):
        Liar()(network, context(tmp_path, images, network))


def test_the_first_cause_of_a_failure_is_shown(
    network: Model, images: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(PassFailed, match="broken raised KeyError: 'throughput'"):
        Broken()(network, context(tmp_path, images, network))
