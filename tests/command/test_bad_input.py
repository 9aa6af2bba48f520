"""Every bad input: exit code 2, one sentence, no traceback, nothing written."""

from __future__ import annotations

import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from shipped import FASHION, Command

Make = Callable[[Path, Path, Path], list[object]]


def _write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _half(source: Path, folder: Path) -> Path:
    content = source.read_bytes()
    return _write(folder, source.name, content[: len(content) // 2])


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("readme.txt", "no model")
    return folder / "model.pt"


def _pickle(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    return folder / "module.pt"


def _evil(folder: Path) -> Path:
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self) -> object:
            return (os.system, (f"touch {folder / 'pwned'}",))

    torch.save({"model": Evil()}, folder / "evil.pt")
    return folder / "evil.pt"


def _data(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "bad.npz", **arrays)  # type: ignore[arg-type]
    return folder / "bad.npz"


def _arch(folder: Path, body: str) -> str:
    (folder / "net.py").write_text(f"import torch\n\ndef build():\n    {body}\n")
    return f"{folder / 'net.py'}:build"


def _nan_model(folder: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Sqrt", ["x"], ["y"])],
        "nan",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "nan.onnx")
    return folder / "nan.onnx"


IMAGE = np.zeros((4, 1, 28, 28), np.uint8)
WEIGHTS = FASHION / "resnet.safetensors"
OK = ["--budget", "p99=1s"]
CASES: dict[str, tuple[Make, str]] = {
    "missing": (lambda t, m, d: [t / "none.pt", *OK], "does not exist"),
    "empty": (lambda t, m, d: [_write(t, "e.pt", b""), *OK], "is empty"),
    "text": (lambda t, m, d: [_write(t, "t.pt", b"hello world, no model"), *OK], "is no model"),
    "zip": (lambda t, m, d: [_zip(t), *OK], "no PyTorch file"),
    "onnx cut short": (lambda t, m, d: [_half(m, t), *OK], "cut short"),
    "safetensors cut short": (
        lambda t, m, d: [_half(WEIGHTS, t), *OK, "--data", d / "val.npz",
                         "--arch", f"{FASHION / 'arch.py'}:resnet"],
        "no complete safetensors"),
    "torch file cut short": (lambda t, m, d: [_half(_pickle(t), t), *OK], "cut short"),
    "pickle without trust": (lambda t, m, d: [_pickle(t), *OK], "--trust-pickle"),
    "pickle that runs code": (lambda t, m, d: [_evil(t), *OK], "system"),
    "weights without arch": (lambda t, m, d: [WEIGHTS, *OK, "--data", d / "val.npz"], "--arch"),
    "arch of other keys": (
        lambda t, m, d: [WEIGHTS, *OK, "--data", d / "val.npz",
                         "--arch", _arch(t, "return torch.nn.Linear(3, 3)")],
        "missing weight"),
    "arch that raises": (
        lambda t, m, d: [WEIGHTS, *OK, "--data", d / "val.npz",
                         "--arch", _arch(t, "raise RuntimeError('boom')")],
        "boom"),
    "arch of no module": (
        lambda t, m, d: [WEIGHTS, *OK, "--data", d / "val.npz", "--arch", _arch(t, "return 3")],
        "must return a torch.nn.Module"),
    "no budget": (lambda t, m, d: [m], "--budget"),
    "no unit": (lambda t, m, d: [m, "--budget", "p99=20"], "has no unit"),
    "negative budget": (lambda t, m, d: [m, "--budget", "p99=-1ms"], "not positive"),
    "unknown budget": (lambda t, m, d: [m, "--budget", "p98=1ms"], "p99"),
    "unknown floor": (lambda t, m, d: [m, *OK, "--floor", "top2=.9"], "known: top1"),
    "unknown pass": (lambda t, m, d: [m, *OK, "--chain", "fold,fues"], "did you mean fuse"),
    "unknown option": (lambda t, m, d: [m, *OK, "--chain", "int8{mod=static}"],
                       "did you mean mode"),
    "unknown choice": (lambda t, m, d: [m, *OK, "--chain", "int8{mode=sttic}"],
                       "did you mean static"),
    "unknown flag": (lambda t, m, d: [m, *OK, "--budgte", "x"], "--budget"),
    "wrong name": (
        lambda t, m, d: [m, *OK, "--data", _data(t, a=IMAGE, b=IMAGE)], "the model takes image"),
    "wrong shape": (
        lambda t, m, d: [m, *OK, "--data", _data(t, image=IMAGE[..., :14])], "has shape"),
    "wrong type": (
        lambda t, m, d: [m, *OK, "--data", _data(t, image=IMAGE.astype(np.float32))],
        "the model takes uint8"),
    "labels of another length": (
        lambda t, m, d: [m, *OK, "--data", _data(t, image=IMAGE, labels=np.zeros(3, int))],
        "3 labels for 4 samples"),
    "pickled data": (
        lambda t, m, d: [m, *OK, "--data", _data(t, image=np.array([{}, {}], object))],
        "pickled"),
    "metric without labels": (
        lambda t, m, d: [m, *OK, "--data", _data(t, image=IMAGE), "--metric", "top1"],
        "needs labels"),
    "NaN outputs": (
        lambda t, m, d: [_nan_model(t), *OK, "--data",
                         _data(t, x=-np.ones((4, 2), np.float32))],
        "NaN"),
    "foreign folder": (
        lambda t, m, d: [m, *OK, "--out", _write(t, "note.txt", b"mine").parent],
        "holds something else"),
    "folder is a file": (
        lambda t, m, d: [m, *OK, "--out", _write(t, "file", b"mine")], "is no folder"),
    "verify of no result": (lambda t, m, d: ["verify", t], "manifest.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_exit_code_2(
    name: str, optimize: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    make, expected = CASES[name]
    words = make(tmp_path, model, data)
    before = sorted(tmp_path.rglob("*"))
    done = optimize(*words, cwd=tmp_path)
    complaints = [s for s in done.stderr.splitlines() if s.startswith("optimize: ")]
    assert done.returncode == 2, done.stderr
    assert len(complaints) == 1, done.stderr
    assert expected in complaints[0]
    assert "Traceback" not in done.stderr
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)) == before


def test_a_disk_that_fills_up_leaves_nothing(
    optimize: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = optimize(
        model, "--data", data / "val.npz", *OK, "--chain", "source", "--threads", 1,
        "--out", tmp_path / "out", preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "optimize: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_parent_is_told_before_any_work(
    optimize: Command, model: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    done = optimize(model, *OK, "--out", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert done.returncode == 2
    assert "writable" in done.stderr
