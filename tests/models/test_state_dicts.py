"""Weights find their architecture however they were wrapped, or the misfit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimize.errors import InputError
from optimize.models.source import Loaded, detect, load

torch = pytest.importorskip("torch")


def restored(saved: Any, path: Path, arch: str, trusted: bool = False) -> Loaded:
    torch.save(saved, path)
    return load(detect(path), arch, trusted)


@pytest.fixture
def arch(digits_file: Path) -> str:
    return f"{digits_file}:build"


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()}


WRAPPERS = {
    "flat": lambda s: s,
    "data parallel": lambda s: prefixed("module.", s),
    "compiled": lambda s: prefixed("_orig_mod.", s),
    "compiled and data parallel": lambda s: prefixed("module._orig_mod.", s),
    "lightning": lambda s: {"epoch": 3, "state_dict": prefixed("model.", s)},
    "under model_state": lambda s: {"model_state": s, "epoch": 3},
    "beside an optimizer": lambda s: {
        "step": torch.tensor(7),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "model_state": prefixed("module.", s),
    },
    "two levels down": lambda s: {"checkpoint": {"net": s, "loss": 0.5}},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_in_any_wrapper(
    wrapper: str, digits_net: Any, arch: str, tmp_path: Path
) -> None:
    state = digits_net.state_dict()
    loaded = restored(WRAPPERS[wrapper](state), tmp_path / "weights.pt", arch)
    assert loaded.inputs == ("image",)
    assert not loaded.program.training
    for key, value in loaded.program.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_saved_inside_a_dictionary_needs_trust(
    zipped: bool, digits_net: Any, arch: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"net": digits_net}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"digits_net\.DigitsNet"):
        load(detect(path), arch, trusted=False)
    loaded = load(detect(path), arch, trusted=True)
    assert torch.equal(loaded.program.head.bias, digits_net.head.bias)


def test_a_missing_and_an_unexpected_key_are_named(
    digits_net: Any, arch: str, tmp_path: Path
) -> None:
    state = dict(digits_net.state_dict())
    state["tail.bias"] = state.pop("head.bias")
    with pytest.raises(InputError, match=r"missing head\.bias; unexpected tail\.bias"):
        restored(state, tmp_path / "weights.pt", arch)


def test_a_weight_of_another_shape_is_named_with_both(
    digits_net: Any, arch: str, tmp_path: Path
) -> None:
    state = dict(digits_net.state_dict()) | {"head.bias": torch.zeros(7)}
    with pytest.raises(InputError, match=r"head\.bias is \(7,\), not \(10,\)"):
        restored(state, tmp_path / "weights.pt", arch)


def test_many_misfits_are_counted_not_listed(digits_net: Any, arch: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing conv1\.weight, .* and 13 more") as caught:
        restored({"other": torch.ones(2)}, tmp_path / "weights.pt", arch)
    assert len(str(caught.value)) < 400


def test_a_file_without_tensors_holds_no_weights(arch: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dictionary of tensors"):
        restored({"epoch": 3, "metrics": {"loss": 0.5}}, tmp_path / "weights.pt", arch)


def test_weights_alone_ask_for_their_architecture(digits_net: Any, tmp_path: Path) -> None:
    torch.save(digits_net.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"add --arch file\.py:factory"):
        load(detect(tmp_path / "weights.pt"), None, trusted=False)


@pytest.mark.parametrize(
    ("body", "reference", "reason"),
    [
        ("def build(): raise OSError('no such size')", "net.py:build", "OSError: no such size"),
        ("def build(): return {}", "net.py:build", "must return a torch.nn.Module, it gave dict"),
        ("build = 3", "net.py:build", "defines no function 'build'"),
        ("def build(): pass", "net.py:make", "defines no function 'make'"),
        ("def build(): pass", "other.py:build", "does not exist"),
        ("def build(): pass", "net.py", "not of the form file.py:function"),
        ("import nothing_of_that_name", "net.py:build", "nothing_of_that_name"),
        ("def build(:", "net.py:build", "SyntaxError"),
    ],
)
def test_an_architecture_that_gives_none_is_told(
    body: str, reference: str, reason: str, digits_net: Any, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(body)
    torch.save(digits_net.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match="--arch") as caught:
        load(detect(tmp_path / "weights.pt"), str(tmp_path / reference), trusted=False)
    assert reason in str(caught.value)


def test_an_architecture_may_import_its_neighbours(digits_net: Any, tmp_path: Path) -> None:
    (tmp_path / "sizes_of_this_net.py").write_text("CLASSES = 10\n")
    (tmp_path / "neighbourly.py").write_text(
        "import torch\nfrom sizes_of_this_net import CLASSES\n"
        "def build(): return torch.nn.Linear(4, CLASSES)\n"
    )
    state = torch.nn.Linear(4, 10).state_dict()
    loaded = restored(state, tmp_path / "w.pt", f"{tmp_path / 'neighbourly.py'}:build")
    assert loaded.program.out_features == 10
