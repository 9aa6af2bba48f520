"""A model with its weights in a side file, from the command to a service in another folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

if TYPE_CHECKING:
    from commands.conftest import Run
    from conftest import GraphMaker


def test_a_moved_model_with_a_side_file(
    optimize: Run, graph: GraphMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = graph.linear(external="weights/w.bin").path.parent
    user = Path(shutil.move(made, tmp_path / "user"))
    x = np.random.default_rng(0).standard_normal((40, 64), np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    session = onnxruntime.InferenceSession(user / "network.onnx")
    want = session.run(None, {"x": x})[0]
    done = optimize(
        "network.onnx", "--data", tmp_path / "data.npz", "--budget", "p50=10s",
        "--floor", "cosine=0.9", "--chain", "fold,int8{mode=weights}",
        "--chain", "int8{mode=dynamic}", "--threads", 1, "--objective", "size",
        "--out", tmp_path / "out", "--cache", tmp_path / "cache", cwd=user,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    # Nothing was left where the user is, where the model lies, or among the temporary files.
    assert {path.name for path in user.iterdir()} == {"network.onnx", "weights"}
    assert done.left == ()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "int8" in report["chosen"]
    shutil.rmtree(user)
    shutil.rmtree(tmp_path / "cache")
    served = Path(shutil.move(tmp_path / "out", tmp_path / "served"))
    (tmp_path / "service").mkdir()
    monkeypatch.chdir(tmp_path / "service")
    got = onnxruntime.InferenceSession(served / "model.onnx").run(None, {"x": x})[0]
    assert np.abs(got - want).max() < 0.05 * np.abs(want).max()
