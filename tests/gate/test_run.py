"""The command as a build runs it, on a small network and its data."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from gate.conftest import Run, Slow

SECRET = "tr0ub4dor-and-3"


@pytest.fixture(scope="module")
def released(
    optimize: Run, digits_onnx: Path, digits_npz: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the result of a release."""
    place = tmp_path_factory.mktemp("released")
    shutil.copy(digits_onnx, place / "net.onnx")
    shutil.copy(digits_npz, place / "data.npz")
    (place / "optimize.toml").write_text(
        '[models.net]\nsource = "net.onnx"\ndata = "data.npz"\nbudget = "p50=100s"\n'
        'threads = 1\nchains = "source"\n'
    )
    done = optimize(place, "check", "--out", "results")
    assert done.returncode == 0, done.stderr
    return place / "results"


def test_what_is_wrong_with_one_model_does_not_hide_the_other(optimize: Run, place: Path) -> None:
    with (place / "optimize.toml").open("a") as file:
        file.write('[models.gone]\nsource = "gone.onnx"\nbudget = "p50=100s"\n')
        file.write('[models.small]\nsource = "net.onnx"\nbudget = "size=1kB"\nout = "small"\n')
        file.write('[targets.far]\ncpu = "no such"\n')
        file.write('[models.far]\nsource = "net.onnx"\nbudget = { far = "p50=100s" }\n')
    summary, home = place / "summary.md", place / "home"
    done = optimize(
        place, "check", "--config", place / "optimize.toml", "--junit", "reports/junit.xml",
        GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary), HOME=str(home),
        API_TOKEN=SECRET,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.strip()}
    assert rows["net"] == "passed"
    assert rows["gone"] == "ERROR"
    assert rows["small"] == "FAILED"
    assert rows["far@far"] == "UNDECIDED"
    assert "\x1b" not in done.stdout + done.stderr
    assert "Stopped: 1 of 4 passed; error: gone; failed: small; undecided: far@far." in done.stdout
    assert "::error file=optimize.toml,line=12,title=gone%3A kept::" in done.stdout
    assert (place / "net.optimized" / "model.onnx").is_file()
    assert (place / "small" / "report.json").is_file()
    root = ElementTree.parse(place / "reports" / "junit.xml").getroot()
    assert [suite.get("name") for suite in root] == ["net", "gone", "small", "far@far"]
    assert root.get("errors") == "1"
    assert "optimize check: Stopped: 1 of 4" in summary.read_text()
    _no_secrets(place, [summary, place / "reports" / "junit.xml"])


def _no_secrets(place: Path, also: list[Path]) -> None:
    """Neither folders of this machine nor the environment's values in what leaves it."""
    files = [
        file
        for folder in (place / "net.optimized", place / "small")
        for file in folder.iterdir()
        if file.suffix in (".json", ".md", ".html", ".py", ".svg")
    ]
    for file in [*files, *also]:
        text = file.read_text(encoding="utf-8")
        for word in (str(place), str(Path.home()), SECRET, os.path.dirname(place)):  # noqa: PTH120
            assert word not in text, f"{file.name} holds {word}"


def test_the_same_model_is_let_by_and_a_slower_one_is_stopped(
    optimize: Run, place: Path, released: Path, slow: Slow
) -> None:
    done = optimize(place, "check", "--against", released, "--quiet")
    assert (done.returncode, done.stdout) == (0, "Passed: 1 of 1.\n"), done.stderr
    # As many layers as take several times as long as the network: no noise hides that.
    slow(place / "net.onnx", place / "slower.onnx", 200)
    shutil.move(place / "slower.onnx", place / "net.onnx")
    done = optimize(place, "check", "--against", released / "net")
    assert done.returncode == 1, done.stdout
    assert "net, p50 against the baseline: " in done.stdout
    assert "shown to be more than 100% slower" in done.stdout
    found = json.loads((place / "net.optimized" / "regression.json").read_text())
    assert found["states"]["p50"] == "slower"
    assert found["accuracy"]["change"] == 0
    assert not found["metric_worse"]


def test_a_less_accurate_model_is_stopped_though_it_meets_its_own_floor(
    optimize: Run, place: Path, released: Path
) -> None:
    model = onnx.load(str(place / "net.onnx"))
    (head,) = [w for w in model.graph.initializer if tuple(w.dims) == (10, 128)]
    weights = numpy_helper.to_array(head).copy()
    weights[:3] = 0  # three of ten digits are not told any more
    head.CopyFrom(numpy_helper.from_array(weights, head.name))
    onnx.save(model, str(place / "net.onnx"))
    # A tolerance that no look could decide.
    done = optimize(place, "check", "--against", released, "--tolerance", "0.001%")
    assert done.returncode == 1, done.stdout
    assert "net, top1 against the baseline: " in done.stdout
    assert "; shown to be worse by more than 0" in done.stdout
    found = json.loads((place / "net.optimized" / "regression.json").read_text())
    assert {ratio["chunks"] for ratio in found["ratios"]} == {12}  # it was looked at once


