"""Entries of the store: what they are found by, how they lie on disk, and whether they are whole.

An entry is a folder ``KEY/`` with ``files/`` and ``entry.json``, which holds their digests, the
key, its maker's notes, and a digest of itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimize.models.model import file_digest

INDEX, FILES, DOCUMENT = "entry.json", "files", "document"


def key_of(parts: Mapping[str, Any]) -> str:
    """The key of something that is wholly determined by ``parts``: SHA-256 of canonical JSON.

    Args:
        parts: JSON values; the order of names does not matter, tuples count as lists.

    Raises:
        TypeError: a value is not JSON.
        ValueError: a number is not finite.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """Something in the store.

    Attributes:
        key: what it is found by.
        path: the folder with its files.
        meta: what its maker noted; JSON.
        digests: SHA-256 of each file, by its path within the folder.
        size_bytes: of these files.
        used_ns: when it was last read or written, since 1970.
    """

    key: str
    path: Path
    meta: Mapping[str, Any]
    digests: Mapping[str, str]
    size_bytes: int
    used_ns: int


class Damaged(Exception):
    """An entry is not as it was written; the message says what is wrong."""


def write_entry(
    staging: Path, key: str, content: Path | bytes, meta: Mapping[str, Any], link: bool
) -> int:
    """Write an entry into the empty folder ``staging``; see ``Store.put``.

    Returns:
        The size of its files in bytes.

    Raises:
        OSError: it cannot be written.
        TypeError, ValueError: ``meta`` is no JSON.
    """
    folder = staging / FILES
    folder.mkdir()
    if isinstance(content, bytes):
        (folder / DOCUMENT).write_bytes(content)
    else:
        _bring(content, folder, link)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size = sum(file.stat().st_size for file in files)
    index = {
        "digests": {file.relative_to(folder).as_posix(): file_digest(file) for file in files},
        "key": key,
        "meta": json.loads(json.dumps(dict(meta))),  # as it will be read
        "size_bytes": size,
    }
    text = json.dumps({"index": index, "digest": key_of(index)})
    (staging / INDEX).write_text(text, encoding="utf-8")
    return size


def _bring(source: Path, folder: Path, link: bool) -> None:
    for file in (path for path in source.rglob("*") if path.is_file()):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            with contextlib.suppress(OSError):  # another file system, or one without links
                target.hardlink_to(file)
                continue
        shutil.copyfile(file, target)


def read_entry(place: Path) -> Entry:
    """Read an entry's index.

    Raises:
        OSError: it cannot be read.
        Damaged: it is missing or is not what was written.
    """
    try:
        content = json.loads((place / INDEX).read_bytes())
        index = content["index"]
        if key_of(index) != content["digest"] or index["key"] != place.name:
            raise Damaged(f"{INDEX} is not what was written")
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{INDEX} is no such index") from error
    except FileNotFoundError as error:
        raise Damaged(f"{INDEX} is missing") from error
    return Entry(
        key=place.name,
        path=place / FILES,
        meta=index["meta"],
        digests=index["digests"],
        size_bytes=index["size_bytes"],
        used_ns=(place / INDEX).stat().st_mtime_ns,
    )


def check_files(entry: Entry) -> None:
    """Compare every file with its digest.

    Raises:
        OSError: one cannot be read.
        Damaged: one is missing or is not what was written.
    """
    for name, digest in entry.digests.items():
        if not (entry.path / name).is_file():
            raise Damaged(f"{name} is missing")
        if file_digest(entry.path / name) != digest:
            raise Damaged(f"{name} is not what was written")
