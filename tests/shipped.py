"""Where the shipped example lies, and how tests run the command."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
Command = Callable[..., "subprocess.CompletedProcess[str]"]
