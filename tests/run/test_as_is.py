"""Models that are judged as they are, and where the answer says what it does of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.budgets.budget import Budget
from optimize.passes.chain import Chain
from optimize.request import Request
from optimize.run.pipeline import run
from optimize.run.verify import Overrides, verify
from optimize.worker import granted_cpus


def test_a_result_is_profiled_and_verified_as_it_was_made(
    digits_onnx: Path, digits_npz: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    out, cpu = tmp_path / "out", granted_cpus()[0]
    made = Request(
        digits_onnx,
        (Budget.parse("p50=100s"),),
        data=str(digits_npz),
        chains=(Chain.parse("source@openvino"),),
        runtimes=("openvino",),
        threads=1,
        cpus=(cpu,),
        out=out,
        reference_only=True,
    )
    first = run(made)
    assert first.report.chosen == "source@openvino"
    assert first.model is not None
    profiled = run(
        Request(first.model, made.budgets, data=made.data, threads=1, as_is=True)
    ).report.variants
    assert [row.runtime for row in profiled] == ["openvino"]
    again = verify(out, Overrides()).report
    assert again.settings.cpus == (cpu,)
    assert again.variants[1].runtime == "openvino"
