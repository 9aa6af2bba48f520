"""From Python it is one call with the command's options, result and errors."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import optimize as package
from optimize import Budget, Floor, InputError, Report, Result, optimize


@pytest.fixture(scope="module")
def result(digits_onnx: Path, digits_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return optimize(
        digits_onnx,
        [Budget.parse("p90=2s"), "size=1MB"],
        floor=Floor.parse("drop=0.1"),
        data=digits_npz,
        chains=["fold,fuse", "fold,fuse,int8{mode=static}"],
        threads=1,
        out=tmp_path_factory.mktemp("api") / "out",
    )


def test_it_returns_what_the_report_holds(result: Result) -> None:
    text = (result.folder / "report.json").read_text()  # type: ignore[operator]
    assert Report.from_json(text) == result.report
    assert json.loads(text) == json.loads(result.report.to_json())
    assert json.loads(text)["variants"] == json.loads(
        json.dumps([asdict(v) for v in result.report.variants])
    )


def test_the_model_is_where_it_says(result: Result, digits_npz: Path) -> None:
    assert result.exit_code == 0
    assert result.error is None
    assert result.model == result.folder / "model.onnx"  # type: ignore[operator]
    session = onnxruntime.InferenceSession(str(result.model))
    with np.load(digits_npz) as data:
        assert session.run(None, {"image": data["image"][:3]})[0].shape == (3, 10)


def test_the_chosen_variant_is_kept(result: Result) -> None:
    assert result.report.chosen is not None
    chosen = result.report.variant(result.report.chosen)
    assert chosen.status == "kept"
    assert chosen.accuracy is not None
    assert chosen.accuracy.samples == 80
    with pytest.raises(KeyError):
        result.report.variant("prune")


def test_a_result_without_a_model_is_no_exception(digits_onnx: Path, tmp_path: Path) -> None:
    result = optimize(
        str(digits_onnx), "size=1kB", chains=["source"], threads=1, out=str(tmp_path / "out")
    )
    assert (result.exit_code, result.model, result.report.chosen) == (1, None, None)
    assert result.report.nearest_miss is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": "p99=20"}, "has no unit"),
        ({"budget": []}, "no budget is given"),
        ({"budget": "size=1kB", "chains": ["fuze"]}, "did you mean fuse"),
        ({"budget": "size=1kB", "data": "none.npz"}, "does not exist"),
        ({"budget": "size=1kB", "floor": "drop=x"}, "not a number"),
        ({"budget": "size=1kB", "batch": 0}, "batch"),
        ({"budget": "size=1kB", "inputs": ["image=1x1"]}, "NAME=SHAPE|name=SHAPE"),
        ({"budget": None}, r"budget=None is none of str \| Budget"),
        ({"budget": "size=1kB", "floor": 0.9}, r"floor=0\.9 is none of str \| Floor"),
        ({"budget": "size=1kB", "metric": len}, "metric=.* is none of str"),
        ({"budget": "size=1kB", "runtime": ["onnxruntime"]}, "runtime=.* is none of str"),
        ({"budget": "size=1kB", "threads": 9999}, "threads 9999 is more than"),
    ],
)
def test_bad_input_raises_one_sentence(
    changes: dict[str, Any], reason: str, digits_onnx: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        optimize(digits_onnx, **({"out": tmp_path / "out"} | changes))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((3, "size=1kB"), "model=3 is none of"),
        (("m.onnx", ["size=1kB", 7]), "budget=.* is none of"),
    ],
)
def test_arguments_by_position_are_named(given: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        optimize(*given)


def test_arguments_that_there_are_not_are_pythons_own_error(digits_onnx: Path) -> None:
    with pytest.raises(TypeError, match="thread"):
        optimize(digits_onnx, "size=1kB", thread=1)  # type: ignore[call-arg]


def test_every_option_of_the_command_is_an_argument() -> None:
    from optimize.commands.run import run_command

    words = set(inspect.signature(run_command).parameters) - {"json", "quiet", "verbose"}
    renamed = {"chain": "chains", "input": "inputs", "time_limit": "time_limit_s"}
    arguments = set(inspect.signature(optimize).parameters)
    assert {renamed.get(word, word) for word in words} <= arguments


def test_the_public_names_are_these() -> None:
    assert {name for name in package.__all__ if getattr(package, name)} == {
        "Budget", "Floor", "InputError", "OptimizeError", "Report", "Result", "optimize",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        package.prune  # noqa: B018
