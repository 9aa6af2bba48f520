"""What a file is, is told by its content; what is no whole model is refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.errors import InputError
from optimize.models.source import detect, load

torch = pytest.importorskip("torch")

Save = Callable[[Any, Path], None]


def script(net: Any, path: Path) -> None:
    torch.jit.script(net).save(str(path))


def module(net: Any, path: Path) -> None:
    torch.save(net, path)


def state(net: Any, path: Path) -> None:
    torch.save(net.state_dict(), path)


def legacy(net: Any, path: Path) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


def safetensors(net: Any, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(net.state_dict(), str(path))


def program(net: Any, path: Path) -> None:
    exported = torch.export.export(net, (torch.zeros(2, 1, 8, 8),))
    with path.with_suffix(".pt2").open("wb") as stream:
        torch.export.save(exported, stream)
    path.with_suffix(".pt2").rename(path)


def graph(net: Any, path: Path) -> None:
    torch.onnx.export(net, (torch.zeros(2, 1, 8, 8),), str(path), dynamo=False)


KINDS: dict[Save, str] = {
    script: "torchscript",
    module: "checkpoint",
    state: "checkpoint",
    legacy: "checkpoint",
    safetensors: "safetensors",
    program: "exported_program",
    graph: "onnx",
}
SAVES = pytest.mark.parametrize("save", KINDS, ids=lambda save: save.__name__)


@pytest.fixture(scope="module")
def saved(digits_net: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[Save, bytes]:
    """Every kind of file, once."""
    folder = tmp_path_factory.mktemp("kinds")
    for save in KINDS:
        save(digits_net, folder / save.__name__)
    return {save: (folder / save.__name__).read_bytes() for save in KINDS}


@SAVES
@pytest.mark.parametrize("suffix", ["", ".onnx", ".pt", ".pt2", ".safetensors", ".txt"])
def test_the_suffix_says_nothing(
    save: Save, suffix: str, saved: dict[Save, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(saved[save])
    source = detect(path)
    assert source.kind == KINDS[save]
    assert source.size_bytes == len(saved[save])
    assert source.digest == hashlib.sha256(saved[save]).hexdigest()


@SAVES
@pytest.mark.parametrize("share", [0.5, 0.98])
def test_a_file_that_is_cut_short_is_refused(
    save: Save, share: float, saved: dict[Save, bytes], digits_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(saved[save][: int(share * len(saved[save]))])
    with pytest.raises(InputError, match=r"model\.bin") as caught:
        load(detect(path), f"{digits_file}:build", trusted=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, this is a text and no model\n" * 9, "is no model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "is no model"),
        (b"PK\x03\x04 and then something else", "cut short or damaged"),
        (json.dumps({"weights": [1, 2]}).encode(), "is no model"),
    ],
    ids=["empty", "text", "image", "broken zip", "json"],
)
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_a_file_of_another_sort_is_no_model(
    content: bytes, reason: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        detect(path)


@pytest.mark.parametrize(
    "content",
    [b"hello, no model", b"\x08", b"\x08" + bytes(range(256))],
    ids=["text", "one byte", "noise"],
)
def test_a_file_called_onnx_is_not_believed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="no ONNX model"):
        detect(tmp_path / "model.onnx")


def test_an_archive_of_other_files_is_no_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("notes/readme.txt", "no model")
    with pytest.raises(InputError, match="zip archive, but no PyTorch file"):
        detect(tmp_path / "model.pt")


def test_data_in_the_place_of_the_model_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", image=np.zeros(3))
    with pytest.raises(InputError, match="no PyTorch file"):
        detect(tmp_path / "val.npz")


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.pt does not exist"):
        detect(tmp_path / "nothing.pt")


def test_a_folder_without_a_model_says_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config\.json and \*\.safetensors"):
        detect(tmp_path)


def test_a_checkpoint_without_a_model_says_what_it_holds(digits_file: Path, tmp_path: Path) -> None:
    torch.save([torch.ones(3)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list, no model or state_dict"):
        load(detect(tmp_path / "list.pt"), f"{digits_file}:build", trusted=False)


def test_a_plain_pickle_is_no_torch_file(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    with pytest.raises(InputError, match="no complete PyTorch file"):
        load(detect(tmp_path / "model.pkl"), None, trusted=False)
