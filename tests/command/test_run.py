"""Whole runs: what is kept, what is written, how it exits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from shipped import FASHION, Command

CHAINS = ("--chain", "fold,fuse,int8{mode=static}", "--chain", "fold,fuse,fp16")


@pytest.fixture(scope="module")
def kept(
    optimize: Command, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    """A run that keeps two variants and rejects the source for its size."""
    out = tmp_path_factory.mktemp("kept") / "result"
    done = optimize(
        FASHION / "resnet.safetensors", "--arch", f"{FASHION / 'arch.py'}:resnet",
        "--data", data / "val.npz", "--calibration", data / "cal.npz",
        "--budget", "p99=5s", "--budget", "size=400kB", "--threads", 1, *CHAINS,
        "--out", out, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout), done.stdout


def accuracy(path: Path, data: Path) -> float:
    """Top-1 by a plain loop over onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    with np.load(data / "val.npz") as stored:
        image, labels = stored["image"], stored["labels"]
    guesses = [session.run(None, {name: image[i : i + 1]})[0].argmax() for i in range(len(image))]
    return float(np.mean(np.array(guesses) == labels))


def test_json_on_stdout_is_the_report_and_nothing_else(kept: Any) -> None:
    out, report, text = kept
    assert json.loads((out / "report.json").read_text()) == report
    assert text.startswith("{")


def test_the_report_has_the_promised_fields(kept: Any) -> None:
    _, report, _ = kept
    top = {"schema", "source", "device", "budgets", "floor", "data", "variants", "chosen"}
    assert top | {"exit_code"} <= report.keys()
    variant = next(v for v in report["variants"] if v["chain"] == report["chosen"])
    assert {"p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_lower_ms", "p99_upper_ms", "samples"} <= (
        variant["latency"].keys()
    )
    assert {"metric", "value", "low", "high", "samples", "source_value"} <= (
        variant["accuracy"].keys()
    )
    assert {"runtime", "status", "reason", "size_bytes", "build_s", "profile_s"} <= variant.keys()
    assert report["schema"] == 1


def test_the_source_comes_first_and_is_too_large(kept: Any) -> None:
    _, report, _ = kept
    source = report["variants"][0]
    assert source["chain"] == "source"
    assert source["status"] == "too_large"
    assert "400kB" in source["reason"]


def test_the_artefact_is_as_accurate_as_reported(kept: Any, data: Path) -> None:
    out, report, _ = kept
    chosen = next(v for v in report["variants"] if v["chain"] == report["chosen"])
    assert chosen["accuracy"]["value"] == pytest.approx(accuracy(out / "model.onnx", data))
    assert chosen["accuracy"]["samples"] == 400
    assert chosen["size_bytes"] == (out / "model.onnx").stat().st_size <= 400_000


def test_a_kept_verdict_rests_on_enough_calls(kept: Any) -> None:
    _, report, _ = kept
    for variant in report["variants"]:
        if variant["status"] == "kept":
            # 497 calls without one over the limit are the least that 99% can rest on.
            assert variant["latency"]["samples"] >= 497
            assert variant["latency"]["p99_upper_ms"] <= 5000
    chosen = next(v for v in report["variants"] if v["chain"] == report["chosen"])
    assert chosen["latency"]["processes"] == 3


