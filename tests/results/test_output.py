"""The result folder is written whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from optimize.errors import InputError, OptimizeError
from optimize.models.model import Model
from optimize.results.output import check_writable, write

if TYPE_CHECKING:
    from conftest import GraphMaker


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_text(folder: Path, text: str, model: Model | None = None) -> Path | None:
    return write(folder, json.dumps({"text": text}), {"seed": 7}, model, {"error.txt": "trace"})


def test_everything_lies_in_the_folder_with_its_digest(graph: GraphMaker, tmp_path: Path) -> None:
    model = graph.linear()
    path = write_text(tmp_path / "out", "first", model)
    assert path == tmp_path / "out" / "model.onnx"
    files = contents(tmp_path / "out")
    assert set(files) == {"model.onnx", "report.json", "manifest.json", "error.txt"}
    assert files["model.onnx"] == model.path.read_bytes()
    assert json.loads(files["report.json"]) == {"text": "first"}
    manifest = json.loads(files["manifest.json"])
    assert manifest["seed"] == 7
    others = {name: data for name, data in files.items() if name != "manifest.json"}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in others.items()}
    assert manifest["files"] == digests


def test_others_may_read_the_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "first")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_nothing_else_is_left_beside_it(graph: GraphMaker, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for text in ("first", "second"):
        write_text(tmp_path / "here" / "out", text, graph.linear())
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["out"]


def test_without_an_artefact_there_is_no_model(tmp_path: Path) -> None:
    assert write_text(tmp_path / "out", "none kept") is None
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_missing_parents_are_made(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    check_writable(out)
    assert not (tmp_path / "a").exists()
    write_text(out, "first")
    assert (out / "report.json").is_file()


def test_our_own_folder_is_replaced_whole(graph: GraphMaker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_text(out, "first", graph.linear())
    check_writable(out)
    write_text(out, "second")
    assert "model.onnx" not in contents(out)  # no leftover of the first
    assert json.loads((out / "report.json").read_text()) == {"text": "second"}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_writable(tmp_path / "out")
    write_text(tmp_path / "out", "first")
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.txt": "years of work"},
        {"manifest.json": "{}"},
        {"manifest.json": '{"tool": "another"}', "model.onnx": "theirs"},
        {"manifest.json": "[]"},
        {"manifest.json": "no json"},
        {"report.json": "{}", "model.onnx": "theirs"},
        {".hidden": ""},
    ],
)
def test_a_foreign_folder_is_refused_and_not_touched(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, text in files.items():
        (out / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds something else, which is not touched"):
        check_writable(out)
    assert contents(tmp_path) == before


def test_a_file_or_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(InputError, match="is no folder"):
            check_writable(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not a writable folder"):
        check_writable(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(InputError, match="not a writable folder"):
            check_writable(tmp_path / "out")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("location", ["network.onnx.data", "weights/w.bin"])
def test_external_data_comes_along(location: str, graph: GraphMaker, tmp_path: Path) -> None:
    import numpy as np

    model = graph.linear(external=location)
    path = write_text(tmp_path / "out", "first", model)
    assert path is not None
    shutil.rmtree(model.path.parent)
    x = np.ones((1, 64), np.float32)
    assert onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0].shape == (1, 64)


def fail_at(call: int, function: Any) -> Any:
    """Let the n-th call of a function find the disk full."""
    calls = iter(range(1, 100))

    def failing(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **options)

    return failing


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (shutil, "copyfile", 1),
        (Path, "write_text", 1),
        (Path, "write_text", 3),
        (Path, "rename", 1),
        (Path, "rename", 2),
    ],
)
def test_an_interrupted_write_leaves_the_earlier_result(
    owner: Any,
    name: str,
    call: int,
    graph: GraphMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, model = tmp_path / "here", graph.linear()
    here.mkdir()
    write_text(here / "out", "first", model)
    before = contents(here)
    if name == "rename":  # a file system that cannot exchange two folders
        monkeypatch.setattr("optimize.results.output._exchanged", lambda *_: False)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_at(call, getattr(owner, name)))
        with pytest.raises(OptimizeError, match="cannot be written: No space left on device"):
            write_text(here / "out", "second", model)
    assert contents(here) == before


def test_an_interrupted_first_write_leaves_nothing(
    graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(Path, "write_text", fail_at(2, Path.write_text))
    with pytest.raises(OptimizeError):
        write_text(tmp_path / "here" / "out", "first", graph.linear())
    assert not list((tmp_path / "here").iterdir())


DYING = """
import os, sys
from pathlib import Path
from optimize.results import output
from optimize.results.output import write

output._exchanged = lambda *_: False
call, out = int(sys.argv[1]), Path(sys.argv[2])
calls, rename = iter(range(1, 100)), Path.rename

def dying(self, target):
    if next(calls) == call:
        os._exit(9)
    return rename(self, target)

Path.rename = dying
write(out, '{"text": "second"}', {}, None, {})
"""


@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_between_two_moves_loses_no_result(call: int, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    write_text(here / "out", "first")
    done = subprocess.run([sys.executable, "-c", DYING, str(call), str(here / "out")])
    assert done.returncode == 9
    whole = [p.parent for p in here.rglob("manifest.json") if (p.parent / "report.json").is_file()]
    texts = {json.loads((folder / "report.json").read_text())["text"] for folder in whole}
    assert "first" in texts  # still there, if not in its place
    check_writable(here / "out")
    assert json.loads((here / "out" / "report.json").read_text()) == {"text": "first"}
    write_text(here / "out", "third")
    assert json.loads((here / "out" / "report.json").read_text()) == {"text": "third"}
    assert [path.name for path in here.iterdir()] == ["out"]


EXCHANGING = """
import os, sys
from pathlib import Path
from optimize.results import output

when, out = sys.argv[1], Path(sys.argv[2])
exchange = output._exchanged

def dying(*paths):
    if when == "after":
        assert exchange(*paths)
    os._exit(9)

output._exchanged = dying
output.write(out, '{"text": "second"}', {}, None, {})
"""


@pytest.mark.parametrize(("when", "text"), [("before", "first"), ("after", "second")])
def test_a_kill_around_the_exchange_leaves_one_whole_result(
    when: str, text: str, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    write_text(here / "out", "first")
    done = subprocess.run([sys.executable, "-c", EXCHANGING, when, str(here / "out")])
    assert done.returncode == 9
    assert json.loads((here / "out" / "report.json").read_text()) == {"text": text}
    write_text(here / "out", "third")
    assert [path.name for path in here.iterdir()] == ["out"]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    here, name = tmp_path / "here", "model[1]*.optimized"
    (here / f".{name}.mine").mkdir(parents=True)
    write_text(here / name, "first")
    done = subprocess.run([sys.executable, "-c", DYING, "2", str(here / name)])
    assert done.returncode == 9
    check_writable(here / name)
    assert json.loads((here / name / "report.json").read_text()) == {"text": "first"}
    write_text(here / name, "second")
    assert {path.name for path in here.iterdir()} == {name, f".{name}.mine"}
