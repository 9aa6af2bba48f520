"""Optimize a model under a latency budget and an accuracy floor, and prove the verdict.

``optimize(...)`` runs the whole pipeline; ``Budget`` and ``Floor`` are what it is judged by;
``Result`` and ``Report`` are what it returns. Importing the package loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimize.api import optimize
    from optimize.budgets.budget import Budget, Floor
    from optimize.errors import InputError, OptimizeError
    from optimize.results.report import Report, Result

__version__ = "0.1.0"
__all__ = ["Budget", "Floor", "InputError", "OptimizeError", "Report", "Result", "optimize"]

_HOMES = {
    "optimize": "optimize.api",
    "Budget": "optimize.budgets.budget",
    "Floor": "optimize.budgets.budget",
    "InputError": "optimize.errors",
    "OptimizeError": "optimize.errors",
    "Report": "optimize.results.report",
    "Result": "optimize.results.report",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``--help`` stays instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'optimize' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
