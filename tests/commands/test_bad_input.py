"""Whatever is wrong with the input: exit code 2, one sentence, nothing written, nothing left."""

from __future__ import annotations

import os
import pickle
import re
import resource
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

if TYPE_CHECKING:
    from commands.conftest import Done, Run

BUDGET = ("--budget", "p99=1s")


@dataclass(frozen=True)
class Given:
    """What cases are made of; ``folder`` is empty and the working directory."""

    folder: Path
    onnx: Path
    script: Path
    weights: Path
    npz: Path
    arch: str

    def file(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def half(self, path: Path) -> Path:
        content = path.read_bytes()
        return self.file(f"half-{path.name}", content[: len(content) // 2])

    def data(self, **arrays: Any) -> Path:
        np.savez(self.folder / "bad.npz", **arrays)
        return self.folder / "bad.npz"


@pytest.fixture
def given(
    digits_onnx: Path,
    digits_script: Path,
    digits_weights: Path,
    digits_npz: Path,
    digits_file: Path,
    tmp_path: Path,
) -> Given:
    here = tmp_path / "here"
    here.mkdir()
    arch = f"{digits_file}:build"
    return Given(here, digits_onnx, digits_script, digits_weights, digits_npz, arch)


class Touch:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._path}",)


def attack(given: Given) -> Path:
    return given.file("evil.pt", pickle.dumps(Touch(given.folder / "ran"), protocol=2))


def torch_attack(given: Given) -> Path:
    import torch

    torch.save({"weights": Touch(given.folder / "ran")}, given.folder / "evil.pt")
    return given.folder / "evil.pt"


def zipped(given: Given) -> Path:
    with zipfile.ZipFile(given.folder / "zipped.pt", "w") as archive:
        archive.writestr("readme.txt", "no model")
    return given.folder / "zipped.pt"


def module(given: Given) -> Path:
    import torch

    torch.save(torch.nn.Linear(2, 2), given.folder / "module.pt")
    return given.folder / "module.pt"


def half_tensors(given: Given) -> Path:
    import torch
    from safetensors.torch import save_file

    save_file(torch.load(given.weights), given.folder / "weights.safetensors")
    return given.half(given.folder / "weights.safetensors")


def built_by(given: Given, body: str) -> list[Any]:
    """The words for weights whose factory does something else."""
    given.file("net.py", f"import torch\n\ndef build():\n    {body}\n".encode())
    return [given.weights, "--arch", "net.py:build", "--data", given.npz, *BUDGET]


def legacy_half(given: Given) -> Path:
    import torch

    path = given.folder / "legacy.pt"
    torch.save(torch.load(given.weights), path, _use_new_zipfile_serialization=False)
    return given.half(path)


def other_keys(given: Given) -> Path:
    import torch

    state = torch.load(given.weights)
    state["tail.bias"] = state.pop("head.bias")
    torch.save(state, given.folder / "other.pt")
    return given.folder / "other.pt"


def broken_side_file(given: Given) -> Path:
    path = given.folder / "side.onnx"
    onnx.save(
        onnx.load(given.onnx), path, save_as_external_data=True, location="side.bin",
        size_threshold=0,
    )  # fmt: skip
    side = given.folder / "side.bin"
    side.write_bytes(side.read_bytes()[:1000])
    return path


def poisoned_onnx(given: Given) -> Path:
    proto = onnx.load(given.onnx)
    for tensor in proto.graph.initializer:
        if tensor.name == "head.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), tensor.name))
    onnx.save(proto, given.folder / "nan.onnx")
    return given.folder / "nan.onnx"


IMAGE = np.zeros((4, 1, 8, 8), np.float32)
Words = Callable[[Given], list[Any]]
CASES: dict[str, tuple[Words, str]] = {
    "no words": (lambda g: [], "MODEL|no model"),
    "no model": (lambda g: [*BUDGET], "MODEL"),
    "missing file": (lambda g: ["none.pt", *BUDGET], "none.pt does not exist"),
    "empty file": (lambda g: [g.file("empty.pt", b""), *BUDGET], "is empty"),
    "text": (lambda g: [g.file("text.pt", b"hello world, no model"), *BUDGET], "is no model"),
    "zip of something else": (lambda g: [zipped(g), *BUDGET], "no PyTorch file"),
    "script cut short": (lambda g: [g.half(g.script), *BUDGET], "cut short"),
    "weights cut short": (
        lambda g: [g.half(g.weights), "--arch", g.arch, *BUDGET], "cut short"),
    "safetensors cut short": (
        lambda g: [half_tensors(g), "--arch", g.arch, "--data", g.npz, *BUDGET],
        "no complete safetensors"),
    "legacy weights cut short": (
        lambda g: [legacy_half(g), "--arch", g.arch, "--data", g.npz, *BUDGET], "half-legacy.pt"),
    "onnx cut short": (lambda g: [g.half(g.onnx), *BUDGET], "cut short"),
    "side file cut short": (lambda g: [broken_side_file(g), *BUDGET], r"side\.bin|cut short"),
    "data for a model": (lambda g: [g.npz, *BUDGET], "no PyTorch file"),
    "pickle without trust": (lambda g: [module(g), *BUDGET], "--trust-pickle"),
    "pickle that runs code": (lambda g: [attack(g), "--data", g.npz, *BUDGET], "evil.pt"),
    "checkpoint that runs code": (
        lambda g: [torch_attack(g), "--data", g.npz, *BUDGET], "posix.system.*--trust-pickle"),
    "weights without arch": (lambda g: [g.weights, "--data", g.npz, *BUDGET], "--arch"),
    "keys that do not match": (
        lambda g: [other_keys(g), "--arch", g.arch, "--data", g.npz, *BUDGET],
        r"missing head\.bias; unexpected tail\.bias"),
    "architecture that raises": (
        lambda g: built_by(g, "raise RuntimeError('out of luck')"), "out of luck"),
    "architecture that is no module": (
        lambda g: built_by(g, "return 3"), r"must return a torch\.nn\.Module"),
    "script without shapes": (lambda g: [g.script, *BUDGET], "--input image="),
    "no unit": (lambda g: [g.onnx, "--budget", "p99=20"], "has no unit"),
    "negative": (lambda g: [g.onnx, "--budget", "p99=-1ms"], "is not positive"),
    "unknown budget": (lambda g: [g.onnx, "--budget", "p98=1ms"], "p99"),
    "unknown floor": (lambda g: [g.onnx, *BUDGET, "--floor", "top2=.9"], "known: top1"),
    "empty data": (lambda g: [g.onnx, *BUDGET, "--data", ""], "--data is empty"),
    "empty floor": (lambda g: [g.onnx, *BUDGET, "--floor", ""], "--floor is empty"),
    "unknown flag": (lambda g: [g.onnx, *BUDGET, "--budgte", "x"], "--budget"),
    "twice": (lambda g: [g.onnx, *BUDGET, *BUDGET], "given twice"),
    "unknown pass": (
        lambda g: [g.onnx, *BUDGET, "--chain", "fold,fuze"], "no pass 'fuze'; did you mean fuse"),
    "unknown option": (
        lambda g: [g.onnx, *BUDGET, "--chain", "int8{bit=4}"], "'bit'; did you mean bits"),
    "unknown choice": (
        lambda g: [g.onnx, *BUDGET, "--chain", "int8{mode=sttic}"], "did you mean static"),
    "options that exclude each other": (
        lambda g: [g.onnx, *BUDGET, "--chain", "int8{mode=static,bits=4}"], "needs mode=weights"),
    "number that is none": (lambda g: [g.onnx, *BUDGET, "--threads", "x"], "--threads"),
    "number out of range": (lambda g: [g.onnx, *BUDGET, "--confidence", "99"], "--confidence"),
    "time without unit": (lambda g: [g.onnx, *BUDGET, "--time-limit", "9"], "--time-limit"),
    "unknown objective": (lambda g: [g.onnx, *BUDGET, "--objective", "speed"], "latency"),
    "data of other names": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(a=IMAGE, b=IMAGE)],
        "holds a, b, the model takes image"),
    "data of other names for a script": (
        lambda g: [g.script, *BUDGET, "--data", g.data(a=IMAGE, b=IMAGE)],
        "holds a, b; the model takes image"),
    "data of another shape": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=IMAGE[..., :5])],
        r"shape \(1, 8, 5\), the model takes image: float32\[nx1x8x8\]"),
    "data of another shape for a script": (
        lambda g: [g.script, *BUDGET, "--data", g.data(image=np.zeros((4, 3, 8, 8), np.float32))],
        r"bad\.npz.*channels"),
    "data of another type": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=IMAGE.astype(np.float64))],
        "image is float64, the model takes float32"),
    "labels by another name": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=IMAGE, y=np.zeros(4, int))],
        "call y 'labels' if it holds them"),
    "labels that are one-hot": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=IMAGE, labels=np.eye(10)[:4])],
        "one-hot labels become numbers"),
    "shape that the graph contradicts": (
        lambda g: [g.onnx, *BUDGET, "--input", "image=1x3x8x8:float32"],
        r"the model takes image: float32\[nx1x8x8\]"),
    "metric without its function": (
        lambda g: [g.onnx, *BUDGET, "--data", g.npz, "--metric", "metric.py"],
        "not of the form file.py:function"),
    "labels of another length": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=IMAGE, labels=np.zeros(3))],
        "3 labels for 4 samples"),
    "labels out of range": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=IMAGE, labels=np.full(4, 17))],
        "label"),
    "pickled data": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=np.array([{}, {}], object))],
        "pickled"),
    "metric without labels": (
        lambda g: [g.onnx, *BUDGET, "--data", g.data(image=IMAGE), "--metric", "top1"],
        "needs labels"),
    "data that is a text": (
        lambda g: [g.onnx, *BUDGET, "--data", g.file("d.npz", b"a,b\n")], "is no readable .npz"),
    "data in a single array": (
        lambda g: [g.onnx, *BUDGET, "--data", np.save(g.folder / "d.npy", IMAGE) or "d.npy"],
        "single array"),
    "data that is missing": (
        lambda g: [g.onnx, *BUDGET, "--data", "none.npz"], "none.npz does not exist"),
    "NaN outputs": (
        lambda g: [poisoned_onnx(g), *BUDGET, "--data", g.npz], "output logits holds .*NaN"),
    "verify of no result": (lambda g: ["verify", g.folder], "manifest.json"),
    "foreign folder": (
        lambda g: [g.onnx, *BUDGET, "--out", g.file("thesis.txt", b"mine").parent],
        "holds something else"),
    "this very folder": (lambda g: [g.onnx, *BUDGET, "--out", "."], r"--out \."),
    "file for a folder": (
        lambda g: [g.onnx, *BUDGET, "--out", g.file("f", b"mine")], "is no folder"),
    "folder below a file": (
        lambda g: [g.onnx, *BUDGET, "--out", g.file("f", b"mine") / "out"], "writable folder"),
}  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def complaint(done: Done) -> str:
    """The only line of a quiet run that was refused."""
    assert done.code == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("optimize: ")
    return line


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence(name: str, given: Given, optimize: Run) -> None:
    make, reason = CASES[name]
    words = make(given)
    before = contents(given.folder)
    quiet = ("--quiet",) if words else ()
    done = optimize(*words, *quiet, cwd=given.folder)
    assert re.search(reason, complaint(done)), done.stderr
    assert contents(given.folder) == before
    assert not (given.onnx.parent / "digits.optimized").exists()
    assert not (given.script.parent / "digits.optimized").exists()
    assert done.left == ()


