"""Models as they are, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from commands.conftest import Run


def test_models_side_by_side(
    optimize: Run, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    words: list[Any] = [
        "profile", digits_onnx, digits_onnx, "--data", digits_npz, "--budget", "p99=5s",
        "--budget", "memory=4GB", "--threads", 1, "--cache", tmp_path / "cache", "--json",
    ]  # fmt: skip
    done = optimize(*words)
    assert done.code == 0, done.stderr
    first, second = json.loads(done.stdout)["variants"]
    for row in (first, second):
        # 459 calls without one over the limit are the least that 99% can rest on.
        assert row["status"] != "kept" or row["latency"]["samples"] >= 459
        assert row["latency"]["peak_memory_bytes"] > 10_000_000
    assert first["speedup"] is None
    assert 0.2 < second["speedup"] < 5
    assert second["operators"][0]["share"] > 0
    assert not first["recalled"]
    again = json.loads(optimize(*words).stdout)["variants"]
    assert [row["latency"] for row in again] == [first["latency"], second["latency"]]
    assert all(row["recalled"] for row in again)
    assert first["latency"] != second["latency"]  # each has calls of its own


def test_pre_and_post_count_towards_the_latency(
    optimize: Run, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    (tmp_path / "steps.py").write_text(
        "import time\n"
        "def before(inputs):\n    time.sleep(0.005)\n    return {'image': inputs['image'][None]}\n"
        "def after(outputs):\n    time.sleep(0.002)\n    return outputs['logits'].argmax()\n"
    )
    done = optimize(
        "profile", digits_onnx, "--data", digits_npz, "--budget", "p50=3ms", "--threads", 1,
        "--pre", f"{tmp_path / 'steps.py'}:before", "--post", f"{tmp_path / 'steps.py'}:after",
        "--json",
    )  # fmt: skip
    row = json.loads(done.stdout)["variants"][0]
    parts = row["latency"]["parts"]
    assert parts["pre"]["p50_ms"] >= 5
    assert parts["post"]["p50_ms"] >= 2
    assert row["latency"]["p50_ms"] >= 7
    assert row["status"] == "too_slow", row["reason"]


def test_too_few_calls_leave_it_undecided(
    optimize: Run, digits_onnx: Path, digits_npz: Path
) -> None:
    done = optimize(
        "profile", digits_onnx, "--data", digits_npz, "--budget", "p99.9=5s", "--threads", 1,
        "--max-samples", 50, "--time-limit", "30s", "--json",
    )  # fmt: skip
    (row,) = json.loads(done.stdout)["variants"]
    # p99.9 needs some 5,000 calls: either they were made, or nothing is kept.
    assert (row["status"] == "kept") == (row["latency"]["samples"] >= 4900)
    assert done.code == (0 if row["status"] == "kept" else 3)
