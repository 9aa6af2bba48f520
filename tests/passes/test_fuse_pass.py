"""Fusion gives fewer nodes that compute the same, and says which matched."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper

from optimize.errors import NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import PassResult

if TYPE_CHECKING:
    from conftest import Digits, GraphMaker

Apply = Callable[..., PassResult]
Outputs = Callable[..., Any]
TOOLS = importlib.util.find_spec("onnxruntime_tools") is not None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model]:
    """Two encoder layers written out, as torch's legacy exporter leaves them."""
    torch = pytest.importorskip("torch")

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (torch.nn.Linear(32, 32) for _ in range(4))
            self.norm1, self.norm2 = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
            self.up, self.down = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

        def heads(self, x: Any) -> Any:
            return x.view(x.size(0), -1, 4, 8).permute(0, 2, 1, 3)

        def forward(self, x: Any) -> Any:
            q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
            weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
            seen = (weights @ v).permute(0, 2, 1, 3).reshape(x.size(0), -1, 32)
            x = self.norm1(x + self.o(seen))
            return self.norm2(x + self.down(torch.nn.functional.gelu(self.up(x))))

    torch.manual_seed(0)
    net = torch.nn.Sequential(Layer(), Layer()).eval()
    path = tmp_path_factory.mktemp("encoder") / "model.onnx"
    axes = {0: "n", 1: "length"}
    torch.onnx.export(
        net, (torch.randn(2, 7, 32),), str(path), input_names=["x"], output_names=["y"],
        dynamic_axes={"x": axes, "y": axes}, opset_version=17, dynamo=False,
    )  # fmt: skip
    return net, Model.read(path)


def test_folded_weights_are_valid_where_old_files_list_weights_as_inputs(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply, tmp_path: Path
) -> None:
    proto = onnx.load(digits_onnx)
    proto.ir_version = 3
    proto.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
    )
    onnx.save(proto, tmp_path / "old.onnx")
    result = apply("fuse", Model.read(tmp_path / "old.onnx"), digits_samples)
    assert result.model.count("BatchNormalization") == 0
    onnx.checker.check_model(onnx.load(result.model.path))


@pytest.fixture(scope="module")
def sequences() -> Dataset:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, n, 32), np.float32) for n in (5, 7, 9, 12)]
    return Dataset("sequences", {"x": arrays}, batch_first=True)


def test_convolutions_take_their_batch_norms_in(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply
) -> None:
    model = Model.read(digits_onnx)
    assert model.count("BatchNormalization") == 2
    result = apply("fuse", model, digits_samples)
    assert result.model.count("BatchNormalization") == 0
    assert result.model.count("Conv") == 2
    assert "BatchNormalization x2 folded away" in result.notes[0]
    before, after = (sum(n for _, n in m.op_counts) for m in (model, result.model))
    assert f"{before} nodes became {after}" in result.notes[0]


def test_a_fused_network_gives_torchs_outputs(
    digits_onnx: Path,
    digits_samples: Dataset,
    digits_logits: Any,
    digits: Digits,
    apply: Apply,
    outputs: Outputs,
) -> None:
    result = apply("fuse", Model.read(digits_onnx), digits_samples)
    got = outputs(result.model, {"image": digits.image})  # 397 at once: the batch stays dynamic
    np.testing.assert_allclose(got, digits_logits, rtol=1e-3, atol=1e-3)
    assert result.difference is not None
    assert 0 <= result.difference.relative <= 1e-3


def test_the_fused_graph_runs_on_any_device(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply
) -> None:
    result = apply("fuse", Model.read(digits_onnx), digits_samples)
    assert not [name for name, _ in result.model.op_counts if "nchwc" in name.lower()]


def test_the_input_file_is_not_touched(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply
) -> None:
    model = Model.read(digits_onnx)
    apply("fuse", model, digits_samples)
    assert Model.read(digits_onnx) == model
    assert [path.name for path in digits_onnx.parent.iterdir()] == ["digits.onnx"]


@pytest.mark.parametrize("text", ["fuse", "fold,fuse"])
def test_layer_norms_gelus_and_attention_are_fused(
    text: str, encoder: Any, sequences: Dataset, apply: Apply
) -> None:
    result = apply(text, encoder[1], sequences)
    fused = {name.removeprefix("com.microsoft::") for name, _ in result.model.op_counts}
    assert fused & {"LayerNormalization", "SkipLayerNormalization"}
    assert any("Gelu" in name for name in fused)
    assert not fused & {"Erf", "ReduceMean", "Sqrt"}
    attention = any("Attention" in name for name in fused)
    assert attention == ("Attention" in result.notes[0])


def test_what_is_reported_is_in_the_graph(encoder: Any, sequences: Dataset, apply: Apply) -> None:
    result = apply("fuse", encoder[1], sequences)
    listed = result.notes[0].partition(": ")[2].split(", ")
    counts = {name.removeprefix("com.microsoft::"): n for name, n in result.model.op_counts}
    before = {name.removeprefix("com.microsoft::"): n for name, n in encoder[1].op_counts}
    for entry in listed:
        name, _, number = entry.partition(" x")
        assert counts[name] - before.get(name, 0) == int(number), entry


@pytest.mark.parametrize("text", ["fuse", "fuse{engine=onnxruntime}", "fuse{engine=onnxscript}"])
def test_every_engine_gives_torchs_outputs_at_any_length(
    text: str, encoder: Any, sequences: Dataset, apply: Apply, outputs: Outputs
) -> None:
    import torch

    net, model = encoder
    result = apply(text, model, sequences)
    x = np.random.default_rng(5).standard_normal((3, 17, 32), np.float32)
    with torch.no_grad():
        want = net(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs(result.model, {"x": x}), want, rtol=1e-3, atol=1e-4)


def test_nothing_to_fuse_gives_the_model_back(
    graph: GraphMaker, rows: Dataset, apply: Apply
) -> None:
    model = graph.linear()
    result = apply("fuse", model, rows)
    assert not result.changed
    assert result.model == model
    assert result.notes == ("no fusion matched",)


@pytest.mark.skipif(TOOLS, reason="onnxruntime-tools is installed")
def test_an_engine_that_is_not_installed_is_one_sentence(
    encoder: Any, sequences: Dataset, apply: Apply
) -> None:
    with pytest.raises(NotApplicable, match=r"install tailfit\[onnxruntime-tools\]") as caught:
        apply("fuse{engine=onnxruntime-tools}", encoder[1], sequences)
    assert "\n" not in str(caught.value)


def test_fusing_twice_changes_nothing_more(
    digits_onnx: Path, digits_samples: Dataset, apply: Apply
) -> None:
    once = apply("fuse", Model.read(digits_onnx), digits_samples)
    assert not apply("fuse", once.model, digits_samples).changed
