"""One run that keeps a variant, one that keeps none, and one without data, on a trained network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from optimize.reports.samples import read

if TYPE_CHECKING:
    from commands.conftest import Done, Run
    from conftest import Digits

STATUSES = {
    "kept", "too_slow", "too_large", "inaccurate", "undecided", "failed", "skipped",
}  # fmt: skip
# Medians decide after few calls, even while other tests run beside this one.
CHAINS = (
    "--chain", "fold,fuse", "--chain", "fold,fuse,int8{mode=static}",
    "--chain", "fold,fuse,int8{mode=weights}", "--threads", 1,
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    done: Done
    out: Path
    report: dict[str, Any]

    def variant(self, chain: str) -> dict[str, Any]:
        found: dict[str, Any] = next(v for v in self.report["variants"] if v["chain"] == chain)
        return found


@pytest.fixture(scope="module")
def kept(
    optimize: Run, digits_script: Path, digits: Digits, tmp_path_factory: pytest.TempPathFactory
) -> Kept:
    folder = tmp_path_factory.mktemp("kept")
    np.savez(folder / "val.npz", image=digits.image[:120], labels=digits.labels[:120])
    np.savez(folder / "cal.npz", image=digits.image[200:240])
    done = optimize(
        digits_script, "--data", folder / "val.npz", "--calibration", folder / "cal.npz",
        "--budget", "p90=2s", "--budget", "size=20kB", "--floor", "drop=0.05", *CHAINS,
        "--out", folder / "out", "--json",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return Kept(done, folder / "out", json.loads(done.stdout))


def top1(path: Path, image: Any, labels: Any) -> float:
    """Accuracy by a loop over plain onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    guesses = [int(session.run(None, {name: one[None]})[0].argmax()) for one in image]
    return float(np.mean(np.array(guesses) == labels))


def test_json_is_all_that_is_printed(kept: Kept) -> None:
    assert kept.done.stdout.strip().startswith("{")
    assert kept.done.stdout.strip().endswith("}")
    assert kept.done.stderr == ""
    assert json.loads((kept.out / "report.json").read_text()) == kept.report


def test_single_timings_lie_beside_the_report(kept: Kept) -> None:
    found = read(kept.out / "samples.npz")
    latencies = {v["chain"]: v["latency"] for v in kept.report["variants"] if v["latency"]}
    assert found.keys() == latencies.keys()
    for chain, latency in latencies.items():
        timings = found[chain]
        assert timings.total == timings.ns.size == latency["samples"]
        assert np.count_nonzero(~timings.disturbed) == latency["clean_samples"]
        assert np.unique(timings.process).size == latency["processes"]
        median = np.quantile(timings.ns, 0.5, method="inverted_cdf") / 1e6
        assert latency["p50_ms"] == pytest.approx(median)


REPORT = {"report.json", "report.md", "samples.npz", "manifest.json"}
PICTURES = ("accuracy-latency", "latency-distribution")


