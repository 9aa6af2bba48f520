"""Workers as child processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from optimize import worker as worker_file
from optimize.errors import WorkerEnded, WorkerError
from optimize.processes.ending import ending
from optimize.targets.base import Device, Job, Target

_SCRIPT = str(Path(worker_file.__file__).resolve())
# -P: the script's own folder must not shadow what the runtime imports.
_COMMAND = (sys.executable, "-P", _SCRIPT)


class LocalWorker:
    """A child process that speaks the protocol of :mod:`optimize.worker` over pipes."""

    def __init__(self, job: Job) -> None:
        """Write the job's file and start the process."""
        self._scratch = job.scratch
        job_file = job.scratch / "job.json"
        job_file.write_text(json.dumps(describe(job)))
        self._log = job.scratch / "stderr.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, str(job_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    # onnxruntime's telemetry starts a thread, which a measurement can do without.
                    "ORT_DISABLE_TELEMETRY": "1",
                    # What a runtime unpacks there goes with the run: the worker is killed.
                    "TMPDIR": str(job.scratch.resolve()),
                },
            )
        self._buffer = b""
        self._closed = False

    def call(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """See :class:`optimize.targets.base.Worker`."""
        stdin = self._process.stdin
        assert stdin is not None  # opened as a pipe above
        try:
            stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
            stdin.flush()
        except (OSError, ValueError) as error:  # the latter of a pipe that was closed here
            raise self._death() from error
        return self.answer(command, timeout_s)

    def answer(self, command: str, timeout_s: float) -> dict[str, Any]:
        """Wait for the next line."""
        line = self._read_line(command, time.monotonic() + timeout_s, timeout_s)
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise WorkerError(f"the worker answered {line[:80]!r}, which is no JSON") from error
        if reply.get("version") != worker_file.VERSION:
            raise WorkerError(f"the worker speaks version {reply.get('version')}")
        if not reply.get("ok"):
            raise WorkerError(" ".join(str(reply.get("error", "no reason given")).split()))
        return reply

    def fetch(self, name: str) -> Path:
        """See :class:`optimize.targets.base.Worker`."""
        return self._scratch / name

    def close(self) -> None:
        """See :class:`optimize.targets.base.Worker`."""
        self._closed = True  # a thread may still wait for its answer
        self._process.kill()  # it holds nothing that an orderly end would save
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()

    def _read_line(self, command: str, deadline: float, timeout_s: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None  # opened as a pipe above
        while b"\n" not in self._buffer:
            try:
                ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
                data = os.read(stdout.fileno(), 1 << 20) if ready else b""
            except (OSError, ValueError) as error:
                raise self._death() from error
            if not ready:
                self._process.kill()
                raise WorkerError(f"the worker hung: no answer to {command} in {timeout_s:.0f} s")
            if not data:
                raise self._death()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> WorkerError:
        if self._closed:
            return WorkerEnded("the run ended before it was measured")
        return WorkerError(f"the worker {self._how_it_ended()}")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "closed its output"
        said = self._log.read_text(errors="replace").strip().splitlines()
        last = f": {said[-1][:200]}" if said else ""
        return f"{ending(code)}{last}"


class LocalTarget(Target):
    """This machine."""

    name = "local"

    def device(self) -> Device:
        """Describe this machine."""
        facts = worker_file.device()
        return Device(**{**facts, "isa": tuple(facts["isa"])})

    def start(self, job: Job, timeout_s: float) -> tuple[LocalWorker, dict[str, Any]]:
        """Start a child process and wait until its model is loaded."""
        worker = LocalWorker(job)
        try:
            return worker, worker.answer("load", timeout_s)
        except BaseException:
            worker.close()
            raise


def describe(job: Job) -> dict[str, Any]:
    """What :mod:`optimize.worker` reads of a job, as JSON."""
    return {
        "version": worker_file.VERSION,
        "runtime": job.settings.runtime,
        "model": str(job.model.resolve()),
        "provider": job.settings.provider,
        "threads": job.settings.threads,
        "cpus": job.settings.cpus,
        "config": dict(job.settings.config),
        "names": dict(zip(("inputs", "outputs"), job.names, strict=True)),
        "inputs": str(job.inputs.resolve()),
        "scratch": str(job.scratch.resolve()),
        "pre": _absolute(job.pre),
        "post": _absolute(job.post),
    }


def _absolute(reference: str | None) -> str | None:
    if reference is None:
        return None
    file, _, name = reference.rpartition(":")
    return f"{Path(file).resolve()}:{name}"