def test_the_manifest_holds_digests_of_what_lies_there(kept: Any) -> None:
    import hashlib

    out, _, _ = kept
    manifest = json.loads((out / "manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert manifest["device"]["cores"] == os.cpu_count()


def test_no_temporary_path_is_in_the_report(kept: Any) -> None:
    _, _, text = kept
    assert "optimize-" not in text.replace("optimize-error", "")


def test_verify_judges_the_folder_again(kept: Any, optimize: Command, cache: Path) -> None:
    out, report, _ = kept
    seen, entries = [], []
    for _ in range(2):
        done = optimize("verify", out, "--json", "--cache", cache)
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["variants"]
        assert [row["chain"] for row in rows] == ["source", report["chosen"]]
        assert not any(row["recalled"] for row in rows)
        seen.append([row["latency"]["p50_ms"] for row in rows])
        entries.append(optimize("cache", "ls", "--cache", cache).stdout)
    assert seen[0] != seen[1]  # each has measured
    assert entries[0].count("export of") == entries[1].count("export of") == 1
    assert "timings" not in entries[1]


def test_verify_refuses_a_changed_folder(kept: Any, optimize: Command, tmp_path: Path) -> None:
    out, _, _ = kept
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    with (copy / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    done = optimize("verify", copy)
    assert done.returncode == 2
    assert "damaged" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_python_gives_what_the_command_gives(kept: Any, data: Path, tmp_path: Path) -> None:
    from optimize import Budget, optimize

    _, report, _ = kept
    result = optimize(
        FASHION / "resnet.safetensors",
        [Budget.parse("p99=5s"), "size=400kB"],
        arch=f"{FASHION / 'arch.py'}:resnet",
        data=data / "val.npz",
        calibration=data / "cal.npz",
        chains=["fold,fuse,int8{mode=static}", "fold,fuse,fp16"],
        threads=1,
        out=tmp_path / "out",
    )
    assert result.exit_code == 0
    assert json.loads(result.report.to_json()).keys() == report.keys()
    mine = {v.chain: (v.status, v.digest) for v in result.report.variants}
    assert mine == {v["chain"]: (v["status"], v["digest"]) for v in report["variants"]}


def test_an_impossible_budget_exits_1_with_the_nearest_miss(
    optimize: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    done = optimize(
        model, "--data", data / "val.npz", "--budget", "p99=1us", "--chain", "fold,fuse,fp16",
        "--threads", 1, "--force", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Nearest miss" in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["chosen"] is None
    assert {v["status"] for v in report["variants"]} == {"too_slow"}
    assert not (tmp_path / "out" / "model.onnx").exists()


def test_too_few_calls_leave_it_undecided(
    optimize: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    done = optimize(
        model, "--data", data / "val.npz", "--budget", "p99.9=5s", "--chain", "source",
        "--threads", 1, "--max-samples", 50, "--time-limit", "30s", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    source = report["variants"][0]
    # p99.9 needs some 5,000 calls: either they were made, or nothing is kept.
    assert (source["status"] == "kept") == (source["latency"]["samples"] >= 4900)


def test_without_data_it_says_that_inputs_were_made_up(
    optimize: Command, model: Path, tmp_path: Path
) -> None:
    done = optimize(
        model, "--budget", "p99=5s", "--chain", "fold,fuse,fp16",
        "--chain", "int8{mode=static}", "--threads", 1, "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "synthetic inputs" in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    static = report["variants"][2]
    assert static["status"] == "skipped"
    assert "--data" in static["reason"]
    assert report["floor"]["text"] == "cosine=0.99"


def test_profile_sets_models_side_by_side(
    optimize: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    words: list[Any] = [
        "profile", model, model, "--data", data / "val.npz", "--budget", "p99=5s",
        "--budget", "memory=4GB", "--threads", 1, "--cache", tmp_path / "cache", "--json",
    ]  # fmt: skip
    done = optimize(*words)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["variants"]
    assert first["speedup"] is None
    assert 0.3 < second["speedup"] < 3
    assert second["operators"][0]["share"] > 0
    assert second["latency"]["peak_memory_bytes"] > 10_000_000
    assert not first["recalled"]
    again = json.loads(optimize(*words).stdout)["variants"]
    assert [row["latency"] for row in again] == [first["latency"], second["latency"]]
    assert all(row["recalled"] for row in again)
    assert first["latency"] != second["latency"]  # each has calls of its own


def test_pre_and_post_count_towards_the_latency(
    optimize: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "steps.py").write_text(
        "import time\n"
        "def before(inputs):\n    time.sleep(0.005)\n    return {'image': inputs['image'][None]}\n"
        "def after(outputs):\n    time.sleep(0.002)\n    return outputs['logits'].argmax()\n"
    )
    done = optimize(
        "profile", model, "--data", data / "val.npz", "--budget", "p50=3ms", "--threads", 1,
        "--pre", f"{tmp_path / 'steps.py'}:before", "--post", f"{tmp_path / 'steps.py'}:after",
        "--json",
    )  # fmt: skip
    row = json.loads(done.stdout)["variants"][0]
    parts = row["latency"]["parts"]
    assert parts["pre"]["p50_ms"] >= 5
    assert parts["post"]["p50_ms"] >= 2
    assert row["latency"]["p50_ms"] >= 7
    assert row["status"] == "too_slow", row["reason"]


def test_ctrl_c_reports_what_is_finished_and_leaves_no_process(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [model, "--data", data / "val.npz", "--budget", "p99.9=5s", "--max-samples", 10**6,
             "--chain", "fold,fuse,fp16", "--verbose", "--out", out]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "optimize", *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # However the tests themselves were started: in the background, Ctrl-C may be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "calls timed" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in stdout
    assert json.loads((out / "report.json").read_text())["exit_code"] == 130
    assert not (out / "model.onnx").exists()
    assert not _children_of(process.pid)


def _children_of(pid: int) -> list[int]:
    """Processes that still name the run's parent, or were left to init with our worker's name."""
    time.sleep(0.2)  # the kernel delivers the death signal on its own
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[1]) == pid:
                found.append(int(entry.name))
    return found


def test_help_is_light(optimize: Command) -> None:
    script = (
        "import sys\nfrom optimize.cli import main\nsys.argv = ['optimize', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'scipy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--budget" in done.stdout


def test_passes_lists_options_and_defaults(optimize: Command) -> None:
    done = optimize("passes")
    assert done.returncode == 0
    for word in ("fold", "fuse", "fp16", "int8", "mode=dynamic", "minmax|entropy|percentile|mse"):
        assert word in done.stdout


def test_a_file_named_like_a_command_is_reached_by_its_path(
    optimize: Command, tmp_path: Path
) -> None:
    (tmp_path / "passes").write_bytes(b"no model")
    done = optimize("./passes", "--budget", "p99=1s", cwd=tmp_path)
    assert done.returncode == 2
    assert "is no model" in done.stderr


def test_a_comparison_needs_no_budget(optimize: Command, data: Path, tmp_path: Path) -> None:
    words = (FASHION / "resnet.safetensors", "--arch", f"{FASHION / 'arch.py'}:resnet")
    given = ("--data", data / "val.npz", "--threads", 1)
    out = tmp_path / "out"
    done = optimize("compare", *words, *given, "--strategies", "fp16", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["chain"] for row in report["variants"]] == ["source", "fold,fuse,fp16"]
    assert all(row["latency"]["samples"] >= 500 for row in report["variants"])
    again = optimize("verify", out)
    assert again.returncode == 2
    assert "made without a budget, so that there is nothing to verify" in again.stderr


def test_a_strategy_that_no_chain_has_is_refused(
    optimize: Command, data: Path, tmp_path: Path
) -> None:
    words = (FASHION / "resnet.safetensors", "--arch", f"{FASHION / 'arch.py'}:resnet")
    given = ("--data", data / "val.npz", "--strategies", "fp32")
    done = optimize("compare", *words, *given, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "--strategies fp32: no chain of the plan" in done.stderr
    assert not (tmp_path / "out").exists()
