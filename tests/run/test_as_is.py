"""Models that are judged as they are, and where the answer says what it does of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from optimize.budgets.budget import Budget
from optimize.errors import InputError
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


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": TensorProto.DOUBLE}, r"b\.onnx: .*x is float32, the model takes float64"),
        ({"given": "z"}, r"b\.onnx takes z, .*a\.onnx takes x: they cannot be given the same"),
        ({"made": "q"}, r"b\.onnx gives q, .*a\.onnx gives y: they cannot be compared"),
    ],
)
def test_a_rival_that_does_not_fit_is_named(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    def model(name: str, given: str = "x", made: str = "y", kind: int = TensorProto.FLOAT) -> Path:
        nodes = [helper.make_node("Cast", [given], [made], to=TensorProto.FLOAT)]
        x = helper.make_tensor_value_info(given, kind, ["n", 4])
        y = helper.make_tensor_value_info(made, TensorProto.FLOAT, ["n", 4])
        graph = helper.make_graph(nodes, "g", [x], [y])
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / name)
        return tmp_path / name

    np.savez(tmp_path / "data.npz", x=np.ones((4, 4), np.float32))
    request = Request(
        model("a.onnx"),
        (Budget.parse("p50=100s"),),
        data=str(tmp_path / "data.npz"),
        as_is=True,
        rivals=(model("b.onnx", **changes),),
    )
    with pytest.raises(InputError, match=reason):
        run(request)
