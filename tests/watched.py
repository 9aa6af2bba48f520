"""This machine as a target that is watched."""

from __future__ import annotations

from typing import Any

from optimize.targets.base import Job
from optimize.targets.local import LocalTarget, LocalWorker


class Watched(LocalTarget):
    """This machine, with every worker's job noted."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def start(self, job: Job, timeout_s: float) -> tuple[LocalWorker, dict[str, Any]]:
        self.jobs.append(job)
        return super().start(job, timeout_s)
