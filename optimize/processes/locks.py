"""Locks between processes that the kernel releases when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def lock(
    path: Path, *, shared: bool = False, create: bool = False, wait: bool = False
) -> int | None:
    """Lock a file or a folder by ``flock``, for as long as the descriptor stays open.

    Whoever removes a locked path does so while it holds the lock: who then gets the lock of a
    file that has no name any more notices, and starts anew. So no lock files pile up.

    Args:
        path: what to lock.
        shared: beside others who share it, instead of alone.
        create: make an empty file if there is nothing.
        wait: until it is free, instead of giving up at once.

    Returns:
        The descriptor, to be closed by ``os.close``; None if another holds it or nothing is there.

    Raises:
        OSError: the path cannot be opened, or its file system has no locks.
    """
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, mode)
            if _names(path, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
