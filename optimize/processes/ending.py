"""How a process has ended, in words."""

from __future__ import annotations

import signal


def ending(code: int) -> str:
    """Say it of a return code, which is a signal's number below zero."""
    if code >= 0:
        return f"exited with code {code}"
    name = signal.Signals(-code).name
    why = ", perhaps for lack of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"
