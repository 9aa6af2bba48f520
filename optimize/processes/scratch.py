"""Folders for a run's own files, which go with the run however it ends."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from optimize.processes.locks import lock

_ENDING = "[a-z0-9_]{8}"  # as tempfile.mkdtemp makes it


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """An empty folder that is locked while it is used and removed afterwards.

    What killed runs left under the same prefix is removed too: a folder whose lock is free has no
    owner any more.

    Raises:
        OSError: it cannot be created.
    """
    sweep(parent, prefix)
    descriptor = None
    while descriptor is None:
        path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            descriptor = lock(path)  # None if another run swept it away just now
        except OSError:
            break  # a file system without locks
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def run_folder() -> contextlib.AbstractContextManager[Path]:
    """A folder for a run, where the system has its temporary files."""
    return scratch_folder(Path(tempfile.gettempdir()), "optimize-run-")


def made(parent: Path, prefix: str) -> list[Path]:
    """The folders of that prefix that :func:`scratch_folder` made, and nobody else's."""
    name = re.compile(re.escape(prefix) + _ENDING)
    try:
        return [path for path in parent.iterdir() if name.fullmatch(path.name)]
    except OSError:
        return []


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders under a prefix that no process holds."""
    for path in made(parent, prefix):
        with contextlib.suppress(OSError):
            if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.getuid():
                continue
            descriptor = lock(path)
            if descriptor is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(descriptor)
