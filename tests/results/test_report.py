"""The report as a file: complete, stable, and read back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.budget import Budget, Floor
from optimize.budgets.profile import Block, Profile
from optimize.errors import InputError
from optimize.results.latency import LatencyReport
from optimize.results.report import (
    AccuracyReport,
    BudgetReport,
    DataReport,
    FloorReport,
    OperatorReport,
    Report,
    Result,
    SettingsReport,
    SourceReport,
    VariantReport,
)
from optimize.targets.base import Device

FOUND = Accuracy("top1", 0.89, 0.86, 0.92, 500, 0.90, -0.01, -0.018, -0.002)


def profile(count: int = 1000) -> Profile:
    rng = np.random.default_rng(0)
    blocks = []
    for number in range(count // 50):
        samples = (5e6 * rng.lognormal(0, 0.1, 50)).astype(np.int64)
        disturbance = "noise" if number == 3 else None
        blocks.append(Block(samples, number % 3, number, disturbance))
    return Profile(tuple(blocks), 30_000_000, 9_000_000, 80, True, 123_456_789)


def report() -> Report:
    kept = VariantReport(
        "fold,fuse",
        "onnxruntime",
        "kept",
        "p99 holds: 0 of 1000 calls over 20 ms",
        latency=LatencyReport.of(profile(), 0.99),
        accuracy=AccuracyReport.of(FOUND),
        size_bytes=12_345,
        digest="ab" * 32,
        speedup=1.8,
        speedup_low=1.7,
        speedup_high=1.9,
        operators=(OperatorReport("Conv", 4, 1.25, 0.8), OperatorReport("Gemm", 1, 0.3, 0.2)),
        notes=("4 fewer nodes", "fusions: Conv — “ok”"),
        build_s=1.5,
        profile_s=4.25,
    )
    return Report(
        source=SourceReport("model.onnx", "onnx", "cd" * 32, 99_999, "as it is", "0", ("note",)),
        device=Device("a processor", "x86_64", ("avx2", "fma"), 8, 2, None, "Linux", "3.11"),
        versions={"onnxruntime": "1.2.3"},
        settings=SettingsReport("latency", 0.99, "CPUExecutionProvider", 2, 0, None),
        budgets=tuple(BudgetReport.of(Budget.parse(b)) for b in ("p99=20ms", "size=1MB")),
        floor=FloorReport.of(Floor.parse("drop=1%"), "top1"),
        data=DataReport("data.npz", "ef" * 32, False, 600, 600, 500, 100, None, 1),
        variants=(
            kept,
            VariantReport("int8{mode=dynamic}", "onnxruntime", "failed", "it raised: no"),
        ),
        chosen="fold,fuse",
        exit_code=0,
        nearest_miss=None,
        notes=("synthetic",),
        seconds=12.5,
    )


def strict(text: str) -> Any:
    """Read JSON as other languages do, without Python's NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_report_is_read_back_as_it_was() -> None:
    assert Report.from_json(report().to_json()) == report()
    assert Report.from_json(report().to_json()).to_json() == report().to_json()


def test_a_report_of_nothing_is_read_back_as_it_was() -> None:
    empty = replace(
        report(),
        variants=(),
        chosen=None,
        floor=None,
        exit_code=130,
        nearest_miss="fold: p99 of 12 ms is 1.20x the budget",
        notes=(),
    )
    assert Report.from_json(empty.to_json()) == empty


def test_the_file_has_the_keys_that_readers_rely_on() -> None:
    read = strict(report().to_json())
    assert next(iter(read)) == "schema"
    assert read["schema"] == 1
    assert read.keys() >= {
        "schema", "source", "device", "budgets", "floor", "data", "variants", "chosen", "exit_code",
    }  # fmt: skip
    assert isinstance(read["source"], dict)
    assert isinstance(read["device"], dict)
    assert isinstance(read["data"], dict)
    assert isinstance(read["budgets"], list)
    for variant in read["variants"]:
        assert variant.keys() >= {
            "chain", "runtime", "status", "reason", "latency", "accuracy", "size_bytes",
            "build_s", "profile_s",
        }  # fmt: skip
    measured, failed = read["variants"]
    assert measured["latency"].keys() >= {
        "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_lower_ms", "p99_upper_ms", "samples",
    }  # fmt: skip
    assert measured["accuracy"].keys() >= {
        "metric", "value", "low", "high", "samples", "source_value",
    }  # fmt: skip
    assert failed["latency"] is None
    assert failed["accuracy"] is None
    assert read["chosen"] == "fold,fuse"
    assert read["exit_code"] == 0


def test_budgets_are_told_as_declared_and_as_understood() -> None:
    first, second = strict(report().to_json())["budgets"]
    assert first == {"text": "p99=20ms", "quantity": "p99", "limit": 20_000_000, "unit": "ns"}
    assert second == {"text": "size=1MB", "quantity": "size", "limit": 1_000_000, "unit": "bytes"}


