"""Options for training are checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimize.budgets.budget import Budget
from optimize.errors import InputError
from optimize.passes.chain import Chain
from optimize.reports.command import command
from optimize.request import Request


def request(**options: Any) -> Request:
    return Request(Path("m.pt"), (Budget.parse("p99=20ms"),), **{"data": "d.npz", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": "hook.py"}, "--distill 'hook.py' is not of the form file.py:function"),
        ({"student": "a:b"}, "--student 'a:b' is not of the form"),
        ({"prune": "2"}, "--prune '2' is neither a share between 0 and 1 nor one of p50"),
        ({"prune": "half"}, "--prune 'half' is neither"),
        ({"prune": "nan"}, "--prune 'nan' is neither"),
        ({"prune": "p95"}, "--prune p95 needs a budget on it, as --budget p95=20ms"),
        ({"prune": "0.5", "data": None}, "--prune needs --data"),
        ({"train": "t.npz", "data": None}, "--train needs --data"),
        (
            {"prune": "0.5", "student": "a.py:b", "chains": (Chain.parse("fold"),)},
            "--student and --prune would add to the built-in plan, which --chain replaces",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        request(**options)
    assert message in str(refused.value)


def test_the_report_repeats_them() -> None:
    asked = request(train="t.npz", prune="p99", distill="t.py:f", student="a.py:s")
    line = command(asked)
    for option in ("--train t.npz", "--prune p99", "--distill t.py:f", "--student a.py:s"):
        assert option in line