def test_without_labels_another_source_cannot_be_compared_unless_that_is_said(
    optimize: Run, place: Path
) -> None:
    with np.load(place / "data.npz") as stored:
        np.savez(place / "data.npz", image=stored["image"])
    assert optimize(place, "check", "--out", "old").returncode == 0
    model = onnx.load(str(place / "net.onnx"))
    model.producer_name = "another"
    onnx.save(model, str(place / "net.onnx"))
    words = ("check", "--against", "old")
    done = optimize(place, *words)
    assert done.returncode == 3, done.stdout
    assert "cosine compares with the source, which is another one now" in done.stdout
    assert optimize(place, *words, "--metric-tolerance", "none").returncode == 0


def test_a_model_without_a_baseline_passes_only_if_that_is_allowed(
    optimize: Run, place: Path, released: Path
) -> None:
    text = (place / "optimize.toml").read_text()
    (place / "optimize.toml").write_text(text.replace("[models.net]", "[models.fresh]"))
    words = ("check", "--against", released, "--quiet")
    done = optimize(place, *words)
    assert done.returncode == 2
    done = optimize(place, *words, "--allow-new")
    assert done.returncode == 0, done.stderr


def test_a_baseline_of_another_interface_is_refused(
    optimize: Run, place: Path, released: Path
) -> None:
    model = onnx.load(str(place / "net.onnx"))
    shape = ["n", 1, 1, 10]  # the labels cannot be of it
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, shape))
    model.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]))
    model.graph.node.append(helper.make_node("Unsqueeze", ["logits", "axes"], ["more"]))
    onnx.save(model, str(place / "net.onnx"))
    done = optimize(place, "check", "--against", released)
    assert done.returncode == 2
    assert "net is of another interface: it gives logits: float32[nx10]" in done.stdout
    assert "net@" not in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nett"], "optimize.toml declares no model nett; did you mean net?"),
        (["--target", "prod"], "--target prod is not declared in optimize.toml"),
        (["--against", "nowhere"], "--against nowhere is no folder"),
        (["--config", "no.toml"], "--config no.toml does not exist"),
        (["--budget", "p99=20"], "--budget: budget 'p99=20' has no unit"),
        (["--threads", "0"], "--threads: input should be greater than or equal to 1"),
        (["--tolerance", "x"], "--tolerance: tolerance 'x' is no share above zero"),
        (["--junit", "."], "--junit . cannot be written"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    words: list[str], sentence: str, optimize: Run, place: Path
) -> None:
    done = optimize(place, "check", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("optimize: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "net.optimized").exists()


def test_a_wrong_file_is_a_line_for_every_mistake_and_an_annotation(
    optimize: Run, place: Path
) -> None:
    (place / "optimize.toml").write_text('[models.net]\nsourc = "net.onnx"\nthreads = 0\n')
    done = optimize(place, "check", GITHUB_ACTIONS="true")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "optimize.toml:1", "optimize.toml:2", "optimize.toml:3",
    ]  # fmt: skip
    assert [line.split(",")[1] for line in done.stdout.splitlines()] == [
        "line=1",
        "line=2",
        "line=3",
    ]


def test_help_imports_nothing_heavy() -> None:
    for command in ("check", "init"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "optimize", command, "--help"],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0
        found = set(re.findall(r"\| +(\w+)", done.stderr))
        assert "typer" in found
        assert not found & {"numpy", "onnx", "onnxruntime", "torch", "tomllib"}


def test_a_result_is_not_its_own_baseline(optimize: Run, place: Path, released: Path) -> None:
    shutil.copytree(released / "net", place / "net.optimized")
    done = optimize(place, "check", "--against", "net.optimized")
    assert done.returncode == 2
    assert "is the folder that this run writes" in done.stdout


def test_the_result_of_one_model_is_no_baseline_of_several(
    optimize: Run, place: Path, released: Path
) -> None:
    with (place / "optimize.toml").open("a") as file:
        file.write('[models.twin]\nsource = "net.onnx"\nbudget = "p50=100s"\nout = "twin"\n')
    done = optimize(place, "check", "--against", released / "net", "--allow-new")
    assert done.returncode == 2
    assert done.stdout.count("is the result of one model and several are checked") == 2


def test_two_models_do_not_write_the_same_folder(optimize: Run, place: Path) -> None:
    with (place / "optimize.toml").open("a") as file:
        file.write('[models.twin]\nsource = "net.onnx"\nbudget = "p50=100s"\n')
    done = optimize(place, "check")
    assert done.returncode == 2
    assert "net.optimized; give one of them another out" in done.stderr
