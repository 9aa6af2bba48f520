"""Benchmarks that no test runs rot: each can be imported, and the shortest one is run."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# Those of peers and of training bring their own environments.
NAMES = sorted(p.stem for p in BENCHMARKS.glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_imported(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_the_timed_call_is_compared_with_a_bare_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.overhead import compare

    compare(tmp_path / "one", 4, "one node", 1)
    assert "timed call p50" in capsys.readouterr().out
