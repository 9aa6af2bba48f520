"""A content-addressed store on disk: what was made once is found again by what it was made of.

``FOLDER/v1`` holds ``entries/KEY/``, ``work/`` (one locked folder for each process that writes),
``locks/`` (one file for each key that is being built) and ``training/``. An entry appears by one
rename, so it is there whole or not at all. Nothing is synced to the disk: every file is compared
with its digest when it is read, so a write that a power cut lost is a damaged entry, which is built
again. See docs/decisions/0008-cache.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from optimize.budgets.budget import format_bytes
from optimize.cache.entries import (
    DOCUMENT,
    INDEX,
    Damaged,
    Entry,
    check_files,
    read_entry,
    write_entry,
)
from optimize.cache.turns import Turns, make, why
from optimize.errors import InputError
from optimize.processes.locks import lock

LAYOUT = "v1"
TRAINING = f"{LAYOUT}/training"  # checkpoints, a folder for each training that was cut short
DEFAULT_LIMIT = 20 * 10**9
_KEY = re.compile("[0-9a-f]{64}")


def default_folder() -> Path:
    """``optimize`` in the user's cache folder, which ``XDG_CACHE_HOME`` names if it is set.

    Raises:
        InputError: the user has no home.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():  # the XDG specification has relative paths ignored
        return chosen / "optimize"
    try:
        return Path.home() / ".cache" / "optimize"
    except RuntimeError:
        raise InputError("no home folder for the cache is known; name one by --cache") from None


class Sizes(NamedTuple):
    """How full the store is: number of entries, their bytes, the most bytes allowed."""

    entries: int
    size_bytes: int
    limit_bytes: int


class Cleared(NamedTuple):
    """What was removed, unfinished trainings too, and how many stayed as a process uses them."""

    entries: int
    size_bytes: int
    in_use: int
    trainings: int = 0


