"""Where the shipped example lies."""

from pathlib import Path

FASHION = Path(__file__).resolve().parents[1] / "examples" / "fashion"
