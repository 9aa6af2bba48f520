"""Chains as text: ``fold,fuse,int8{mode=static,ops=matmul}`` and back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from optimize.errors import InputError, nearest
from optimize.models.runtimes import DEFAULT_RUNTIME, find_runtime
from optimize.passes.base import Pass, value_text
from optimize.passes.registry import load_pass

SOURCE = "source"
_STEP = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\{([^{}]*)\})?\s*(,|$)")


@dataclass(frozen=True)
class Chain:
    """Passes in order, and the runtime that serves; the empty chain is the source as exported.

    Its text is canonical: two chains are equal exactly if their texts are. A runtime other than
    onnxruntime follows an at sign: ``fold,int8{mode=static}@openvino``.
    """

    passes: tuple[Pass, ...] = ()
    runtime: str = DEFAULT_RUNTIME

    @classmethod
    def parse(cls, text: str) -> Chain:
        """Read a chain.

        Raises:
            InputError: naming the place and the nearest valid pass or option.
        """
        text, at, runtime = text.partition("@")
        runtime = find_runtime(runtime.strip()).name if at else DEFAULT_RUNTIME
        if text.strip() == SOURCE:
            return cls((), runtime)
        if not text.strip():
            raise InputError("a chain is empty; write for example fold,fuse or source")
        steps, position = [], 0
        while position < len(text):
            match = _STEP.match(text, position)
            if match is None:
                raise InputError(
                    f"chain {text!r} cannot be read from {text[position:]!r} on; "
                    "write NAME or NAME{option=value,...}, separated by commas"
                )
            steps.append(_parse_pass(match.group(1), match.group(2) or ""))
            position = match.end()
        if text.rstrip().endswith(","):
            raise InputError(f"chain {text!r} ends with a comma")
        return cls(tuple(steps), runtime)

    def on(self, runtime: str) -> Chain:
        """The same passes, served by another runtime."""
        return Chain(self.passes, runtime)

    @property
    def needs_calibration(self) -> bool:
        """Whether any of its passes needs real data."""
        return any(step.needs_calibration for step in self.passes)

    def prefixes(self) -> Iterable[Chain]:
        """All chains that this one begins with, shortest first, itself last, without ``source``."""
        for length in range(1, len(self.passes) + 1):
            yield Chain(self.passes[:length], self.runtime)

    def __str__(self) -> str:
        text = ",".join(map(str, self.passes)) or SOURCE
        return text if self.runtime == DEFAULT_RUNTIME else f"{text}@{self.runtime}"


@dataclass(frozen=True)
class Option:
    """An option of a pass: its name, type in words, and default."""

    name: str
    type: str
    default: str


def options(cls: type[Pass]) -> tuple[Option, ...]:
    """The options of a pass class, in order."""
    hints = get_type_hints(cls)
    return tuple(
        Option(
            field.name,
            _type_text(hints[field.name]),
            "required" if field.default is MISSING else value_text(field.default),
        )
        for field in fields(cls)
    )


def _parse_pass(name: str, body: str) -> Pass:
    cls = load_pass(name)
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls)]
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in body.split(","))):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or not text:
            raise InputError(f"pass {name}: option {part!r} is not of the form option=value")
        if key not in known:
            raise InputError(f"pass {name} has no option {key!r}; {nearest(key, known)}")
        if key in given:
            raise InputError(f"pass {name}: option {key} is given twice")
        given[key] = _value(text, hints[key], f"pass {name}: {key}")
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in given]
    if missing:
        raise InputError(f"pass {name} needs {', '.join(missing)}")
    return cls(**given)


def _value(text: str, hint: Any, where: str) -> Any:
    if get_origin(hint) is Literal:
        for choice in get_args(hint):
            if text == str(choice):
                return choice
        raise InputError(f"{where}={text} is unknown; {nearest(text, map(str, get_args(hint)))}")
    if hint is bool:
        if text in ("true", "false"):
            return text == "true"
        raise InputError(f"{where}={text} is neither true nor false")
    try:
        return hint(text)
    except ValueError:
        raise InputError(f"{where}={text} is no {_type_text(hint)}") from None


def _type_text(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    names = {bool: "true|false", int: "whole number", float: "number", str: "text"}
    return names.get(hint, str(hint))
