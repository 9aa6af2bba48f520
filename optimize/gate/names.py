"""Names that mean something of their own to ``optimize check``."""

from __future__ import annotations

FILE, PROJECT = "optimize.toml", "pyproject.toml"
TOOL = ("tool", "optimize")
ANY, HERE = "any", "here"  # every device, and (as --target) those whose conditions hold here
