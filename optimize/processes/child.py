"""A process that exports and transforms models, so that whatever breaks there breaks nothing here.

Exporters, quantizers and runtimes print, leak, run out of memory and crash. They do it in this
child: its output goes to a log, its death is an error with a reason, its memory is given back.
Functions and values travel as pickles between these two processes only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import LifoQueue
from typing import IO, Any, ParamSpec, TypeVar

from optimize.errors import (
    InputError,
    NotApplicable,
    NotNow,
    OptimizeError,
    PassFailed,
    first_cause,
)
from optimize.processes.ending import ending

P = ParamSpec("P")
R = TypeVar("R")
_KNOWN: dict[str, type[OptimizeError]] = {
    cls.__name__: cls for cls in (InputError, NotApplicable, NotNow, PassFailed)
}


class ChildDied(OptimizeError):
    """The child ended before it answered; the message says how."""


class ChildFailed(OptimizeError):
    """A function raised what it should not have; the child's traceback is attached as a note."""


_ANSWERS = 100  # the descriptor that the child answers on, far above those that libraries open
_SAID = "said"


def say(what: str, text: str) -> None:
    """Tell the parent, from inside of a call in the child, how far ``what`` is."""
    os.write(_ANSWERS, pickle.dumps((_SAID, f"{what}: {text}", "")))


class Child:
    """Calls functions in a child process, which is started when first needed.

    Attributes:
        listen: is told what the child says by :func:`say`.
    """

    def __init__(self, temporary: Path | None = None) -> None:
        """Start nothing yet.

        Args:
            temporary: where the child has its temporary files, so that they go with the run's even
                if it is killed; None for where the system has them.
        """
        self.listen: Callable[[str], None] = lambda _: None
        self._temporary = temporary
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._starter = 0
        self._unheard = 0

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call an importable function in the child and return what it returns.

        Raises:
            InputError, NotApplicable, PassFailed: as the function raised them.
            ChildDied: the process was killed or crashed; the next call starts another.
            ChildFailed: the function raised anything else.
        """
        process = self._running()
        try:
            _ask(process, function, args, kwargs)
            while self._unheard:
                self._hear(process)
                self._unheard -= 1
            kind, value, trace = self._hear(process)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise ChildDied(self._death(process)) from error
        except BaseException:
            self.close()  # interrupted in the middle of an exchange
            raise
        if kind == "returned":
            result: R = value
            return result
        if kind in _KNOWN:
            raise _KNOWN[kind](value)
        failure = ChildFailed(value)
        failure.add_note(trace)
        raise failure

    def start(self) -> None:
        """Start the process without waiting for it; the kernel ends it with the calling thread."""
        self._running()

    def begin(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have the child call a function, and neither wait nor hear what becomes of it."""
        try:
            _ask(self._running(), function, args, kwargs)
            self._unheard += 1
        except OSError:
            self.close()  # the next call starts another
        except BaseException:
            self.close()  # interrupted in the middle of an exchange
            raise

    @property
    def foreign(self) -> bool:
        """Whether another thread than the calling one has started the process."""
        return self._process is not None and self._starter != threading.get_ident()

    def close(self) -> None:
        """End the process."""
        # Taken first: a thread whose call is cut off closes it, too.
        process, self._process = self._process, None
        log, self._log = self._log, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()
        if log is not None:
            log.close()
        self._unheard = 0

    def _hear(self, process: subprocess.Popen[bytes]) -> tuple[str, Any, str]:
        assert process.stdout is not None  # a pipe, by _running
        kind, value, trace = pickle.load(process.stdout)
        while kind == _SAID:
            self.listen(value)
            kind, value, trace = pickle.load(process.stdout)
        return kind, value, trace

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._starter = threading.get_ident()
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "optimize.processes.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
                # What the parent can import, the child must: a pass may come from a plug-in.
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "ORT_DISABLE_TELEMETRY": "1",
                    **({"TMPDIR": str(self._temporary)} if self._temporary else {}),
                },
            )
        return self._process

    def _death(self, process: subprocess.Popen[bytes]) -> str:
        try:
            code = process.wait(5)
        except subprocess.TimeoutExpired:
            code = 0
        said = self._last_words()
        self.close()
        return f"its process {ending(code)}{said}"

    def _last_words(self) -> str:
        log = self._log
        if log is None or log.closed:
            return ""
        log.seek(0)
        lines = log.read()[-2000:].decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""


def _ask(
    process: subprocess.Popen[bytes], function: Callable[..., object], args: Any, kwargs: Any
) -> None:
    assert process.stdin is not None  # a pipe, by _running
    pickle.dump((function, args, kwargs), process.stdin)
    process.stdin.flush()


class Children:
    """Some child processes; a call takes the next that is free, or waits for one."""

    def __init__(self, count: int = 1, temporary: Path | None = None) -> None:
        """Start none yet; each is started when it is first needed. See :class:`Child`."""
        self._all = [Child(temporary) for _ in range(count)]
        self._free: LifoQueue[Child] = LifoQueue()
        for child in reversed(self._all):
            self._free.put(child)
        self._stopped = False

    def __len__(self) -> int:
        """How many there may be."""
        return len(self._all)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """See :meth:`Child.call`."""
        child = self._free.get()
        try:
            if self._stopped:
                raise ChildDied("the run was ended before it was begun")
            return child.call(function, *args, **kwargs)
        finally:
            self._free.put(child)

    def listen(self, told: Callable[[str], None]) -> None:
        """Have ``told`` called with what any of them says, in the thread that waits for it."""
        for child in self._all:
            child.listen = told

    @contextlib.contextmanager
    def threads(self, most: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that keep up to ``most`` children busy.

        The children are started by this thread, for each ends with the thread that started it.
        """
        count = max(1, min(most, len(self._all)))
        for child in self._all[:count]:
            child.start()
        pool = ThreadPoolExecutor(count)
        try:
            yield pool
        except BaseException:
            self._stopped = True  # or a thread would begin its next call in a new process
            self.close()  # ends the calls that threads still wait for
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            for child in self._all:
                if child.foreign:  # it was started anew, after a crash
                    child.close()

    def close(self) -> None:
        """End all processes."""
        for child in self._all:
            child.close()


def _serve() -> None:
    """Answer calls until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup2(1, _ANSWERS, inheritable=False), "wb")
    os.dup2(2, 1)  # whatever prints, also from C++, prints to the log
    while True:
        try:
            function, args, kwargs = pickle.load(requests)
        except EOFError:
            return
        answers.write(_answer(function, args, kwargs))
        answers.flush()
        del function, args, kwargs
        _give_back()


def _give_back() -> None:
    """Return freed memory to the system, which the allocator would keep for the next call."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _answer(function: Callable[..., Any], args: Any, kwargs: Any) -> bytes:
    try:
        return pickle.dumps(("returned", function(*args, **kwargs), ""))
    except OptimizeError as error:
        return pickle.dumps((type(error).__name__, str(error), traceback.format_exc()))
    except BaseException as error:  # noqa: BLE001  the parent decides, also on an exit
        return pickle.dumps(("unknown", first_cause(error), traceback.format_exc()))


if __name__ == "__main__":
    from optimize.processes.child import (
        _serve as serve,  # under its own name, so that pickles agree
    )

    serve()
