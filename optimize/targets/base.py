"""What a target offers: a description of the device, and workers on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Settings:
    """How a model is to be run.

    Attributes:
        runtime: the library that serves it.
        provider: onnxruntime's execution provider.
        threads: threads within an operator.
        cpus: the cores that it may use; None for those that the operating system grants.
        config: further session options, as pairs.
    """

    runtime: str = "onnxruntime"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    cpus: tuple[int, ...] | None = None
    config: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Device:
    """The fingerprint of the machine that a verdict holds for."""

    cpu: str
    architecture: str
    isa: tuple[str, ...]
    cores: int
    granted_cores: int
    memory_bytes: int | None
    os: str
    python: str


@dataclass(frozen=True)
class Job:
    """What one worker is to load.

    Attributes:
        model: path of the model on the controller.
        inputs: folder of inputs written by :func:`optimize.targets.inputs.write_inputs`.
        scratch: a folder for the worker's files.
        settings: how to run it.
        names: of its inputs and outputs, in order, for runtimes whose files do not hold them.
        pre, post: ``file.py:function`` that belong to every call; None for none.
    """

    model: Path
    inputs: Path
    scratch: Path
    settings: Settings = field(default_factory=Settings)
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    pre: str | None = None
    post: str | None = None


class Worker(Protocol):
    """A running worker process."""

    def call(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            WorkerError: it died, hung longer than ``timeout_s``, or reported an error.
        """

    def fetch(self, name: str) -> Path:
        """A file that the worker wrote, on the controller."""

    def close(self) -> None:
        """End the process, however it is."""


class Target(ABC):
    """A place where workers run."""

    name: str

    @abstractmethod
    def device(self) -> Device:
        """Describe the machine."""

    @abstractmethod
    def start(self, job: Job, timeout_s: float) -> tuple[Worker, dict[str, Any]]:
        """Start a worker and wait until its model is loaded.

        Returns:
            The worker, and what it said about loading.

        Raises:
            WorkerError: it could not load the model.
        """
