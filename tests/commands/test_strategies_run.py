"""One run over several strategies: the waterfall of each chain, and accuracies taken together."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from optimize import optimize

if TYPE_CHECKING:
    from conftest import Digits

INTEGERS = "fold,equalize,int8{mode=static}"
MIXED = "session{without=MatMulAddFusion},int8{mode=static,keep=1}"
OPENVINO = "bf16@openvino"


@pytest.fixture(scope="module")
def result(digits_onnx: Path, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("strategies")
    np.savez(folder / "val.npz", image=digits.image[:120], labels=digits.labels[:120])
    np.savez(folder / "cal.npz", image=digits.image[200:240])
    # One chain holds what is left to be done before the other, whose steps it shares.
    chains = [INTEGERS, MIXED, *([OPENVINO] if importlib.util.find_spec("openvino") else [])]
    return optimize(
        digits_onnx,
        ["p90=5s", "size=1MB"],
        data=folder / "val.npz",
        calibration=folder / "cal.npz",
        floor="drop=0.1",
        chains=chains,
        runtime="all",
        threads=1,
        max_samples=200,
        out=folder / "out",
    )


def row(result: Any, chain: str) -> Any:
    return next(variant for variant in result.report.variants if variant.chain == chain)


def test_every_pass_of_a_chain_is_a_step(result: Any) -> None:
    assert row(result, "source").steps == ()
    assert [step.step for step in row(result, INTEGERS).steps] == [
        "fold", "equalize", "int8{mode=static}"
    ]  # fmt: skip
    assert [step.step for step in row(result, MIXED).steps] == [
        "session{without=MatMulAddFusion}", "int8{mode=static,keep=1}"
    ]  # fmt: skip


@pytest.mark.parametrize("chain", [INTEGERS, MIXED])
def test_the_last_step_is_the_row_itself(result: Any, chain: str) -> None:
    variant = row(result, chain)
    last = variant.steps[-1]
    assert last.size_bytes == variant.size_bytes
    assert last.accuracy == variant.accuracy.value
    assert last.p50_ms > 0
    assert last.difference not in (None, "equal")


def test_steps_in_between_are_measured_but_never_rows(result: Any) -> None:
    names = {variant.chain for variant in result.report.variants}
    assert "fold,equalize" not in names
    between = row(result, INTEGERS).steps[1]
    assert between.p50_ms is not None
    assert between.size_bytes > row(result, INTEGERS).size_bytes


def test_the_guilty_pass_is_told_by_its_size_and_difference(result: Any) -> None:
    sizes = [step.size_bytes for step in row(result, INTEGERS).steps]
    assert sizes[2] < 0.6 * sizes[1]


def test_accuracies_taken_side_by_side_are_each_models_own(
    result: Any, digits: Digits, digits_onnx: Path
) -> None:
    """Against a plain loop, one model after the other."""

    source = top1(digits_onnx, digits)
    assert row(result, "source").accuracy.value == pytest.approx(source)
    for chain in (INTEGERS, MIXED):
        variant = row(result, chain)
        assert variant.accuracy.source_value == pytest.approx(source)
        assert variant.accuracy.change == pytest.approx(variant.accuracy.value - source)
        if chain == result.report.chosen:
            assert variant.accuracy.value == pytest.approx(top1(result.model, digits))


def top1(path: Path, digits: Digits) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    logits = np.concatenate([session.run(None, {name: i[None]})[0] for i in digits.image[:120]])
    return float(np.mean(logits.argmax(1) == digits.labels[:120]))


def test_session_options_are_in_the_row(result: Any) -> None:
    assert row(result, INTEGERS).config == {}
    assert row(result, MIXED).config == {
        "optimization.disable_specified_optimizers": "MatMulAddFusion;WeightBiasQuantization"
    }


def test_another_runtimes_row_says_so(result: Any) -> None:
    pytest.importorskip("openvino")
    variant = row(result, OPENVINO)
    assert variant.runtime == "openvino"
    assert variant.config == {"INFERENCE_PRECISION_HINT": "bf16"} or variant.status == "skipped"
    if variant.status == "skipped":
        assert "no bfloat16 instructions" in variant.reason
    else:
        assert variant.accuracy.value >= row(result, "source").accuracy.value - 0.05
