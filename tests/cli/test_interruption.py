"""Ctrl-C and a request to end: what is finished is reported, and no process stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def parents() -> dict[int, int]:
    """Every process and its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(entry.name)] = int(fields[1])
    return found


def descendants(pid: int) -> set[int]:
    tree, found, fresh = parents(), set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in tree.items() if parent in fresh} - found
        found |= fresh
    return found


def command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Running:
    """The command in a process group of its own, with everything it ever started."""

    def __init__(self, words: list[Any], temporary: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optimize", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"},
        )
        self.temporary = temporary
        self.started: dict[int, str] = {}
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._lines.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, text: str) -> None:
        """Wait until a line of progress holds ``text``, and note who runs then."""
        until = time.monotonic() + 120
        while not any(text in line for line in list(self._lines)):
            assert self.process.poll() is None, "".join(self._lines)
            assert time.monotonic() < until, "".join(self._lines)
            time.sleep(0.02)

    def note_children(self, least: int) -> None:
        until = time.monotonic() + 60
        while len(self.started) < least:
            assert time.monotonic() < until
            self.started |= {pid: command(pid) for pid in descendants(self.process.pid)}
            time.sleep(0.02)

    def finish(self) -> tuple[int, str, str]:
        assert self.process.stdout is not None
        stdout = self.process.stdout.read()
        code = self.process.wait(60)
        self._reader.join(10)
        return code, stdout, "".join(self._lines)

    def orphans(self) -> dict[int, str]:
        """Who still runs of those that were seen; the kernel gets a moment to deliver signals."""
        until = time.monotonic() + 10
        left = dict(self.started)
        while left and time.monotonic() < until:
            left = {pid: name for pid, name in left.items() if name and command(pid) == name}
            time.sleep(0.05)
        return left


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    running: list[Running] = []

    def begin(*words: Any) -> Running:
        (tmp_path / "tmp").mkdir(exist_ok=True)
        running.append(Running(list(words), tmp_path / "tmp"))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminate"])
def test_while_measuring(
    number: signal.Signals, start: Any, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    running = start(
        digits_onnx, "--data", digits_npz, "--budget", "p99.9=10s", "--chain", "fold,fuse",
        "--chain", "fold,fuse,int8{mode=static}", "--threads", 1, "--max-samples", 10**7,
        "--verbose", "--out", out,
    )  # fmt: skip
    running.wait_for("calls timed")
    running.note_children(3)
    assert sum("worker.py" in name for name in running.started.values()) >= 2
    os.killpg(running.process.pid, number)
    code, stdout, stderr = running.finish()
    assert code == 130
    assert "Interrupted before a verdict on p99.9=10s" in stdout
    assert "Traceback" not in stdout + stderr
    assert running.orphans() == {}
    report = json.loads((out / "report.json").read_text())
    assert report["exit_code"] == 130
    assert report["chosen"] is None
    assert [v["chain"] for v in report["variants"]] == [
        "source", "fold,fuse", "fold,fuse,int8{mode=static}",
    ]  # fmt: skip
    assert report["variants"][0]["accuracy"]["samples"] == 80
    assert any("interrupted" in note for note in report["notes"])
    assert not (out / "model.onnx").exists()
    assert not list(running.temporary.glob("optimize-*"))


def test_while_loading(start: Any, digits_script: Path, digits_npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = start(
        digits_script, "--data", digits_npz, "--budget", "p99=1s", "--threads", 1, "--out", out
    )
    running.wait_for("load and export")
    running.note_children(1)
    os.killpg(running.process.pid, signal.SIGINT)
    code, _, stderr = running.finish()
    assert code == 130
    assert "Traceback" not in stderr
    assert running.orphans() == {}
    report = json.loads((out / "report.json").read_text())
    assert (report["exit_code"], report["variants"]) == (130, [])
    assert not list(running.temporary.glob("optimize-*"))


def test_an_earlier_result_survives_an_interruption(
    start: Any, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    from optimize.models.model import Model
    from optimize.output import write

    out = tmp_path / "out"
    write(out, '{"earlier": true}', {}, Model.read(digits_onnx), {})
    running = start(
        digits_onnx, "--data", digits_npz, "--budget", "p99.9=10s", "--chain", "fold,fuse",
        "--threads", 1, "--max-samples", 10**7, "--verbose", "--out", out,
    )  # fmt: skip
    running.wait_for("calls timed")
    os.killpg(running.process.pid, signal.SIGINT)
    code, stdout, _ = running.finish()
    assert code == 130
    assert json.loads((out / "report.json").read_text()) == {"earlier": True}
    assert (out / "model.onnx").is_file()
    assert "Interrupted" in stdout


def test_killed_outright_it_leaves_no_process(
    start: Any, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    running = start(
        digits_onnx, "--data", digits_npz, "--budget", "p99.9=10s", "--chain", "fold,fuse",
        "--threads", 1, "--max-samples", 10**7, "--verbose", "--out", tmp_path / "out",
    )  # fmt: skip
    running.wait_for("calls timed")
    running.note_children(3)
    running.process.kill()
    running.finish()
    assert running.orphans() == {}
    assert not (tmp_path / "out").exists()
