"""The first file for a model: what it finds, and that it is in order."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from shipped import FASHION

from optimize.errors import InputError
from optimize.gate.config import read
from optimize.gate.starter import refuse_to_overwrite, starter

if TYPE_CHECKING:
    from gate.conftest import Run

    from optimize.targets.base import Device


def test_it_finds_the_samples_that_fit_an_onnx_model(
    tmp_path: Path, digits_onnx: Path, digits_npz: Path, epyc: Device
) -> None:
    model = tmp_path / "my net.v2.onnx"
    shutil.copy(digits_onnx, model)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "a-other.npz", x=np.zeros(3))
    np.savez(tmp_path / "data" / "b-unlabelled.npz", image=np.zeros((3, 1, 8, 8), np.float32))
    shutil.copy(digits_npz, tmp_path / "data" / "val.npz")
    (tmp_path / "optimize.toml").write_text(starter(model, Path(model.name), epyc))
    said = read(tmp_path / "optimize.toml").options("my-net")
    assert said.source == "my net.v2.onnx"
    assert said.data == "data/val.npz"
    assert said.floor == "drop=1%"
    assert "# input image: float32[nx1x8x8]" in (tmp_path / "optimize.toml").read_text()
    assert '# cpu = "AMD EPYC 9654"' in (tmp_path / "optimize.toml").read_text()


def test_damaged_samples_are_passed_over(
    tmp_path: Path, digits_onnx: Path, digits_npz: Path, epyc: Device
) -> None:
    shutil.copy(digits_onnx, tmp_path / "net.onnx")
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "b.npz").write_bytes(digits_npz.read_bytes()[:-400])
    np.save(tmp_path / "data.npy", np.zeros(3))
    (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    shutil.copy(digits_npz, tmp_path / "val.npz")
    text = starter(tmp_path / "net.onnx", Path("net.onnx"), epyc)
    assert 'data = "val.npz"' in text


def test_it_finds_the_architecture_of_weights(tmp_path: Path, epyc: Device) -> None:
    source = FASHION / "resnet.safetensors"
    (tmp_path / "optimize.toml").write_text(starter(source, Path("m") / source.name, epyc))
    said = read(tmp_path / "optimize.toml").options("resnet")
    assert (said.source, said.arch) == ("m/resnet.safetensors", "m/arch.py:resnet")
    assert said.data == "m/data.npz"


def test_a_model_alone_is_declared_without_samples(
    tmp_path: Path, digits_onnx: Path, epyc: Device
) -> None:
    shutil.copy(digits_onnx, tmp_path / "net.onnx")
    text = starter(tmp_path / "net.onnx", Path("net.onnx"), epyc)
    (tmp_path / "optimize.toml").write_text(text)
    assert read(tmp_path / "optimize.toml").options("net").data is None
    # What is commented out is in order too, once it is taken in.
    taken = text.replace('budget = "p99=20ms"', "").replace("# budget", "budget")
    for line in ("[targets.prod]", "cpu =", "cores ="):
        taken = taken.replace(f"# {line}", line)
    (tmp_path / "optimize.toml").write_text(taken)
    assert set(read(tmp_path / "optimize.toml").config.targets) == {"prod"}


@pytest.mark.parametrize(
    ("file", "name"), [("(my) net.onnx", "my-net"), ("模型.onnx", "model"), ("_a.onnx", "_a")]
)
def test_every_file_gives_a_name_that_is_in_order(
    file: str, name: str, tmp_path: Path, digits_onnx: Path, epyc: Device
) -> None:
    shutil.copy(digits_onnx, tmp_path / file)
    (tmp_path / "optimize.toml").write_text(starter(tmp_path / file, Path(file), epyc))
    assert read(tmp_path / "optimize.toml").options(name).source == file


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "optimize.toml").write_text("mine")
    with pytest.raises(InputError, match=r"exists and is not touched; --force overwrites it"):
        refuse_to_overwrite(tmp_path / "optimize.toml")


def test_the_command_writes_and_overwrites_only_by_force(optimize: Run, place: Path) -> None:
    done = optimize(place, "init", "net.onnx")
    assert done.returncode == 2
    assert 'chains = ["source"]' in (place / "optimize.toml").read_text()
    done = optimize(place, "init", "net.onnx", "--force")
    assert done.returncode == 0, done.stderr
    assert (place / "optimize.toml").read_text() == done.stdout
    (place / "ci").mkdir()
    done = optimize(place, "init", "net.onnx", "--out", "ci/optimize.toml")
    assert done.returncode == 0, done.stderr
    said = read(place / "ci" / "optimize.toml").options("net")
    assert (said.source, said.data) == ("../net.onnx", "../data.npz")
    assert optimize(place, "init", "none.onnx", "--force").returncode == 2
