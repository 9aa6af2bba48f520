"""Ctrl-C and a request to end: what is finished is reported, and no process stays behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from commands.conftest import Run

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


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
    start: Any, optimize: Run, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    from optimize.models.model import Model
    from optimize.results.output import write

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
    beside = tmp_path / "out.interrupted"
    assert json.loads((beside / "report.json").read_text())["exit_code"] == 130
    done = optimize(digits_onnx, "--budget", "size=1GB", "--chain", "source", "--out", out)
    assert done.code == 0
    assert not beside.exists()


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
