"""An export computes what torch computes, at batches and lengths that it was not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimize.errors import InputError
from optimize.models.data import Dataset, read_data, representative
from optimize.models.export import Exported, load_and_export
from optimize.models.model import TensorSpec
from optimize.models.source import detect

torch = pytest.importorskip("torch")


def exported(
    path: Path,
    data: Dataset | None = None,
    specs: Sequence[TensorSpec] = (),
    arch: str | None = None,
    trusted: bool = False,
) -> Exported:
    out = path.parent / "exported"
    out.mkdir(exist_ok=True)
    return load_and_export(detect(path), arch, trusted, data, specs, out)


def run(result: Exported, feed: Mapping[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(
        str(result.model.path), providers=["CPUExecutionProvider"]
    )
    outputs: list[Any] = session.run(None, dict(feed))
    return outputs


def axes(result: Exported, name: str) -> tuple[Any, ...]:
    shapes = {spec.name: spec.shape for spec in result.model.signature.inputs}
    return shapes[name] or ()


def save_script(net: Any, path: Path) -> None:
    torch.jit.script(net).save(str(path))


def save_trace(net: Any, path: Path) -> None:
    torch.jit.trace(net, torch.zeros(2, 1, 8, 8)).save(str(path))


def save_program(net: Any, path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(net, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(path.with_suffix(".pt2")))
    path.with_suffix(".pt2").rename(path)


@pytest.mark.parametrize("save", [save_script, save_trace, save_program], ids=lambda s: s.__name__)
def test_a_trained_network_keeps_its_outputs_at_any_batch(
    save: Any, digits_net: Any, digits: Any, digits_logits: Any, digits_npz: Path, tmp_path: Path
) -> None:
    save(digits_net, tmp_path / "net.pt")
    result = exported(tmp_path / "net.pt", read_data(str(digits_npz)))
    (name,) = (spec.name for spec in result.model.signature.inputs)
    assert not isinstance(axes(result, name)[0], int)
    for batch in (1, 3, 64):
        (got,) = run(result, {name: digits.image[:batch]})
        np.testing.assert_allclose(got, digits_logits[:batch], rtol=1e-4, atol=1e-4)
    assert result.difference.relative <= 1e-5
    assert result.model.path.parent == tmp_path / "exported"


@pytest.mark.parametrize("save", [save_script, save_program], ids=lambda s: s.__name__)
def test_inputs_without_data_come_from_the_specification(
    save: Any, digits_net: Any, digits: Any, digits_logits: Any, tmp_path: Path
) -> None:
    save(digits_net, tmp_path / "net.pt")
    stated = [TensorSpec("image", "float32", ("N", 1, 8, 8))]
    result = exported(tmp_path / "net.pt", None, stated)
    (got,) = run(result, {"image": digits.image[:5]})
    np.testing.assert_allclose(got, digits_logits[:5], rtol=1e-4, atol=1e-4)


def test_a_script_without_data_or_specification_asks_for_one(
    digits_net: Any, tmp_path: Path
) -> None:
    save_script(digits_net, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"shape of its input image; give --data, or --input"):
        exported(tmp_path / "net.pt")


def test_an_input_that_the_model_has_not_names_those_it_has(
    digits_net: Any, tmp_path: Path
) -> None:
    save_script(digits_net, tmp_path / "net.pt")
    with pytest.raises(InputError, match="--input imgae: did you mean image"):
        exported(tmp_path / "net.pt", None, [TensorSpec("imgae", "float32", ("N", 1, 8, 8))])


class Masked(torch.nn.Module):
    """Ids and an optional mask to two outputs of different sorts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self.embedding(ids) * mask.unsqueeze(-1)
        scores = self.head(kept.sum(1))
        return scores, scores.argmax(-1)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Exported]:
    """The module, and its export from samples of differing lengths."""
    torch.manual_seed(0)
    net = Masked().eval()
    path = tmp_path_factory.mktemp("masked") / "net.pt"
    torch.jit.script(net).save(str(path))
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 20, (1, length)) for length in (4, 7, 11)]
    masks = [np.ones(array.shape, np.float32) for array in ids]
    return net, exported(path, Dataset("samples", {"ids": ids, "mask": masks}))


