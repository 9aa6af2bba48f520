"""What several folders share: a digits network trained on real data, small graphs, and passes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cpu
import hypothesis
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from shipped import FASHION

from optimize.cache.store import Store
from optimize.feasibility.bound import Bounder
from optimize.installed import versions
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import Context, PassResult
from optimize.passes.chain import Chain
from optimize.targets.local import LocalTarget

# Tests leave nothing in the user's cache, and find nothing there.
_CACHE = tempfile.TemporaryDirectory(prefix="optimize-tests-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# Tests run on all cores: torch's threads, here and in the commands, would only hinder each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is no property of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

Array = NDArray[Any]
Feed = Mapping[str, Array]

DIGITS_NET = '''\
"""A network for 8x8 digits, as a user's file that --arch names."""

import torch


class DigitsNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.norm1 = torch.nn.BatchNorm2d(16)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.norm2 = torch.nn.BatchNorm2d(32)
        self.head = torch.nn.Linear(128, 10)

    def forward(self, image):
        x = torch.max_pool2d(torch.relu(self.norm1(self.conv1(image))), 2)
        x = torch.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        return self.head(x.flatten(1))


def build():
    return DigitsNet()
'''
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class Digits(NamedTuple):
    """Real 8x8 images between 0 and 1 with their labels, none of which the network was fitted to.

    Attributes:
        image: shape (397, 1, 8, 8).
        labels: shape (397,).
    """

    image: Array
    labels: Array


@pytest.fixture(scope="session")
def all_digits() -> Digits:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = (loaded.images / 16).astype(np.float32)[:, None]
    return Digits(images, loaded.target.astype(np.int64))


@pytest.fixture(scope="session")
def digits(all_digits: Digits) -> Digits:
    return Digits(all_digits.image[1400:], all_digits.labels[1400:])


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the network's architecture; ``build`` is its factory."""
    path = tmp_path_factory.mktemp("digits") / "digits_net.py"
    path.write_text(DIGITS_NET)
    return path


@pytest.fixture(scope="session")
def digits_net(digits_file: Path, all_digits: Digits) -> Any:
    """The network, trained until it reads nine of ten held-out digits."""
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("digits_net", digits_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits_net"] = module  # pickles of the network name it
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = module.build()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    image, labels = (torch.from_numpy(array[:1400]) for array in all_digits)
    for _ in range(5):
        for batch in torch.randperm(1400).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(image[batch]), labels[batch]).backward()
            optimizer.step()
    torch.set_num_threads(threads)
    return net.eval()


@pytest.fixture(scope="session")
def digits_logits(digits_net: Any, digits: Digits) -> Array:
    """Torch's own outputs on the held-out digits."""
    import torch

    with torch.no_grad():
        return digits_net(torch.from_numpy(digits.image)).numpy()


@pytest.fixture(scope="session")
def digits_onnx(digits_net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as ONNX by torch itself, batch norms left as nodes of their own."""
    import torch

    path = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    torch.onnx.export(
        digits_net,
        (torch.zeros(2, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        opset_version=17,
        dynamo=False,
    )
    return path


@pytest.fixture(scope="session")
def shipped_onnx(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The shipped network, traced so that its batch norms stay nodes of their own."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from optimize.models.usercode import load_function

    net = load_function(f"{FASHION / 'arch.py'}:resnet", "--arch")()
    net.load_state_dict(load_file(FASHION / "resnet.safetensors"))
    path = tmp_path_factory.mktemp("shipped") / "model.onnx"
    torch.onnx.export(
        net.eval(), (torch.zeros((1, 1, 28, 28), dtype=torch.uint8),), str(path),
        input_names=["image"], output_names=["logits"], dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"image": {0: "n"}},
        opset_version=17,
    )  # fmt: skip
    return Model.read(path)


@pytest.fixture(scope="session")
def digits_samples(digits: Digits) -> Dataset:
    """The held-out digits as a model takes them: one image a call."""
    images = [image[None] for image in digits.image]
    return Dataset("digits", {"image": images}, digits.labels, batch_first=True)


@pytest.fixture(scope="session")
def digits_npz(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 of the held-out digits as a user's file."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, image=digits.image[:100], labels=digits.labels[:100])
    return path


@pytest.fixture(scope="session")
def known_device(tmp_path_factory: pytest.TempPathFactory, digits_onnx: Path) -> Path:
    """A cache that holds nothing but what this device can do, which takes seconds to measure."""
    folder = tmp_path_factory.mktemp("device")
    image = np.zeros((1, 1, 8, 8), np.float32)
    with Store(folder) as store:
        bounder = Bounder(LocalTarget().device(), 1, versions(), store)
        assert bounder.judge_source(Model.read(digits_onnx), Dataset("one", {"image": [image]}))
        bounder.settle()
        bounder.close()
    return folder


@pytest.fixture
def cache(known_device: Path, tmp_path: Path) -> Path:
    """A cache of a test's own, on a device that is known."""
    return Path(shutil.copytree(known_device, tmp_path / "cache"))


class GraphMaker:
    """Writes small ONNX graphs, each into a folder of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._count = 0

    def __call__(
        self,
        nodes: Sequence[Any],
        inputs: Mapping[str, tuple[str, Sequence[int | str]]],
        outputs: Mapping[str, tuple[str, Sequence[int | str] | None]],
        weights: Feed | None = None,
        opset: int = 17,
        external: str | None = None,
    ) -> Model:
        """Write a graph; with ``external``, its weights go to that file beside it."""
        graph = helper.make_graph(
            list(nodes),
            "graph",
            [helper.make_tensor_value_info(n, _TYPES[t], s) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info(n, _TYPES[t], s) for n, (t, s) in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        )
        opsets = [helper.make_opsetid("", opset)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        self._count += 1
        path = self._root / f"graph-{self._count}" / "network.onnx"
        path.parent.mkdir(parents=True)
        if external is None:
            onnx.save(proto, path)
        else:
            (path.parent / external).parent.mkdir(exist_ok=True)
            onnx.save(proto, path, save_as_external_data=True, location=external, size_threshold=0)
        return Model.read(path)

    def linear(
        self, opset: int = 17, external: str | None = None, constants: bool = False
    ) -> Model:
        """Two matrix products of 64 columns with a Relu after each; ``x`` to ``y``.

        ``constants`` carries the weights in Constant nodes, as TensorFlow's converters do.
        """
        rng = np.random.default_rng(0)
        weights = {
            name: (rng.standard_normal((64, 64)) / 8).astype(np.float32) for name in ("w1", "w2")
        }
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["c"]),
            helper.make_node("Relu", ["c"], ["y"]),
        ]
        if constants:
            nodes = [
                helper.make_node("Constant", [], [n], value=numpy_helper.from_array(a))
                for n, a in weights.items()
            ] + nodes
        return self(
            nodes,
            {"x": ("float32", ("n", 64))},
            {"y": ("float32", ("n", 64))},
            None if constants else weights,
            opset,
            external,
        )


@pytest.fixture
def graph(tmp_path: Path) -> GraphMaker:
    return GraphMaker(tmp_path / "graphs")


@pytest.fixture
def rows() -> Dataset:
    """Samples for :meth:`GraphMaker.linear`."""
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((1, 64), np.float32) for _ in range(24)]
    return Dataset("rows", {"x": arrays}, batch_first=True)


Outputs = Callable[[Model | Path, Dataset | Feed], Array]


@pytest.fixture(scope="session")
def outputs() -> Outputs:
    """First outputs by plain onnxruntime: of one feed, or of all samples along the first axis."""

    def run(model: Model | Path, given: Dataset | Feed) -> Array:
        path = model.path if isinstance(model, Model) else model
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        if isinstance(given, Dataset):
            feeds = [given.sample(i) for i in range(len(given))]
            return np.concatenate([session.run(None, feed)[0] for feed in feeds])
        first: Array = session.run(None, dict(given))[0]
        return first

    return run


Apply = Callable[..., PassResult]


@pytest.fixture
def apply(tmp_path_factory: pytest.TempPathFactory) -> Apply:
    """Run the passes of a chain one after the other and return the last one's result."""

    def run(text: str, model: Model, samples: Dataset, **changes: Any) -> PassResult:
        result: PassResult | None = None
        for step in Chain.parse(text).passes:
            context = Context(
                folder=tmp_path_factory.mktemp("pass"),
                samples=samples.take(range(min(4, len(samples)))),
                calibration=samples,
                isa=cpu.ISA,
            )
            result = step(result.model if result else model, replace(context, **changes))
        assert result is not None
        return result

    return run


@pytest.fixture(scope="session")
def cosine() -> Callable[[Array, Array], float]:
    """Similarity in double precision."""

    def similarity(a: Array, b: Array) -> float:
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    return similarity
