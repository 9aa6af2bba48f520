"""Optimize a model under a latency budget and an accuracy floor, and prove the verdict."""

from __future__ import annotations

__version__ = "0.1.0"
