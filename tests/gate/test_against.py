"""Which result is a model's baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from optimize.errors import InputError, OptimizeError
from optimize.gate.against import find
from optimize.gate.check import Asked, check
from optimize.observer import Silent

if TYPE_CHECKING:
    from gate.conftest import Declare


def test_a_damaged_baseline_is_not_taken_for_none(tmp_path: Path) -> None:
    assert find(tmp_path, "net", "net", alone=False) is None
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "manifest.json").write_text('{"tool": "tailfit", "files": {"model.o')
    with pytest.raises(InputError, match="net is no result, or a damaged one"):
        find(tmp_path, "net", "net", alone=False)
    (tmp_path / "net" / "manifest.json").write_text('{"tool": "tailfit"}')
    assert find(tmp_path, "net@prod", "net", alone=False) == tmp_path / "net"


def test_a_result_is_the_baseline_of_the_only_model_whatever_its_targets(
    declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OptimizeError("the disk is full")

    monkeypatch.setattr("optimize.gate.check.run", full)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "manifest.json").write_text('{"tool": "tailfit"}')
    one = (
        '[targets.prod]\ncpu = "of nobody"\n'
        '[models.net]\nsource = "a"\nbudget = { any = "size=9MB", prod = "p99=20ms" }\n'
    )
    two = one + '[models.other]\nsource = "b"\nbudget = "p99=1s"\n'
    for text, told in ((one, "the disk is full"), (two, "several are checked")):
        found = check(declare(text), Asked(against=tmp_path / "result"), Silent())
        assert told in found.outcomes[0].findings[0].detail
        assert found.outcomes[0].exit_code == 2  # as optimize itself exits