class Store:
    """Entries in a folder, shared by any number of processes.

    What ``get`` and ``put`` hand out stays until ``release``, ``close`` or the process's end; no
    other process evicts it meanwhile. A store that cannot be written says so once and goes on:
    reading finds what there is, ``put`` returns None. After a fork, open another.
    """

    def __init__(
        self,
        folder: Path,
        limit_bytes: int = DEFAULT_LIMIT,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open the store and clear away what dead processes left; nothing is created yet.

        Args:
            folder: its place.
            limit_bytes: the most that all entries together may hold.
            report: told, in one sentence, of damaged entries, failed writes and waiting.

        Raises:
            InputError: the place is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise InputError(f"the cache {folder} is no folder; name another by --cache")
        self.folder = folder
        self._limit = limit_bytes
        self._report = report
        self._said: set[str] = set()
        self._sound: Callable[[], bool] = lambda: True
        self._pins: dict[str, int] = {}
        self.turns = Turns(folder / LAYOUT, self._say)
        self._own = threading.RLock()  # over what this object holds: pins and workspace
        self._workspace: tuple[Path, int] | None = None
        self._entries, self._locks, self._work = (
            folder / LAYOUT / name for name in ("entries", "locks", "work")
        )
        self._tidy()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep_while(self, sound: Callable[[], bool]) -> None:
        """From now on, keep what is made only while what it is made of is ``sound``."""
        self._sound = sound

    def get(self, key: str) -> Entry | None:
        """Find an entry whose files are as they were written; a damaged one is dropped, and said.

        Raises:
            ValueError: the text is no key.
        """
        place = self._place(key)
        try:
            if not self._pin(key):
                return None
            entry = read_entry(place)
            check_files(entry)
        except Damaged as error:
            self._say(f"cache entry {key[:12]} is damaged and not used: {error}")
            self.drop(key)
            return None
        except OSError as error:  # such as too many open files: no fault of the entry
            self._say(f"cache not read: {why(error)} ({self.folder})")
            self.release(key)
            return None
        with contextlib.suppress(OSError):  # a cache of others may be read only
            now = time.time_ns()
            os.utime(place / INDEX, ns=(now, now))
        return entry

    def document(self, key: str) -> bytes | None:
        """The bytes that ``put`` was given; None if there are none.

        Raises:
            ValueError: the text is no key.
        """
        pinned = key in self._pins
        entry = self.get(key)
        if entry is None:
            return None
        try:
            return (entry.path / DOCUMENT).read_bytes()
        except OSError:
            return None
        finally:
            if not pinned:
                self.release(key)

    def put(
        self,
        key: str,
        content: Path | bytes,
        meta: Mapping[str, Any] | None = None,
        link: bool = False,
    ) -> Entry | None:
        """Add an entry, unless it is there already; least recently used ones make room.

        Args:
            key: see :func:`key_of`.
            content: a folder to copy, or a small document.
            meta: JSON to keep beside it.
            link: link the folder's files instead of copying them where the file system can; the
                caller must not write to them any more.

        Returns:
            The entry; None if it could not be written, for a reason that is reported.

        Raises:
            ValueError: the text is no key, or a number in ``meta`` is not finite.
            TypeError: ``meta`` is no JSON.
        """
        existing = self.get(key)
        if existing is not None:
            return existing
        if not self._sound():
            self._say("nothing more is kept in the cache: what it is made of has changed meanwhile")
            return None
        try:
            with self._staging() as staging:
                size = write_entry(staging, key, content, meta or {}, link)
                if not self._admit(key, staging, size):
                    return None
            return read_entry(self._place(key)) if self._pin(key) else None
        except (OSError, Damaged) as error:
            self._say(f"cache not written: {why(error)} ({self.folder})")
            return None

    def release(self, key: str) -> None:
        """Let an entry be evicted again: its path is not used any more."""
        with self._own:
            descriptor = self._pins.pop(key, None)
            if descriptor is not None:
                os.close(descriptor)

    def drop(self, key: str) -> None:
        """Remove an entry, also one that is in use.

        Raises:
            ValueError: the text is no key.
        """
        self.release(key)
        with contextlib.suppress(OSError):
            self._discard(self._place(key))

    def entries(self) -> list[Entry]:
        """All entries, the least recently used first."""
        found = []
        for path in _listed(self._entries):
            with contextlib.suppress(OSError, Damaged):
                found.append(read_entry(path))
        return sorted(found, key=lambda entry: entry.used_ns)

    def sizes(self) -> Sizes:
        """How full the store is."""
        entries = self.entries()
        return Sizes(len(entries), sum(entry.size_bytes for entry in entries), self._limit)

    def clear(self) -> Cleared:
        """Remove every entry and every checkpoint that no process uses, damaged ones among them.

        Raises:
            InputError: the store cannot be written.
        """
        sizes = {entry.key: entry.size_bytes for entry in self.entries()}
        paths, trainings = _listed(self._entries), _listed(self.folder / TRAINING)
        try:
            gone = [path.name for path in paths if self._evict(path)]
            ended = [path for path in trainings if self._evict(path)]
        except OSError as error:
            raise InputError(f"cache not cleared: {why(error)} ({self.folder})") from error
        size = sum(sizes.get(name, 0) for name in gone)
        in_use = len(paths) - len(gone) + len(trainings) - len(ended)
        return Cleared(len(gone), size, in_use, len(ended))

    def close(self) -> None:
        """Give back all that this process holds."""
        for key in list(self._pins):
            self.release(key)
        if self._workspace is not None:
            path, descriptor = self._workspace
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
            self._workspace = None

    def _place(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key: 64 hexadecimal digits")
        return self._entries / key

    def _say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._report(sentence)

    def _pin(self, key: str) -> bool:
        """Hold an entry against eviction; False if it is not there, or on its way out."""
        with self._own:
            if key in self._pins and self._place(key).exists():
                return True
            self.release(key)
            descriptor = lock(self._place(key), shared=True)
            if descriptor is not None:
                self._pins[key] = descriptor
            return descriptor is not None

    @contextlib.contextmanager
    def _staging(self) -> Iterator[Path]:
        path = Path(tempfile.mkdtemp(dir=self._own_workspace()))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _own_workspace(self) -> Path:
        """A folder that this process holds locked: when the lock is free, its owner is dead."""
        with self._own:
            while self._workspace is None:
                make(self._work)
                path = Path(tempfile.mkdtemp(dir=self._work))
                descriptor = lock(path)
                if descriptor is not None:  # else another was tidying up just now, and took it
                    self._workspace = path, descriptor
            return self._workspace[0]

    def _admit(self, key: str, staging: Path, size: int) -> bool:
        """Make room and move the entry in, both under one lock, so that the limit holds."""
        make(self._entries)
        guard = lock(self.folder / LAYOUT / "lock", create=True, wait=True)
        assert guard is not None  # it was created
        try:
            if not self._make_room(size):
                self._say(
                    f"cache not written: {format_bytes(size)} do not fit beside what is in use "
                    f"below the limit of {format_bytes(self._limit)}"
                )
                return False
            staging.chmod(0o755)  # mkdtemp's folders are private
            with contextlib.suppress(FileExistsError):  # another was first: the same content
                _move(staging, self._place(key))
            return True
        finally:
            os.close(guard)

    def _make_room(self, size: int) -> bool:
        entries = self.entries()
        known = {entry.key for entry in entries}
        for path in _listed(self._entries):
            if path.name not in known:
                self._evict(path)  # it cannot be read
        total = size + sum(entry.size_bytes for entry in entries)
        for entry in entries:
            if total <= self._limit or size > self._limit:
                break
            if self._evict(self._place(entry.key)):
                total -= entry.size_bytes
        return total <= self._limit

    def _evict(self, path: Path) -> bool:
        """Remove an entry unless a process, this one too, has it pinned."""
        descriptor = lock(path)
        if descriptor is None:
            return False
        try:
            self._discard(path)
        finally:
            os.close(descriptor)
        return True

    def _discard(self, path: Path) -> None:
        try:
            with self._staging() as trash:
                path.rename(trash / path.name)
        except OSError:  # a full disk may have no room even for the bin
            (path / INDEX).unlink(missing_ok=True)
            shutil.rmtree(path)

    def _tidy(self) -> None:
        """Remove what dead processes left: working folders, lock files, halves of entries."""
        half_gone = [p for p in _listed(self._entries) if not (p / INDEX).exists()]
        for path in [*half_gone, *_listed(self._work), *_listed(self._locks)]:
            with contextlib.suppress(OSError):
                descriptor = lock(path)
                if descriptor is not None:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    os.close(descriptor)


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if target.exists():  # the kernel says ENOTEMPTY or EEXIST
            raise FileExistsError(*error.args) from error
        raise


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []  # nothing was written yet, or we may not look
