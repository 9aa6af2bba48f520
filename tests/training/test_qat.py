"""Quantization-aware recovery: its rounding is onnxruntime's, and it wins back what INT8 loses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cpu import ISA, SUMS_IN_32_BITS
from shipped import FASHION

from optimize.errors import InputError, NotApplicable
from optimize.models import data as samples
from optimize.models.data import Dataset
from optimize.models.export import load_and_export
from optimize.models.model import Model
from optimize.models.source import detect
from optimize.passes.base import Context
from optimize.passes.int8 import Int8
from optimize.passes.training.batches import Batches
from optimize.passes.training.options import DistillOptions
from optimize.passes.training.qat import fake_quantized, plain, recover_quantized

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[..., Any]:
    """Export, quantize by the pass, and give the outputs by onnxruntime."""

    def run(module: Any, data: Dataset, isa: frozenset[str] = ISA) -> tuple[Any, Model]:
        path = tmp_path / "float.onnx"
        name = next(iter(data.inputs))
        example = torch.from_numpy(np.concatenate(data.inputs[name][:2]))
        axes = {name: {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            input_names=[name],
            output_names=["y"],
            dynamic_axes=axes,
            dynamo=False,
            opset_version=18,
        )
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        context = Context(folder, data.take(range(4)), data, isa=isa)
        model = Int8(mode="static").apply(Model.read(path), context).model
        session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
        feed = {name: np.concatenate(data.inputs[name])}
        return session.run(None, feed)[0], model

    return run


@pytest.mark.parametrize("bits", [7, 8])
def test_the_rounding_is_that_of_static_qdq(bits: int, quantized: Callable[..., Any]) -> None:
    if bits == 8 and not SUMS_IN_32_BITS:
        pytest.skip("products of 8 bits overflow on this CPU")
    isa = ISA if bits == 8 else frozenset({"avx2"})
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 6, 3)
    rng = np.random.default_rng(0)
    images = [rng.uniform(-1, 3, (1, 3, 8, 8)).astype(np.float32) for _ in range(64)]
    data = Dataset("images", {"x": images}, None, True)
    rounded = fake_quantized(layer, Batches(data, 16, 0.02), bits == 7).eval()
    got, model = quantized(layer, data, isa)
    assert model.quantized
    x = torch.from_numpy(np.concatenate(images))
    with torch.no_grad():
        mine, exact = rounded(x).numpy(), layer(x).numpy()
    # onnxruntime also rounds the output, to 255 steps of its range.
    step = (exact.max() - exact.min()) / 255
    assert np.abs(mine - exact).max() > step / 4
    assert np.abs(mine - got).max() <= step
    assert np.abs(mine - got).mean() < np.abs(exact - got).mean()


def test_taking_the_rounding_off_gives_the_module_back(fashion: Any, fashion_batches: Any) -> None:
    wrapped = fake_quantized(fashion, fashion_batches)
    x = next(fashion_batches.validation()).args[0]
    with torch.no_grad():
        want = fashion(x)
        assert not torch.equal(wrapped(x), want)
        back = plain(wrapped)
        assert torch.equal(back(x), want)
    assert set(back.state_dict()) == set(fashion.state_dict())


def test_a_net_that_int8_ruins_is_recovered(quantized: Callable[..., Any]) -> None:
    # One input is a hundred times the others, so that 8 bits leave those three levels.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    scale = torch.tensor([100.0, 1, 1, 1, 1, 1, 1, 1])
    with torch.no_grad():
        net[0].weight[:, 0] /= 100
    rng = np.random.default_rng(0)
    values = rng.standard_normal((512, 8)).astype(np.float32) * scale.numpy()
    data = Dataset("rows", {"x": [v[None] for v in values]}, None, True)
    options = DistillOptions(steps=400, lr=1e-2, kind="values", patience=0)
    trained, notes = recover_quantized(net, net, Batches(data, 64), options)
    with torch.no_grad():
        want = net(torch.from_numpy(values)).numpy()
    before = float(np.square(quantized(net, data)[0] - want).mean())
    after = float(np.square(quantized(trained, data)[0] - want).mean())
    assert after < 0.8 * before
    assert notes[0] == "trained with INT8's rounding"


def test_it_needs_a_layer(rows: Batches) -> None:
    with pytest.raises(NotApplicable, match="no convolution or linear layer"):
        recover_quantized(nn.ReLU(), nn.ReLU(), rows, replace(DistillOptions(), steps=1))


def test_the_pass_trains_and_gives_integer_kernels(fashion_data: Dataset, tmp_path: Path) -> None:
    source, arch = detect(FASHION / "resnet.safetensors"), f"{FASHION / 'arch.py'}:resnet"
    folder = tmp_path / "exported"
    folder.mkdir()
    made = load_and_export(source, arch, False, samples.representative(fashion_data), (), folder)
    assert made.program is not None
    context = Context(
        folder=tmp_path / "pass",
        samples=fashion_data.take(range(4)),
        calibration=fashion_data.take(range(120)),
        isa=ISA,
        teacher=made.program,
    )
    context.folder.mkdir()
    result = Int8(mode="static", recover="distill", recovery=4)(made.program, context)
    assert result.notes[0] == "trained with INT8's rounding"
    assert "QLinearConv" in _kernels(result.model.path, tmp_path / "optimized.onnx")


def test_recovery_needs_a_module_and_channels() -> None:
    with pytest.raises(InputError, match="recover=distill needs mode=static and per=channel"):
        Int8(mode="dynamic", recover="distill")
    assert Int8(mode="static", recover="distill").takes == ("torch",)


def _kernels(path: Path, written: Path) -> set[str]:
    """The operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(written)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(str(written)).graph.node}
