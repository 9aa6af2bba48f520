"""The table on screens of all widths: columns go, figures stay whole."""

from __future__ import annotations

import io

import pytest
from made_reports import many
from rich.console import Console

from optimize.commands.table import fitting

ESSENTIAL = {"variant", "status", "p99 ms", "speed"}


@pytest.mark.parametrize("width", [52, 60, 72, 80, 100, 120, 160, 200])
def test_figures_are_shown_whole_or_not_at_all(width: int) -> None:
    report, screen = many().report, io.StringIO()
    console = Console(file=screen, width=width, color_system=None)
    console.print(fitting(report, report.variants, console))
    text = screen.getvalue()
    assert "…" not in text
    head, *_ = text.splitlines()
    assert all(name in head for name in ESSENTIAL)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    for variant in report.variants:
        assert variant.status in words
        if variant.latency:
            assert f"{variant.latency.p99_ms:.4g}" in words
    assert ("interval" in head) == (width >= 120)
