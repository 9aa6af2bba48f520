"""Budgets and floors: the text a user declares and the value it stands for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from optimize.errors import InputError

Quantity = Literal["p50", "p90", "p95", "p99", "p99.9", "size", "memory"]

PERCENTILES: dict[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
TIME_UNITS: dict[str, int] = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
SIZE_UNITS: dict[str, int] = {"kB": 10**3, "MB": 10**6, "GB": 10**9}

_MOST = Decimal(10) ** 15

_BUDGET = re.compile(r"\s*([A-Za-z][\w.]*)\s*<?=\s*([^\s\d.]*[\d.]+(?:[eE][-+]?\d+)?)\s*(\S*)\s*")
_SHARES = ("top1", "top5", "f1", "cosine")
_FLOOR = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*([^\s%]+)\s*(%?)\s*")


@dataclass(frozen=True)
class Budget:
    """An upper limit that every kept variant must meet.

    Attributes:
        quantity: a latency percentile, the size of the artefact, or the peak memory of the
            process that serves it.
        limit: nanoseconds for a percentile, else bytes; at least 1.
    """

    quantity: Quantity
    limit: int

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``p99=20ms``, ``p99.9<=1.5s``, ``size=25MB``.

        Raises:
            InputError: the text is no budget; the message shows what would be.
        """
        match = _BUDGET.fullmatch(text)
        if match is None:
            raise InputError(
                f"budget {text!r} is not of the form NAME=NUMBER UNIT; "
                "write for example p99=20ms or size=25MB"
            )
        name, number, unit = match.groups()
        units = _units(name, text)
        if unit not in units:
            given = f"has no unit {unit!r}" if unit else "has no unit"
            raise InputError(
                f"budget {text!r} {given}; write one of {_join(units)} after the number"
            )
        limit = int(_positive(number, f"budget {text!r}") * units[unit])
        if limit < 1:
            least = "1 ns" if units is TIME_UNITS else "1 byte"
            raise InputError(f"budget {text!r} is below the smallest limit, {least}")
        return cls(name, limit)  # type: ignore[arg-type]  # _units has checked the name

    @property
    def tail(self) -> float | None:
        """The share of calls that may exceed the limit (0.01 for p99); None for bytes."""
        share = PERCENTILES.get(self.quantity)
        return None if share is None else round(1 - share, 6)

    def amount(self, value: float, digits: int = 4) -> str:
        """Show ``value`` (ns or bytes, as the limit) in a readable unit."""
        return format_bytes(value, digits) if self.tail is None else format_ns(value)

    def __str__(self) -> str:
        units = SIZE_UNITS if self.tail is None else TIME_UNITS
        # The largest unit that is not above the limit keeps the text short.
        for unit, scale in sorted(units.items(), key=lambda item: -item[1]):
            if self.limit >= scale:
                return f"{self.quantity}={_plain(Decimal(self.limit) / scale)}{unit}"
        unit, scale = next(iter(units.items()))
        return f"{self.quantity}={_plain(Decimal(self.limit) / scale)}{unit}"


@dataclass(frozen=True)
class Floor:
    """The accuracy that every kept variant must have.

    Attributes:
        kind: ``absolute`` (a value of the metric), ``drop`` (at most this much worse than the
            source, in the metric's unit) or ``relative`` (at most this share of its value).
        value: the value, the drop, or the share.
        metric: the metric that an absolute floor names; None for drops.
    """

    kind: Literal["absolute", "drop", "relative"]
    value: float
    metric: str | None = None

    @classmethod
    def parse(cls, text: str) -> Floor:
        """Read ``top1=0.90``, ``top1=90%``, ``drop=0.01`` or ``drop=1%``.

        Raises:
            InputError: the text is no floor.
        """
        match = _FLOOR.fullmatch(text)
        example = "write for example top1=0.90, drop=0.01 or drop=1%"
        if match is None:
            raise InputError(f"floor {text!r} is not of the form NAME=NUMBER; {example}")
        name, number, percent = match.groups()
        try:
            value = float(Decimal(number) / 100 if percent else Decimal(number))
        except (ArithmeticError, ValueError):
            raise InputError(f"floor {text!r}: {number!r} is not a number; {example}") from None
        if not math.isfinite(value):
            raise InputError(f"floor {text!r} is not finite; {example}")
        if name in _SHARES and value > 1:
            raise InputError(
                f"floor {text!r} is out of reach, for {name} is 1 at most; write for example "
                f"{name}=0.90 or {name}=90%"
            )
        if name != "drop":
            return cls("absolute", value, name)
        if value < 0:
            raise InputError(f"floor {text!r} is negative; a drop is zero or more")
        if percent and value >= 1:
            raise InputError(f"floor {text!r} lets everything pass; a drop is below 100%")
        return cls("relative" if percent else "drop", value)

    def __str__(self) -> str:
        if self.kind == "relative":
            return f"drop={_plain(Decimal(str(self.value)) * 100)}%"
        return f"{self.metric or 'drop'}={self.value!r}"


def format_ns(value: float) -> str:
    """Show nanoseconds in the unit that leaves one to three digits before the point."""
    for unit in ("s", "ms", "us"):
        if abs(value) >= TIME_UNITS[unit]:
            return f"{value / TIME_UNITS[unit]:.4g} {unit}"
    return f"{value:.4g} ns"


def format_share(value: float) -> str:
    """Show a share as a percentage with all the digits that it was given with."""
    return f"{100 * value:g}%"


def format_bytes(value: float, digits: int = 4) -> str:
    """Show a number of bytes in decimal units, as budgets are written."""
    for unit in ("GB", "MB", "kB"):
        if abs(value) >= SIZE_UNITS[unit]:
            return f"{value / SIZE_UNITS[unit]:.{digits}g} {unit}"
    return f"{value:.0f} B"


def _units(name: str, text: str) -> dict[str, int]:
    if name in PERCENTILES:
        return TIME_UNITS
    if name in ("size", "memory"):
        return SIZE_UNITS
    raise InputError(
        f"budget {text!r} names {name!r}; known are {_join(PERCENTILES)}, size and memory"
    )


def _positive(number: str, where: str) -> Decimal:
    try:
        value = Decimal(number)
    except ArithmeticError:
        raise InputError(f"{where}: {number!r} is not a number") from None
    if not value.is_finite() or value <= 0:
        raise InputError(f"{where} is not positive; a limit is greater than zero")
    if value > _MOST:
        raise InputError(f"{where} is beyond all measure; the most is {_MOST:.0e}")
    return value


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _join(names: dict[str, object] | dict[str, int] | dict[str, float]) -> str:
    return ", ".join(names)
