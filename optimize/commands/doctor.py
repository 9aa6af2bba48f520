"""``optimize doctor``: this device, and how sharp a verdict can be here."""

from __future__ import annotations

from typing import Annotated

import typer

from optimize.commands.terminal import say, table_console
from optimize.errors import InputError


def doctor_command(
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 20.0,
) -> None:
    """What this device is, how quiet it is, and how sharp a verdict can be here."""
    from optimize.commands.console import show_examination
    from optimize.profiling.doctor import examine

    if not 0 < seconds < 3600:
        raise InputError(f"--seconds {seconds:g} is not between 0 and 3600")

    examination = examine(seconds, say)
    show_examination(examination, table_console())
