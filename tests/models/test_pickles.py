"""A pickle never runs code unless its user says so."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimize.errors import InputError
from optimize.models.checkpoint import foreign_globals, pickled_code
from optimize.models.source import detect, load

torch = pytest.importorskip("torch")


class Touch:
    """Unpickled, it leaves a file behind: what an attacker's code would do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        from os import system

        return system, (f"touch {self._path}",)


def zipped(payload: Any, path: Path) -> None:
    torch.save({"weight": torch.ones(2), "x": payload}, path)


def legacy(payload: Any, path: Path) -> None:
    torch.save({"weight": torch.ones(2), "x": payload}, path, _use_new_zipfile_serialization=False)


def protocol_4(payload: Any, path: Path) -> None:
    torch.save({"x": payload}, path, pickle_protocol=4, _use_new_zipfile_serialization=False)


def first_pickle(payload: Any, path: Path) -> None:
    """The attack comes in the place of the legacy format's magic number."""
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(pickle.dumps(payload, 2) + path.read_bytes())


def plain(payload: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload))


ATTACKS = [zipped, legacy, protocol_4, first_pickle, plain]


@pytest.mark.parametrize("save", ATTACKS, ids=lambda save: save.__name__)
def test_code_in_a_pickle_is_refused_and_does_not_run(
    save: Callable[[Any, Path], None], digits_file: Path, tmp_path: Path
) -> None:
    save(Touch(tmp_path / "ran"), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt"):
        load(detect(tmp_path / "model.pt"), f"{digits_file}:build", trusted=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", [zipped, legacy], ids=lambda save: save.__name__)
def test_what_it_would_import_is_named_with_the_way_out(
    save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    save(Touch(tmp_path / "ran"), tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"would import posix\.system.*--trust-pickle"):
        load(detect(tmp_path / "model.pt"), None, trusted=False)
    assert foreign_globals(tmp_path / "model.pt") == ["posix.system"]


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_trusted_module_is_loaded(zip_format: bool, digits_net: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(digits_net, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(InputError, match=r"digits_net\.DigitsNet"):
        load(detect(path), None, trusted=False)
    loaded = load(detect(path), None, trusted=True)
    assert loaded.inputs == loaded.required == ("image",)
    assert not loaded.program.training
    assert torch.equal(loaded.program.head.weight, digits_net.head.weight)


def test_a_trusted_module_whose_class_is_gone_says_so(tmp_path: Path) -> None:
    import sys
    import types

    gone = types.ModuleType("module_that_goes")
    exec("import torch\nclass Net(torch.nn.Linear): pass", gone.__dict__)
    gone.Net.__module__ = gone.__name__
    sys.modules[gone.__name__] = gone
    torch.save(gone.Net(2, 2), tmp_path / "model.pt")
    del sys.modules[gone.__name__]
    with pytest.raises(InputError, match="No module named 'module_that_goes'"):
        load(detect(tmp_path / "model.pt"), None, trusted=True)


@pytest.mark.parametrize("zip_format", [True, False])
def test_plain_weights_need_no_trust(
    zip_format: bool, digits_net: Any, digits_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    parameters = dict(digits_net.named_parameters())  # torch.nn.Parameter, not plain tensors
    buffers = dict(digits_net.named_buffers())
    torch.save(parameters | buffers, path, _use_new_zipfile_serialization=zip_format)
    assert foreign_globals(path) == []
    loaded = load(detect(path), f"{digits_file}:build", trusted=False)
    assert torch.equal(loaded.program.head.weight, digits_net.head.weight)


@pytest.mark.parametrize("zipped_format", [True, False])
def test_code_that_a_pickle_imports_is_told_apart(
    zipped_format: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By content, without importing it; what is installed does not count."""
    code = tmp_path / "own_network.py"
    code.write_text("import torch\nclass Net(torch.nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("own_network").Net(2, 2)
    saved = tmp_path / "saved" / "model.pt"
    saved.parent.mkdir()
    torch.save(net, saved, _use_new_zipfile_serialization=zipped_format)
    monkeypatch.delitem(sys.modules, "own_network")
    before = pickled_code(saved)
    assert list(before) == ["installed", "own_network"]
    assert "own_network" not in sys.modules
    code.write_text(code.read_text() + "# changed\n")
    assert pickled_code(saved) != before


def test_weights_alone_depend_on_no_code(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    assert list(pickled_code(tmp_path / "model.pt")) == ["installed"]
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 cut short")
    assert pickled_code(tmp_path / "broken.pt") == {}


def test_code_in_sub_packages_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "own_package" / "nets" / "small.py"
    code.parent.mkdir(parents=True)
    for folder in (code.parent, code.parent.parent):
        (folder / "__init__.py").touch()
    code.write_text("import torch\nclass Net(torch.nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("own_package.nets.small").Net(2, 2)
    (tmp_path / "saved").mkdir()
    torch.save(net, tmp_path / "saved" / "model.pt")
    before = pickled_code(tmp_path / "saved" / "model.pt")
    code.write_text(code.read_text() + "# changed\n")
    assert pickled_code(tmp_path / "saved" / "model.pt") != before
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        monkeypatch.delitem(sys.modules, name)