def test_progress_does_not_hide_the_sentence(given: Given, optimize: Run) -> None:
    done = optimize(given.script, *BUDGET, cwd=given.folder)
    assert done.code == 2
    *progress, last = done.stderr.splitlines()
    assert last.startswith("optimize: ")
    assert not any(line.startswith("optimize: ") for line in progress)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_json_prints_nothing_for_bad_input(given: Given, optimize: Run) -> None:
    done = optimize(given.onnx, *BUDGET, "--data", "none.npz", "--json", cwd=given.folder)
    assert "does not exist" in complaint(done)


@pytest.mark.parametrize(
    ("source", "kilobytes"), [("onnx", 2), ("onnx", 12), ("onnx", 40), ("weights", 12)]
)
def test_a_full_disk_is_one_sentence(
    source: str, kilobytes: int, given: Given, optimize: Run
) -> None:
    def limit() -> None:
        size = kilobytes * 1024
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = optimize(
        getattr(given, source), "--arch", given.arch, "--data", given.npz, "--budget", "p50=2s",
        "--chain", "fold,fuse", "--threads", 1, "--quiet", "--out", "out",
        cwd=given.folder, preexec_fn=limit,
    )  # fmt: skip
    if done.code == 0:  # 40 kB hold some of these files
        assert kilobytes == 40
        return
    line = complaint(done).lower()
    assert "full" in line or "too large" in line
    assert not contents(given.folder)
    assert done.left == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_cannot_be_written(given: Given, optimize: Run) -> None:
    given.folder.chmod(0o555)
    try:
        done = optimize(given.onnx, *BUDGET, "--quiet", "--out", given.folder / "out")
    finally:
        given.folder.chmod(0o755)
    assert "not a writable folder" in complaint(done)
