"""What is known of a run so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from optimize.building.build import Builder
from optimize.cache.store import Store
from optimize.feasibility.bound import Bounder
from optimize.judging.screen import Screening
from optimize.models.model import Model
from optimize.models.source import Source
from optimize.observer import Silent
from optimize.prepare import Prepared
from optimize.processes.child import Children
from optimize.profiling.measure import Limits
from optimize.request import Request
from optimize.results.report import VariantReport
from optimize.run.clock import Clock
from optimize.targets.base import Device, Settings, Target


@dataclass
class RunState:
    """What is known so far, so that a run that is cut short can still report it.

    Attributes:
        request, target, device, settings: what is asked for, and where.
        folder: the run's own.
        started: on ``time.monotonic``.
        children: where exports, passes and explanations run.
        source, prepared, builder, screening: each None until its stage is reached.
        sources: all files of the user's that are optimized or judged.
        unbuilt: rows of chains without an artefact of their own.
        artefacts: of the others, by name.
        notes: what a reader must know.
        order: of the rows, by name.
        store: the cache; None for none.
        served: the first variant of every artefact in a runtime.
        bounder, bounds: who knows the least latency of artefacts, and what it is by name.
        infeasible: why no variant can meet the budgets; None if one may.
        clock: who keeps the time of the stages.
    """

    request: Request
    target: Target
    device: Device
    settings: Settings
    folder: Path
    started: float
    children: Children = field(default_factory=Children)
    source: Source | None = None
    sources: list[Source] = field(default_factory=list)
    prepared: Prepared | None = None
    screening: Screening | None = None
    unbuilt: list[VariantReport] = field(default_factory=list)
    artefacts: dict[str, Model] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    builder: Builder | None = None
    store: Store | None = None
    served: dict[tuple[str, str] | None, str] = field(default_factory=dict)
    bounder: Bounder | None = None
    bounds: dict[str, float | None] = field(default_factory=dict)
    infeasible: str | None = None
    clock: Clock = field(default_factory=lambda: Clock(Silent()))

    def limits(self, share: float) -> Limits:
        """Up to a share of the time limit."""
        limit = self.request.time_limit_s
        deadline = None if limit is None else self.started + share * limit
        return Limits(deadline=deadline, max_samples=self.request.max_samples)
