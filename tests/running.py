"""The command in a process group of its own, watched together with everything it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def parents() -> dict[int, int]:
    """Every process and its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                found[int(entry.name)] = int(fields[1])
    return found


def descendants(pid: int) -> set[int]:
    tree, found, fresh = parents(), set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in tree.items() if parent in fresh} - found
        found |= fresh
    return found


def command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Running:
    """The command in a process group of its own, with everything it ever started."""

    def __init__(self, words: list[Any], temporary: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optimize", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # However the tests themselves were started: in the background, Ctrl-C may be ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"},
        )
        self.temporary = temporary
        self.started: dict[int, str] = {}
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._lines.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, text: str) -> None:
        """Wait until a line of progress holds ``text``, and note who runs then."""
        until = time.monotonic() + 120
        while not any(text in line for line in list(self._lines)):
            assert self.process.poll() is None, "".join(self._lines)
            assert time.monotonic() < until, "".join(self._lines)
            time.sleep(0.02)

    def note_children(self, least: int) -> None:
        until = time.monotonic() + 60
        while len(self.started) < least:
            assert time.monotonic() < until
            self.started |= {pid: command(pid) for pid in descendants(self.process.pid)}
            time.sleep(0.02)

    def finish(self) -> tuple[int, str, str]:
        assert self.process.stdout is not None
        stdout = self.process.stdout.read()
        code = self.process.wait(60)
        self._reader.join(10)
        return code, stdout, "".join(self._lines)

    def orphans(self) -> dict[int, str]:
        """Who still runs of those that were seen; the kernel gets a moment to deliver signals."""
        until = time.monotonic() + 10
        left = dict(self.started)
        while left and time.monotonic() < until:
            left = {pid: name for pid, name in left.items() if name and command(pid) == name}
            time.sleep(0.05)
        return left
