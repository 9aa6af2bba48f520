"""Waiting for other runs on the same store: for what they build, and for the processor."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from optimize.errors import OptimizeError
from optimize.processes.locks import lock

TURN_S = 0.1  # between two attempts to get a turn


class Stopped(OptimizeError):
    """Waiting for another run was given up, as this one ends."""


class Turns:
    """The locks of one store, which the kernel releases when their holder dies."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Wait in a store's layout folder, nothing of which is created yet.

        Args:
            folder: holds ``turn``, and ``locks/`` with one file for each key that is being built.
            say: told, in one sentence, of waiting and of a folder that cannot be written.
        """
        self._folder, self._locks = folder, folder / "locks"
        self._say = say
        self._stopped = threading.Event()

    @contextlib.contextmanager
    def building(self, key: str, deadline: float | None = None) -> Iterator[None]:
        """Hold a key's lock: of several that build it one does, the others wait, then ``get`` it.

        Args:
            key: what is to be built.
            deadline: on ``time.monotonic``: from then on, go ahead without.

        Raises:
            Stopped: :meth:`stop` was called while it waited.
        """
        descriptor = self._lock_key(key, deadline)
        try:
            yield
        finally:
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    (self._locks / key).unlink()
                os.close(descriptor)

    @contextlib.contextmanager
    def turn(self, *, shared: bool, deadline: float | None = None) -> Iterator[None]:
        """Hold this store's turn to use the processor, so that no run disturbs another's timing.

        Args:
            shared: beside others that share it, as builds may, instead of alone, as timing must.
            deadline: on ``time.monotonic``: from then on, go ahead without.

        Raises:
            Stopped: :meth:`stop` was called while it waited.
        """
        descriptor = None
        with contextlib.suppress(OSError):  # a store that cannot be written has no turns
            make(self._folder)
            path = self._folder / "turn"
            while (descriptor := lock(path, shared=shared, create=True)) is None:
                self._say("another run on the same cache was at work; this one waited for its turn")
                if not self._wait(deadline):
                    break
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def stop(self) -> None:
        """Have every thread that waits for another run give up, now and from now on."""
        self._stopped.set()

    def _lock_key(self, key: str, deadline: float | None) -> int | None:
        try:
            make(self._locks)
            while (descriptor := lock(self._locks / key, create=True)) is None:
                self._say(f"{key[:12]} is being built already; waiting for it")
                if not self._wait(deadline):
                    break
            return descriptor
        except OSError as error:
            self._say(f"cache not written: {why(error)} ({self._folder.parent})")
            return None

    def _wait(self, deadline: float | None) -> bool:
        """Wait a moment for another run; False from the deadline on.

        Raises:
            Stopped: there is nothing to wait for any more.
        """
        if self._stopped.is_set():
            raise Stopped("the run was ended while it waited for another")
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(TURN_S)
        return True


def make(folder: Path) -> None:
    """Make a folder of the store, for this user alone: models may be private."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def why(error: Exception) -> str:
    """What is wrong, without the path, which the sentence names."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
