"""What a caller may ask for, and what is refused before anything is loaded."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimize.budgets.budget import Budget
from optimize.errors import InputError
from optimize.models.model import TensorSpec
from optimize.request import (
    Request,
    parse_chains,
    parse_cpus,
    parse_duration,
    parse_input,
    spec_text,
)

P99 = (Budget.parse("p99=20ms"),)


def ask(**options: Any) -> Request:
    return Request(**{"model": Path("model.onnx"), "budgets": P99, **options})


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("image=1x3x224x224:float32", TensorSpec("image", "float32", (1, 3, 224, 224))),
        ("image=Nx3x?x?:uint8", TensorSpec("image", "uint8", ("N", 3, None, None))),
        ("ids=batchxseq:int64", TensorSpec("ids", "int64", ("batch", "seq"))),
        ("step=scalar:int64", TensorSpec("step", "int64", ())),
        ("flag=1:bool", TensorSpec("flag", "bool", (1,))),
        (" x=4:f4 ", TensorSpec("x", "float32", (4,))),
        ("serving_default_input:0=1x8:float16", None),
        ("a.b/c=2:float64", TensorSpec("a.b/c", "float64", (2,))),
    ],
)
def test_inputs(text: str, spec: TensorSpec | None) -> None:
    expected = spec or TensorSpec("serving_default_input:0", "float16", (1, 8))
    assert parse_input(text) == expected


specs = st.builds(
    TensorSpec,
    st.from_regex(r"[A-Za-z_][\w./:]{0,8}", fullmatch=True).filter(str.isascii),
    st.sampled_from(["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "bool"]),
    st.lists(
        st.one_of(st.integers(1, 4096), st.sampled_from(["N", "batch", "T"]), st.none()), max_size=5
    ).map(tuple),
)


@settings(deadline=None)
@given(specs)
def test_inputs_are_read_as_they_are_written(spec: TensorSpec) -> None:
    assert parse_input(spec_text(spec)) == spec


@settings(deadline=None)
@given(
    st.one_of(st.text(max_size=20), st.from_regex(r"x=[\w?]{1,6}:[a-z]{1,8}\d?", fullmatch=True))
)
@example("x=²:float32")
def test_any_text_is_an_input_or_one_sentence(text: str) -> None:
    try:
        spec = parse_input(text)
    except InputError as error:
        assert text in str(error) or repr(text) in str(error)
        return
    assert spec.name
    assert spec.shape is not None
    assert all(dim is None or dim for dim in spec.shape)  # neither 0 nor an empty symbol


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image", "name=SHAPE:TYPE"),
        ("image=1x3", "name=SHAPE:TYPE"),
        ("image:float32", "name=SHAPE:TYPE"),
        ("=1x3:float32", "name=SHAPE:TYPE"),
        ("image=1,3:float32", "name=SHAPE:TYPE"),
        ("image=-1x3:float32", "name=SHAPE:TYPE"),
        ("image=1x:float32", "image=1x:float32"),
        ("image=x3:float32", "image=x3:float32"),
        ("image=1xx3:float32", "image=1xx3:float32"),
        ("image=0x3:float32", "length 0"),
        ("image=1x3:floaty", "floaty"),
    ],
)
def test_a_bad_input_is_told_an_example(text: str, words: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_input(text)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["object", "void", "datetime64"])
def test_an_element_type_is_one_that_tensors_have(dtype: str) -> None:
    with pytest.raises(InputError, match=dtype):
        parse_input(f"x=1:{dtype}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("10m", 600.0),
        ("1.5h", 5400.0),
        ("500ms", 0.5),
        ("10 m", 600.0),
        (" 2s ", 2.0),
        ("none", None),
        (" none ", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "90",
        "s",
        "-1s",
        "0s",
        "0.0ms",
        "1e3s",
        "nan",
        "inf",
        "infs",
        "5d",
        "1m30s",
        "9" * 400 + "s",
    ],
)
def test_bad_durations(text: str) -> None:
    with pytest.raises(InputError, match="10m"):
        parse_duration(text)


def test_chains_are_taken_once_each() -> None:
    found = parse_chains(["fold", "fold,fuse", " fold ", "fuse{engine=auto}", "fuse"])
    assert found is not None
    assert [str(chain) for chain in found] == ["fold", "fold,fuse", "fuse"]
    assert parse_chains([]) is None


# Values out of range


def test_the_defaults_are_in_range() -> None:
    assert ask().confidence == 0.99
    assert ask(time_limit_s=None).time_limit_s is None


def test_a_budget_is_needed() -> None:
    with pytest.raises(InputError, match="--budget p99=20ms"):
        ask(budgets=())


def test_a_quantity_has_one_budget() -> None:
    twice = tuple(map(Budget.parse, ("p99=20ms", "size=1MB", "p99=30ms")))
    with pytest.raises(InputError, match="p99 is given twice"):
        ask(budgets=twice)
    assert ask(budgets=tuple(map(Budget.parse, ("p99=20ms", "p50=10ms", "size=1MB", "memory=1GB"))))


@pytest.mark.parametrize("confidence", [0.0, 0.5, 1.0, 1.5, -0.99, 99.0, math.nan, math.inf])
def test_a_confidence_lies_between_a_half_and_one(confidence: float) -> None:
    with pytest.raises(InputError, match="confidence"):
        ask(confidence=confidence)


@pytest.mark.parametrize("option", ["threads", "batch", "max_samples"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_at_least_one(option: str, value: int) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} {value}"):
        ask(**{option: value})
    assert getattr(ask(**{option: 1}), option) == 1


@pytest.mark.parametrize("value", [-1, -(2**40)])
def test_a_seed_that_numpy_refuses_is_refused_before(value: int) -> None:
    with pytest.raises(InputError, match="seed"):
        ask(seed=value)


@pytest.mark.parametrize("value", [0.0, -5.0, math.nan])
def test_a_time_limit_is_positive(value: float) -> None:
    with pytest.raises(InputError, match="time"):
        ask(time_limit_s=value)


def test_an_objective_is_one_of_three() -> None:
    with pytest.raises(InputError, match="latency, accuracy, size"):
        ask(objective="speed")


def test_calibration_and_pre_need_data() -> None:
    with pytest.raises(InputError, match="--calibration needs --data"):
        ask(calibration="c.npz")
    with pytest.raises(InputError, match="--pre needs --data"):
        ask(pre="service.py:pre")
    with pytest.raises(InputError, match="one sample at a time"):
        ask(pre="service.py:pre", data="d.npz", batch=2)
    assert ask(pre="service.py:pre", data="d.npz", batch=1, calibration="c.npz")


def test_the_result_lies_beside_the_model_unless_told_otherwise(tmp_path: Path) -> None:
    assert ask(model=tmp_path / "net.onnx").folder == tmp_path.resolve() / "net.optimized"
    (tmp_path / "bert.v2").mkdir()
    folder = ask(model=tmp_path / "bert.v2").folder
    assert folder == tmp_path.resolve() / "bert.v2.optimized"
    assert ask(out=tmp_path / "here").folder == tmp_path / "here"
    assert ask(as_is=True).folder is None
    assert ask(as_is=True, out=tmp_path / "here").folder == tmp_path / "here"


def test_cores_are_read_and_must_be_granted() -> None:
    granted = sorted(os.sched_getaffinity(0))
    assert parse_cpus(f"{granted[0]}") == (granted[0],)
    assert parse_cpus(f"{granted[-1]},{granted[0]}") == tuple(sorted({granted[0], granted[-1]}))
    for text in ("", "a", "0-", "-1", "0;1", f"{granted[-1] + 1}"):
        with pytest.raises(InputError, match="--cpus"):
            parse_cpus(text)
