"""What ends a run is told, and kept, whatever else goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimize.budgets.budget import Budget
from optimize.commands.terminal import finish
from optimize.errors import OptimizeError
from optimize.passes.chain import Chain
from optimize.request import Request
from optimize.results.report import Result
from optimize.run.pipeline import run


def result_of(model: Path, out: Path) -> Result:
    budget, chains = Budget.parse("size=1GB"), (Chain.parse("source"),)
    return run(Request(model, (budget,), chains=chains, out=out))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> None:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr("optimize.judging.screen.Screening.measure", measure)


@pytest.mark.usefixtures("broken")
def test_a_full_disk_does_not_hide_an_internal_error(
    digits_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def write(*_: Any) -> None:
        raise OptimizeError("the disk is full")

    monkeypatch.setattr("optimize.results.output.write", write)
    result = result_of(digits_onnx, tmp_path / "out")
    assert isinstance(result.error, ZeroDivisionError)
    assert (result.exit_code, result.folder) == (70, None)
    assert "the report was not written: the disk is full" in result.report.notes
    with pytest.raises(Exception):  # noqa: B017, PT011  typer's own way to exit
        finish(result, json=False, quiet=True)
    said = capsys.readouterr().err
    file = Path(said.rpartition("; see ")[2].strip())
    assert "a mistake of ours" in said
    assert "ZeroDivisionError" in file.read_text()
    file.unlink()


@pytest.mark.usefixtures("broken")
def test_the_traceback_lies_in_the_result_folder(digits_onnx: Path, tmp_path: Path) -> None:
    result = result_of(digits_onnx, tmp_path / "out")
    assert result.exit_code == 70
    assert "ZeroDivisionError" in (tmp_path / "out" / "error.txt").read_text()