@pytest.mark.parametrize("shape", [(1, 4), (3, 9), (2, 1), (5, 30)])
def test_length_and_batch_stay_dynamic(shape: tuple[int, int], masked: Any) -> None:
    net, result = masked
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 20, shape)
    mask = rng.integers(0, 2, shape).astype(np.float32)
    got = run(result, {"ids": ids, "mask": mask})
    with torch.no_grad():
        want = net(torch.from_numpy(ids), torch.from_numpy(mask))
    np.testing.assert_allclose(got[0], want[0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[1], want[1].numpy())


def test_an_argument_with_a_default_need_not_be_given(tmp_path: Path) -> None:
    (tmp_path / "scaling.py").write_text(
        "import torch\n"
        "class Scaling(torch.nn.Linear):\n"
        "    def forward(self, x, scale=2.0):\n"
        "        return super().forward(x) * scale\n"
        "def build():\n    return Scaling(4, 3)\n"
    )
    net = torch.nn.Linear(4, 3)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    rows = np.random.default_rng(0).standard_normal((6, 4), np.float32)
    data = Dataset("rows", {"x": list(rows)})
    result = exported(tmp_path / "w.pt", data, arch=f"{tmp_path / 'scaling.py'}:build")
    with torch.no_grad():
        want = 2 * net(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(run(result, {"x": rows})[0], want, rtol=1e-5, atol=1e-6)


def test_several_outputs_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(
        "import torch\n"
        "class Pair(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.bias = torch.nn.Parameter(torch.ones(2))\n"
        "    def forward(self, x):\n"
        "        return {'plus': x + self.bias, 'rest': [x - self.bias, x * 3]}\n"
        "def build():\n    return Pair()\n"
    )
    torch.save({"bias": torch.tensor([1.0, 2.0])}, tmp_path / "w.pt")
    rows = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    result = exported(
        tmp_path / "w.pt", Dataset("r", {"x": list(rows)}), arch=f"{tmp_path / 'pair.py'}:build"
    )
    plus, minus, triple = run(result, {"x": rows})
    np.testing.assert_array_equal(plus, rows + [1, 2])
    np.testing.assert_array_equal(minus, rows - [1, 2])
    np.testing.assert_array_equal(triple, rows * 3)


def test_a_network_in_training_mode_is_exported_in_evaluation(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.9))
    torch.save(net.train(), tmp_path / "net.pt")
    rows = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    result = exported(tmp_path / "net.pt", Dataset("r", {"x": list(rows)}), trusted=True)
    with torch.no_grad():
        want = net.eval()(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(run(result, {"input": rows})[0], want, rtol=1e-5, atol=1e-6)


def test_a_fixed_batch_of_a_program_stays_fixed(digits_net: Any, tmp_path: Path) -> None:
    program = torch.export.export(digits_net, (torch.zeros(4, 1, 8, 8),))
    torch.export.save(program, str(tmp_path / "net.pt2"))
    result = exported(tmp_path / "net.pt2")
    assert axes(result, "image") == (4, 1, 8, 8)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        want = digits_net(x).numpy()
    np.testing.assert_allclose(run(result, {"image": x.numpy()})[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("save", [save_script, save_program], ids=lambda s: s.__name__)
def test_data_of_another_size_says_what_is_wrong(
    save: Any, digits_net: Any, tmp_path: Path
) -> None:
    save(digits_net, tmp_path / "net.pt")
    # Four channels instead of one: torch names the shape that it was given.
    data = Dataset("val.npz", {"image": [np.zeros((4, 8, 8), np.float32)] * 3})
    with pytest.raises(InputError, match=r"val\.npz.*\b4\b"):
        exported(tmp_path / "net.pt", data)


@pytest.mark.parametrize("save", [save_script, save_program], ids=lambda s: s.__name__)
def test_data_of_another_type_says_which(save: Any, digits_net: Any, tmp_path: Path) -> None:
    save(digits_net, tmp_path / "net.pt")
    data = Dataset("val.npz", {"image": [np.zeros((1, 8, 8))] * 3})
    with pytest.raises(InputError, match=r"val\.npz.*(double|float64)"):
        exported(tmp_path / "net.pt", data)


def test_data_of_other_names_shows_both(masked: Any, tmp_path: Path) -> None:
    torch.jit.script(masked[0]).save(str(tmp_path / "net.pt"))
    data = Dataset("val.npz", {"ids": [np.zeros((1, 3), int)], "weights": [np.zeros((1, 3))]})
    with pytest.raises(InputError, match="holds ids, weights; the model takes ids, mask"):
        exported(tmp_path / "net.pt", data)


BRANCHES = """
import torch


class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x):
        y = self.layer(x)
        return y * 2 if x.shape[1] > 18 else y


def build():
    return Branches()
"""


def test_a_length_that_takes_another_way_is_seen(tmp_path: Path) -> None:
    file, weights = tmp_path / "branches.py", tmp_path / "branches.pt"
    file.write_text(BRANCHES)
    torch.save({"layer.weight": torch.eye(8), "layer.bias": torch.zeros(8)}, weights)
    lengths = [16] * 5 + [20]
    rows = [np.ones((1, n, 8), np.float32) for n in lengths]
    data = representative(Dataset("rows.npz", {"x": rows}, batch_first=True))
    with pytest.raises(InputError, match="cannot be exported to ONNX: .*outputs differ"):
        exported(weights, data, arch=f"{file}:build")


def test_what_the_code_computes_is_part_of_the_module(tmp_path: Path) -> None:
    file, weights = tmp_path / "edited.py", tmp_path / "edited.pt"
    torch.save({"layer.weight": torch.eye(8), "layer.bias": torch.zeros(8)}, weights)
    data = Dataset("rows.npz", {"x": [np.ones((1, 16, 8), np.float32)] * 4}, batch_first=True)
    digests = []
    for factor in (2, 2, 3):
        file.write_text(BRANCHES.replace("y * 2", f"y * {factor}"))
        program = exported(weights, data, arch=f"{file}:build").program
        assert program is not None
        digests.append(program.digest)
    assert digests[0] == digests[1] != digests[2]
