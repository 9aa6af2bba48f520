"""What the command says about itself, at once; and files that are called like its words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from commands.conftest import Run

HEAVY = {"torch", "onnxruntime", "onnx", "onnxscript", "onnx_ir", "numpy", "scipy", "transformers"}


def imported(*words: str) -> set[str]:
    """Top-level modules that a run of the command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "optimize", *words],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^import time:.*\|\s+([\w.]+)$", done.stderr, re.MULTILINE)
    assert "typer" in names
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["profile", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert not imported(*words) & {*HEAVY, "pydantic"}


def test_the_list_of_passes_needs_neither_torch_nor_onnxruntime() -> None:
    assert not imported("passes") & {"torch", "onnxruntime", "onnxscript", "transformers"}


def test_importing_the_package_is_light() -> None:
    code = f"import optimize, sys; print(*({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_names_every_option_and_exit_code(optimize: Run) -> None:
    done = optimize("--help")
    assert done.code == 0
    assert done.stderr == ""
    for word in ("MODEL", "--budget", "--floor", "--data", "--calibration", "--metric", "--chain",
                 "--arch", "--trust-pickle", "--json", "--out", "130 interrupted"):  # fmt: skip
        assert word in " ".join(done.stdout.split())


def test_the_version_is_the_packages(optimize: Run) -> None:
    import optimize as package

    assert optimize("--version").stdout.strip() == f"optimize {package.__version__}"


def test_passes_are_listed_with_options_defaults_and_needs(optimize: Run) -> None:
    lines = optimize("passes").stdout.splitlines()
    heads = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert heads[:12] == (
        "fold fuse session equalize smooth fp16 bf16 shapes int8 student distill prune".split()
    )
    for text in (
        "    calibration=minmax  (minmax|entropy|percentile|mse)",
        "    bits=8  (8|4)",
        "    samples=128  (whole number)",
        "    engine=auto  (auto|onnxruntime|onnxscript|onnxruntime-tools)",
    ):
        assert text in lines
    assert any("needs: mode=static: real data" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["verfy", "net.optimized"], "there is no command 'verfy'; did you mean verify?"),
        (["help"], "there is no command 'help'; try optimize --help"),
        (["cache"], "name one of its commands: ls, size, clear"),
    ],
)
def test_a_mistyped_command_is_told(words: list[str], sentence: str, optimize: Run) -> None:
    done = optimize(*words)
    assert (done.code, done.stderr) == (2, f"optimize: {sentence}\n")


def test_help_has_a_short_name_and_no_hidden_one(optimize: Run) -> None:
    assert optimize("-h").stdout == optimize("--help").stdout
    assert optimize("-h").stdout.startswith("Usage: optimize [OPTIONS] {MODEL}")


@pytest.mark.parametrize("name", ["passes", "profile", "run"])
def test_a_model_that_is_called_like_a_command(
    name: str, optimize: Run, digits_onnx: Path, tmp_path: Path
) -> None:
    shutil.copy(digits_onnx, tmp_path / name)
    done = optimize(
        f"./{name}", "--budget", "size=1kB", "--chain", "source", "--threads", 1, "--json",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["source"]["name"] == name
    assert (tmp_path / f"{name}.optimized" / "report.json").is_file()


def test_a_reader_that_goes_away_is_no_traceback(digits_onnx: Path, tmp_path: Path) -> None:
    words = [digits_onnx, "--budget", "size=1GB", "--chain", "source", "--threads", "1", "--json",
             "--out", tmp_path / "out"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "optimize", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(60) == 0  # by the verdict: the source is kept
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize("words", [("passes",), ("--help",), ("--version",)])
def test_output_that_cannot_be_written_is_no_success(words: tuple[str, ...]) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("there is no /dev/full")
    with full.open("w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "optimize", *words],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "optimize: the output cannot be written: No space left on device\n"


def test_a_file_that_ends_too_early_is_no_interruption() -> None:
    code = (
        "import sys, optimize.cli as cli\n"
        "@cli.app.command('early')\n"
        "def early(): raise EOFError('it ends too early')\n"
        "sys.argv = ['optimize', 'early']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 70
    assert "internal error: " in done.stderr
    assert "it ends too early" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_change_no_exit_code(closed: str) -> None:
    for words, code in (("passes", 0), ("missing.onnx --budget p99=1s", 2)):
        command = f"{sys.executable} -m optimize {words} {closed}"
        assert subprocess.run(["bash", "-c", command], capture_output=True).returncode == code
