"""Every kind of source, told apart by content, exported and compared with torch's own output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimize.errors import InputError
from optimize.models.data import Dataset
from optimize.models.export import Exported, load_and_export
from optimize.models.source import detect

torch = pytest.importorskip("torch")

INPUTS = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
ARCH = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))

def build():
    return Net()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sources")
    (path / "sources_arch.py").write_text(ARCH)
    return path


@pytest.fixture(scope="module")
def net(folder: Path) -> Any:
    from optimize.models.usercode import load_function

    torch.manual_seed(0)
    module = load_function(f"{folder / 'sources_arch.py'}:build", "--arch")()
    with torch.no_grad():  # statistics of its own, as a trained network has
        module.norm.running_mean.uniform_(-1, 1)
        module.norm.running_var.uniform_(0.5, 2)
    return module.eval()


def traced(net: Any, path: Path) -> None:
    torch.jit.trace(net, torch.from_numpy(INPUTS[:2])).save(str(path))


def pickled(net: Any, path: Path) -> None:
    torch.save(net, path)


def flat(net: Any, path: Path) -> None:
    torch.save(net.state_dict(), path)


def legacy(net: Any, path: Path) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


def nested(net: Any, path: Path) -> None:
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"epoch": 3, "model_state": state, "optimizer": {"lr": torch.ones(1)}}, path)


def safetensors(net: Any, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(net.state_dict(), str(path))


def program(net: Any, path: Path) -> None:
    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        net, (torch.from_numpy(INPUTS[:2]),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(exported, path)


SAVERS: list[tuple[Callable[[Any, Path], None], str]] = [
    (traced, "torchscript"),
    (pickled, "checkpoint"),
    (flat, "checkpoint"),
    (legacy, "checkpoint"),
    (nested, "checkpoint"),
    (safetensors, "safetensors"),
    (program, "exported_program"),
]


@pytest.mark.parametrize(("save", "kind"), SAVERS, ids=lambda value: getattr(value, "__name__", ""))
def test_each_kind_gives_torchs_outputs_at_any_batch(
    save: Callable[[Any, Path], None], kind: str, net: Any, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"  # the suffix says nothing
    save(net, path)
    exported = export(path, folder, trusted=save is pickled)
    assert detect(path).kind == kind
    session = onnxruntime.InferenceSession(str(exported.model.path))
    name = session.get_inputs()[0].name
    with torch.no_grad():
        expected = net(torch.from_numpy(INPUTS)).numpy()
    for batch in (1, 6):  # dynamic axes stay dynamic
        got = session.run(None, {name: INPUTS[:batch]})[0]
        np.testing.assert_allclose(got, expected[:batch], rtol=1e-4, atol=1e-5)
    assert exported.difference.relative < 1e-5


def export(path: Path, folder: Path, trusted: bool = False, **changes: Any) -> Exported:
    data = changes.pop("data", Dataset("test", {"x": list(INPUTS)}))
    out = path.parent / "exported"
    out.mkdir(exist_ok=True)
    arch = changes.pop("arch", f"{folder / 'sources_arch.py'}:build")
    return load_and_export(detect(path), arch, trusted, data, (), out)


@pytest.mark.parametrize("legacy_format", [False, True])
def test_a_pickle_is_refused_by_the_names_it_would_import(
    legacy_format: bool, net: Any, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt"
    torch.save(net, path, _use_new_zipfile_serialization=not legacy_format)
    with pytest.raises(InputError, match=r"sources_arch\.Net"):
        export(path, folder)


def test_refusing_a_pickle_runs_none_of_it(folder: Path, tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for new in (True, False):
        torch.save({"a": Evil()}, tmp_path / "m.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(InputError, match="system"):
            export(tmp_path / "m.pt", folder)
    assert not (tmp_path / "ran").exists()


def test_keys_that_do_not_match_are_named(net: Any, folder: Path, tmp_path: Path) -> None:
    state = net.state_dict()
    state["extra.weight"] = state.pop("head.weight")
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"missing head\.weight; unexpected extra\.weight"):
        export(tmp_path / "m.pt", folder)


def test_axes_that_differ_among_samples_stay_dynamic(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "seq.py").write_text(
        "import torch\n\nclass Seq(torch.nn.Module):\n"
        "    def forward(self, ids, mask):\n"
        "        return (torch.nn.functional.one_hot(ids, 5) * mask[..., None]).sum(1).float()\n"
        "def build():\n    return Seq()\n"
    )
    torch.save({"unused": torch.ones(1)}, tmp_path / "m.pt")
    from optimize.models.source import Loaded  # the module has no weights to save

    rng = np.random.default_rng(0)
    lengths = [4, 7, 9]
    ids = [rng.integers(0, 5, (1, n)) for n in lengths]
    mask = [np.ones((1, n), np.int64) for n in lengths]
    from optimize.models.export import export as export_loaded
    from optimize.models.usercode import load_function

    module = load_function(f"{tmp_path / 'seq.py'}:build", "--arch")()
    loaded = Loaded(detect(tmp_path / "m.pt"), module.eval(), ("ids", "mask"), ("ids", "mask"))
    result = export_loaded(loaded, Dataset("t", {"ids": ids, "mask": mask}), (), tmp_path)
    session = onnxruntime.InferenceSession(str(result.model.path))
    got = session.run(
        None, {"ids": np.zeros((2, 13), np.int64), "mask": np.ones((2, 13), np.int64)}
    )
    assert got[0].tolist() == [[13, 0, 0, 0, 0]] * 2


def test_a_script_that_keeps_state_is_told_what_would_do(tmp_path: Path, folder: Path) -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + 1
            return x.flatten() + self.seen if self.seen > 0 else ~x

    torch.jit.script(Counter()).save(str(tmp_path / "m.pt"))
    with pytest.raises(InputError, match="keeps state in its own attributes"):
        export(tmp_path / "m.pt", folder)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_pooler_that_was_not_trained_is_left_out(bert: Path, folder: Path) -> None:
    outputs = load_and_export(detect(bert), None, False, None, (), folder).model.signature.outputs
    assert [output.name for output in outputs] == ["last_hidden_state"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("BertForSequenceClassification", "holds no weights for .*classifier"),
        ("BrandNewModel", "has no architecture BrandNewModel"),
    ],
)
def test_weights_that_a_folder_lacks_are_not_made_up(
    name: str, words: str, bert: Path, folder: Path
) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    with pytest.raises(InputError, match=words):
        load_and_export(detect(bert), None, False, None, (), folder)


def test_a_hugging_face_folder_is_exported_with_dynamic_length(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert")
    source = detect(tmp_path / "bert")
    assert source.kind == "huggingface"
    result = load_and_export(source, None, False, None, (), tmp_path)
    session = onnxruntime.InferenceSession(str(result.model.path))
    ids = np.random.default_rng(0).integers(0, 50, (3, 11))
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feed["token_type_ids"] = np.zeros_like(ids)
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(got["last_hidden_state"], expected, rtol=1e-3, atol=1e-4)
