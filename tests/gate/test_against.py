"""Which result is a model's baseline."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimize.errors import InputError
from optimize.gate.against import find


def test_a_damaged_baseline_is_not_taken_for_none(tmp_path: Path) -> None:
    assert find(tmp_path, "net", "net", alone=False) is None
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "manifest.json").write_text('{"tool": "tailfit", "files": {"model.o')
    with pytest.raises(InputError, match="net is no result, or a damaged one"):
        find(tmp_path, "net", "net", alone=False)
    (tmp_path / "net" / "manifest.json").write_text('{"tool": "tailfit"}')
    assert find(tmp_path, "net@prod", "net", alone=False) == tmp_path / "net"
