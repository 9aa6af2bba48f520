"""Every strategy, or some of them, all measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commands.conftest import Run


def test_a_comparison_needs_no_budget(
    optimize: Run, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    words = (digits_onnx, "--data", digits_npz, "--threads", 1)
    out = tmp_path / "out"
    done = optimize("compare", *words, "--chain", "fold,fuse,fp16", "--out", out, "--json")
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["chain"] for row in report["variants"]] == ["source", "fold,fuse,fp16"]
    assert all(row["latency"]["samples"] >= 500 for row in report["variants"])
    again = optimize("verify", out)
    assert again.code == 2
    assert "made without a budget, so that there is nothing to verify" in again.stderr


def test_a_strategy_that_no_chain_has_is_refused(
    optimize: Run, digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    words = (digits_onnx, "--data", digits_npz, "--strategies", "fp32")
    done = optimize("compare", *words, "--out", tmp_path / "out")
    assert done.code == 2
    assert "--strategies fp32: no chain of the plan" in done.stderr
    assert not (tmp_path / "out").exists()


def test_chains_of_ones_own_leave_no_plan_to_choose_from(optimize: Run, digits_onnx: Path) -> None:
    done = optimize("compare", digits_onnx, "--chain", "fold,fp16", "--strategies", "fp16")
    assert done.code == 2
    assert "--strategies chooses from the built-in plan, which --chain replaces" in done.stderr