@pytest.mark.parametrize("schema", [0, 2, "1.0", None, "two"])
def test_another_schema_is_refused(schema: object) -> None:
    read = json.loads(report().to_json())
    read["schema"] = schema
    with pytest.raises(InputError, match="schema"):
        Report.from_json(json.dumps(read))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "no JSON",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: '{"schema": 1}',
        lambda text: text.replace('"schema": 1,', ""),
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"kept"', '"fine"'),
        lambda text: text.replace('"p99_ms"', '"p99"'),
        lambda text: text.replace('"samples": 1000', '"samples": "many"'),
    ],
)
def test_a_damaged_text_is_refused_in_one_sentence(damage: Any) -> None:
    text = report().to_json()
    damaged = damage(text)
    assert damaged != text
    with pytest.raises(InputError, match="no report") as raised:
        Report.from_json(damaged)
    assert "\n" not in str(raised.value)


def test_a_wrong_value_is_named_by_its_place() -> None:
    text = report().to_json().replace('"size_bytes": 12345', '"size_bytes": "big"')
    with pytest.raises(InputError, match=r"variants\.0\.size_bytes"):
        Report.from_json(text)


def test_fields_of_later_versions_are_ignored() -> None:
    read = json.loads(report().to_json())
    read["weather"] = "fine"
    read["variants"][0]["colour"] = {"r": 1}
    read["variants"][0]["latency"]["p9999_ms"] = 3.0
    assert Report.from_json(json.dumps(read)) == report()


def test_numpy_numbers_become_plain_ones() -> None:
    odd = replace(
        report(),
        exit_code=np.int64(3),  # type: ignore[arg-type]
        seconds=np.float32(1.5),  # type: ignore[arg-type]
    )
    read = strict(odd.to_json())
    assert (read["exit_code"], read["seconds"]) == (3, 1.5)


def test_rows_are_found_by_their_chain() -> None:
    assert report().variant("fold,fuse").status == "kept"
    with pytest.raises(KeyError):
        report().variant("fold")


def test_a_result_exits_as_its_report_says() -> None:
    assert Result(replace(report(), exit_code=3), None, None).exit_code == 3


# Latency in figures


def test_percentiles_are_of_all_calls_in_milliseconds() -> None:
    found, samples = LatencyReport.of(profile(), 0.99), profile().samples_ns
    for name, share in (
        ("p50_ms", 0.5), ("p90_ms", 0.9), ("p95_ms", 0.95), ("p99_ms", 0.99), ("p999_ms", 0.999),
    ):  # fmt: skip
        expected = np.quantile(samples, share, method="inverted_cdf") / 1e6
        assert getattr(found, name) == pytest.approx(expected)
    assert found.p99_lower_ms is not None
    assert found.p99_upper_ms is not None
    assert found.p99_lower_ms < found.p99_ms < found.p99_upper_ms
    assert (found.samples, found.clean_samples, found.processes) == (1000, 950, 3)
    assert (found.load_ms, found.first_call_ms) == (30.0, 9.0)
    assert (found.warmup_calls, found.steady, found.peak_memory_bytes) == (80, True, 123_456_789)


def test_few_calls_have_no_upper_bound_of_their_p99() -> None:
    found = LatencyReport.of(profile(100), 0.99)
    assert found.p99_upper_ms is None


def test_without_parts_all_is_compute() -> None:
    parts = LatencyReport.of(profile(), 0.99).parts
    assert set(parts) == {
        "pre", "input_transfer", "compute", "output_transfer", "post", "rest",
    }  # fmt: skip
    median = float(np.median(profile().samples_ns)) / 1e6
    assert parts["compute"].p50_ms == pytest.approx(median)
    assert all(part.p99_ms == 0 for name, part in parts.items() if name != "compute")


def test_parts_of_a_call_add_up_to_it() -> None:
    rng = np.random.default_rng(1)
    blocks = []
    for number in range(4):
        parts = {
            name: rng.integers(1_000, 9_000, 25)
            for name in ("pre", "input_transfer", "compute", "output_transfer", "post")
        }
        blocks.append(
            Block(np.sum(list(parts.values()), axis=0) + 500, started_ns=number, parts_ns=parts)
        )
    found = LatencyReport.of(Profile(tuple(blocks)), 0.99).parts
    assert found["rest"].p50_ms == found["rest"].p99_ms == pytest.approx(0.0005)
    for name in ("pre", "compute", "post"):
        values = np.concatenate([block.parts_ns[name] for block in blocks])
        assert found[name].p50_ms == pytest.approx(np.median(values) / 1e6)


def test_an_accuracy_is_taken_over_field_by_field() -> None:
    found = AccuracyReport.of(FOUND)
    assert (found.metric, found.value, found.low, found.high) == ("top1", 0.89, 0.86, 0.92)
    assert (found.samples, found.source_value, found.change) == (500, 0.90, -0.01)
    assert (found.change_low, found.change_high) == (-0.018, -0.002)