def written(folder: Path) -> set[str]:
    """What a run leaves, without what it draws where the extra for that is installed."""
    drawn = {"report.html", *(f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg"))}
    return {path.name for path in folder.iterdir()} - drawn


def test_the_folder_holds_model_report_and_manifest(kept: Kept) -> None:
    assert written(kept.out) == REPORT | {"model.onnx", "serve.py"}
    manifest = json.loads((kept.out / "manifest.json").read_text())
    digest = hashlib.sha256((kept.out / "model.onnx").read_bytes()).hexdigest()
    assert manifest["files"]["model.onnx"] == digest
    assert manifest["model_digest"] == digest == kept.variant(kept.report["chosen"])["digest"]
    assert manifest["chain"] == kept.report["chosen"]
    assert manifest["device"]["cores"] == os.cpu_count()


def test_no_temporary_files_are_left(kept: Kept) -> None:
    assert kept.done.left == ()


def test_the_source_is_the_first_of_the_planned_variants(kept: Kept) -> None:
    assert [v["chain"] for v in kept.report["variants"]] == [
        "source", "fold,fuse", "fold,fuse,int8{mode=static}", "fold,fuse,int8{mode=weights}",
    ]  # fmt: skip
    assert {v["status"] for v in kept.report["variants"]} <= STATUSES
    assert all(v["reason"] for v in kept.report["variants"])


def test_the_source_is_as_accurate_as_torch_says(
    kept: Kept, digits: Digits, digits_logits: Any
) -> None:
    accuracy = kept.variant("source")["accuracy"]
    want = float(np.mean(digits_logits[:120].argmax(1) == digits.labels[:120]))
    assert (accuracy["metric"], accuracy["samples"]) == ("top1", 120)
    assert accuracy["value"] == accuracy["source_value"] == pytest.approx(want)
    assert accuracy["change"] == 0
    assert accuracy["low"] <= want <= accuracy["high"]


def test_the_artefact_is_as_accurate_as_reported(kept: Kept, digits: Digits) -> None:
    accuracy = kept.variant(kept.report["chosen"])["accuracy"]
    want = top1(kept.out / "model.onnx", digits.image[:120], digits.labels[:120])
    assert accuracy["value"] == pytest.approx(want)
    assert accuracy["change"] == pytest.approx(accuracy["value"] - accuracy["source_value"])
    assert accuracy["change"] >= -0.05


def test_the_artefact_takes_any_batch(kept: Kept, digits: Digits) -> None:
    session = onnxruntime.InferenceSession(str(kept.out / "model.onnx"))
    for batch in (1, 7):
        got = session.run(None, {"image": digits.image[:batch]})[0]
        assert got.shape == (batch, 10)


def test_what_is_kept_meets_every_budget(kept: Kept) -> None:
    chosen = kept.variant(kept.report["chosen"])
    assert chosen["status"] == "kept"
    assert chosen["size_bytes"] == (kept.out / "model.onnx").stat().st_size <= 20_000
    assert chosen["latency"]["p90_ms"] <= 2000
    assert chosen["latency"]["processes"] >= 3


def undisturbed_calls(folder: Path, chain: str) -> int:
    """Those that lie in ``samples.npz``, which holds all calls of so short a run."""
    with np.load(folder / "samples.npz") as stored:
        clean = stored["disturbance"] == ""
        own = stored["variant"] == stored["chains"].tolist().index(chain)
        return int(stored["size"][clean & own].sum())


def test_the_load_that_it_bears_is_told(kept: Kept) -> None:
    load = kept.report["load"]
    calls = read(kept.out / "samples.npz")[kept.report["chosen"]].ns
    assert load["budget"] == "p90=2s"
    # If 2 s are allowed, only what is left free for bad times counts.
    assert load["calls_per_s"] == pytest.approx(0.8e9 / calls.mean(), rel=0.01)
    assert load["busy"] == pytest.approx(0.8, rel=0.01)
    assert "are answered within p90=2s by one process" in (kept.out / "report.md").read_text()


def test_latencies_are_in_order(kept: Kept) -> None:
    for variant in kept.report["variants"]:
        if (latency := variant["latency"]) is not None:
            quantiles = [latency[f"{p}_ms"] for p in ("p50", "p90", "p95", "p99", "p999")]
            assert quantiles == sorted(quantiles)
            assert quantiles[0] > 0
            assert latency["clean_samples"] == undisturbed_calls(kept.out, variant["chain"])


def test_what_does_not_apply_is_skipped_with_its_reason(kept: Kept) -> None:
    weights = kept.variant("fold,fuse,int8{mode=weights}")
    assert weights["status"] == "skipped"
    assert "no MatMul" in weights["reason"]
    assert weights["latency"] is None


def test_the_quantized_variant_says_how(kept: Kept) -> None:
    static = kept.variant("fold,fuse,int8{mode=static}")
    assert any("calibrated on 40 samples" in note for note in static["notes"])
    assert static["size_bytes"] < kept.variant("source")["size_bytes"]


def test_the_report_tells_data_and_source(kept: Kept, digits_script: Path) -> None:
    data, source = kept.report["data"], kept.report["source"]
    assert (data["origin"], data["calibration_origin"]) == ("val.npz", "cal.npz")
    assert (data["evaluation_samples"], data["calibration_samples"]) == (120, 40)
    assert not data["synthetic"]
    assert (source["name"], source["kind"]) == ("digits.pt", "torchscript")
    assert source["digest"] == hashlib.sha256(digits_script.read_bytes()).hexdigest()
    budgets = [(b["text"], b["limit"]) for b in kept.report["budgets"]]
    assert budgets == [("p90=2s", 2 * 10**9), ("size=20kB", 20_000)]


def test_no_path_of_this_run_is_in_the_report(kept: Kept) -> None:
    assert "optimize-" not in kept.done.stdout


def test_verify_judges_the_folder_again(kept: Kept, optimize: Run, cache: Path) -> None:
    seen, entries = [], []
    for _ in range(2):
        done = optimize("verify", kept.out, "--json", "--cache", cache)
        assert done.code == 0, done.stderr
        rows = json.loads(done.stdout)["variants"]
        assert [row["chain"] for row in rows] == ["source", kept.report["chosen"]]
        assert not any(row["recalled"] for row in rows)
        seen.append([row["latency"]["p50_ms"] for row in rows])
        entries.append(optimize("cache", "ls", "--cache", cache).stdout)
    assert seen[0] != seen[1]  # each has measured
    assert entries[0].count("export of") == entries[1].count("export of") == 1
    assert "timings" not in entries[1]


def test_verify_refuses_a_changed_folder(kept: Kept, optimize: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(kept.out, copy)
    with (copy / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    done = optimize("verify", copy)
    assert done.code == 2
    assert "damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def refused(
    optimize: Run, kept: Kept, digits_onnx: Path, digits_npz: Path
) -> tuple[Done, dict[str, Any], Path]:
    """A run that cannot meet its budgets, over a copy of the earlier result."""
    out = kept.out.with_name("copy")
    shutil.copytree(kept.out, out)
    done = optimize(
        digits_onnx, "--data", digits_npz, "--budget", "p99=1us", "--chain", "fold,fuse",
        "--threads", 1, "--force", "--out", out,
    )  # fmt: skip
    return done, json.loads((out / "report.json").read_text()), out


def test_no_variant_within_a_microsecond_exits_1(refused: Any) -> None:
    done, report, _ = refused
    assert done.code == report["exit_code"] == 1
    assert report["chosen"] is None
    assert {variant["status"] for variant in report["variants"]} == {"too_slow"}


def test_the_nearest_miss_is_told_with_its_gap(refused: Any) -> None:
    done, report, _ = refused
    answer = done.stdout.splitlines()[-1]
    assert answer.startswith("None kept: no variant meets p99=1us")
    assert f"Nearest miss: {report['nearest_miss']}" in answer
    best = min(report["variants"], key=lambda variant: variant["latency"]["p99_ms"])
    assert report["nearest_miss"].startswith(f"{best['chain']}: p99 of ")
    factor = re.search(r"is ([\d.]+)x the budget", report["nearest_miss"])
    assert factor is not None
    assert float(factor[1]) == pytest.approx(best["latency"]["p99_ms"] * 1000, rel=0.01)


def test_a_rejection_replaces_an_earlier_model(refused: Any) -> None:
    _, _, out = refused
    assert written(out) == REPORT


@pytest.fixture(scope="module")
def synthetic(
    optimize: Run, digits_onnx: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Done, dict[str, Any]]:
    """Without data, and too large for its budget."""
    out = tmp_path_factory.mktemp("synthetic") / "out"
    done = optimize(
        digits_onnx, "--budget", "p50=2s", "--budget", "size=1kB", "--chain", "fold,fuse",
        "--chain", "int8{mode=static}", "--threads", 1, "--out", out,
    )  # fmt: skip
    return done, json.loads((out / "report.json").read_text())


def test_made_up_inputs_are_said_to_be(synthetic: Any) -> None:
    done, report = synthetic
    assert "no data was given" in done.stdout
    assert report["data"]["synthetic"]
    assert any("synthetic" in note for note in report["notes"])
    static = next(v for v in report["variants"] if "static" in v["chain"])
    assert static["status"] == "skipped"
    assert "--data" in static["reason"]


def test_a_model_above_its_size_is_too_large(synthetic: Any) -> None:
    done, report = synthetic
    assert done.code == 1
    assert report["variants"][0]["status"] == "too_large"
    assert "size" in report["nearest_miss"]


def test_the_table_shows_every_variant(synthetic: Any) -> None:
    done, report = synthetic
    lines = done.stdout.splitlines()
    for variant in report["variants"]:
        assert any(
            line.strip().startswith(variant["chain"]) and variant["status"] in line
            for line in lines
        )
