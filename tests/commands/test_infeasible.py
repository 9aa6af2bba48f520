"""A budget below every bound: answered before anything is built, unless the user insists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.models.model import Model

if TYPE_CHECKING:
    from commands.conftest import Run

BUDGET = ("--budget", "p99=1us")


def test_an_impossible_budget_is_answered_without_building(
    optimize: Run, shipped_onnx: Model, fashion: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "out", shipped_onnx.path
    done = optimize(model, *BUDGET, "--data", fashion / "val.npz", "--threads", 1, "--out", out)
    assert done.code == 1, done.stderr
    # 7.5 where convolutions were measured faster than products: a busy machine may look like that.
    needs = r"eeds (22\.7|7\.5) MFLOP; this device peaks at "
    assert re.search(rf"p99=1us cannot be met\. N{needs}", done.stdout), done.stdout
    assert "--force goes on" in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["chosen"] is None
    assert re.match(f"n{needs}", report["infeasible"])
    assert report["variants"][0]["chain"] == "source"
    for row in report["variants"]:
        assert (row["status"], row["latency"], row["size_bytes"]) == ("skipped", None, None)
        assert row["bound_ms"] > 1e-3
        assert row["build_s"] == 0
    assert not list(out.glob("model.*"))
    assert "Infeasible" in (out / "report.html").read_text(encoding="utf-8")


def test_who_insists_gets_variants_with_their_bounds(
    optimize: Run, shipped_onnx: Model, fashion: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = optimize(
        shipped_onnx.path, *BUDGET, "--data", fashion / "val.npz", "--threads", 1, "--out", out, "--force",
        "--chain", "fold,fuse,int8{mode=static}", "--max-samples", 100,
    )  # fmt: skip
    assert done.code == 1, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["infeasible"] is None
    assert any("out of reach of this architecture: needs" in note for note in report["notes"])
    source, quantized = report["variants"]
    for row in (source, quantized):
        assert row["status"] == "too_slow"
        assert 1e-3 < row["bound_ms"] <= row["latency"]["p50_ms"]
    assert quantized["bound_ms"] < source["bound_ms"] / 2
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "How near to the device’s bound" in page
    assert "p50 / bound" in page
