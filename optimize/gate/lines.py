"""On which line of a TOML file a key stands; the standard library's parser does not tell."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any


def line_of(text: str, path: Sequence[str | int]) -> int:
    """The line, from 1, of the statement that brings ``path`` into a valid document.

    A prefix of a document that ends between two statements is a document itself, and one that ends
    within a statement is none. So the parser is asked for ever longer prefixes: the statement lies
    between the last one without the path and the first one with it. A path that is not there is
    looked for without its last parts; 1 if nothing of it is there.
    """
    wanted = list(path)
    while wanted:
        if found := _search(text, wanted):
            return found
        wanted.pop()
    return 1


def _search(text: str, path: Sequence[str | int]) -> int | None:
    lines = [line + "\n" for line in text.split("\n")]
    start = 0
    for end in range(1, len(lines) + 1):
        try:
            document = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        if _holds(document, path):
            return start + 1
        start = end
    return None


def _holds(document: Any, path: Sequence[str | int]) -> bool:
    for key in path:
        inside = isinstance(document, dict) and key in document
        if isinstance(document, list) and isinstance(key, int):
            inside = key < len(document)
        if not inside:
            return False
        document = document[key]
    return True
