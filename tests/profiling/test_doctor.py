"""What the doctor says of a machine."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from optimize.budgets.profile import Profile
from optimize.commands.console import show_examination
from optimize.profiling import doctor


def test_a_machine_on_which_nothing_was_timed_is_not_called_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "same_twice", lambda *_: (Profile(()), Profile(())))
    found = doctor.examine(1e-4, lambda _: None)
    stream = io.StringIO()
    show_examination(found, Console(file=stream, width=200))
    assert found.advice[0] == "nothing was timed: give it more --seconds"
    assert "% of the blocks" not in stream.getvalue()
    assert "fit to measure on" not in stream.getvalue()
