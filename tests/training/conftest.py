"""The shipped network and images, and small networks that tests cut up and train."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from shipped import FASHION

from optimize.models.data import Dataset
from optimize.passes.training.batches import Batches

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums in one order, so that equal runs give equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _arch() -> Any:
    spec = importlib.util.spec_from_file_location("fashion_arch", FASHION / "arch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def fashion_data() -> Dataset:
    """600 images of the test set with their classes."""
    with np.load(FASHION / "data.npz") as arrays:
        images, labels = arrays["image"][:600], arrays["labels"][:600]
    return Dataset("fashion", {"image": [image[None] for image in images]}, labels, True)


@pytest.fixture
def fashion() -> Any:
    """The trained network."""
    from safetensors.torch import load_file

    net = _arch().resnet()
    net.load_state_dict(load_file(FASHION / "resnet.safetensors"))
    return net.eval()


@pytest.fixture
def fashion_batches(fashion_data: Dataset) -> Batches:
    return Batches(fashion_data, size=32, held_out=0.2)


@pytest.fixture
def rows() -> Batches:
    """Random vectors of 8 numbers, with the class of the largest of the first three."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((256, 8)).astype(np.float32)
    labels = values[:, :3].argmax(1)
    return Batches(Dataset("rows", {"x": [v[None] for v in values]}, labels, True), 32, 0.2)


@pytest.fixture
def mlp() -> Callable[..., Any]:
    """Make a seeded network of one hidden layer, 8 numbers in, 3 out."""

    def make(width: int = 16, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 3)
        )

    return make


@pytest.fixture
def through_onnx(tmp_path: Path) -> Callable[..., Any]:
    """Export a module and give its first output by onnxruntime."""

    def run(module: Any, *args: Any) -> Any:
        import onnx

        path = tmp_path / "exported.onnx"
        names = [f"x{i}" for i in range(len(args))]
        torch.onnx.export(
            module.eval(), args, str(path), input_names=names, dynamo=False, opset_version=18
        )
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {n: a.numpy() for n, a in zip(names, args, strict=True)})[0]

    return run
