"""The result of a run: what every caller, reader and later version is told.

``SCHEMA`` is raised when a field changes its meaning or goes; new fields may come without.
History: 1, the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optimize.budgets.accuracy import Accuracy
from optimize.budgets.budget import Budget, Floor
from optimize.budgets.metrics import METRICS
from optimize.budgets.verdict import Status
from optimize.errors import EXIT_UNDECIDED, InputError
from optimize.results.latency import LatencyReport, RelativeReport
from optimize.targets.base import Device

SCHEMA: Literal[1] = 1


@dataclass(frozen=True)
class OperatorReport:
    """One operator type: its nodes, its milliseconds a call, and its share of all operators."""

    op: str
    nodes: int
    ms: float
    share: float


@dataclass(frozen=True)
class AccuracyReport:
    """The metric with its interval, and its paired change against the source.

    ``provisional`` if only the first part of the samples was evaluated: it decided nothing.
    ``few`` if there were too few of them for the intervals to show anything.
    ``higher_is_better`` says which way is up; earlier versions did not write it.
    """

    metric: str
    value: float
    low: float
    high: float
    samples: int
    source_value: float
    change: float
    change_low: float
    change_high: float
    provisional: bool = False
    few: bool = False
    higher_is_better: bool | None = None

    @classmethod
    def of(cls, accuracy: Accuracy) -> AccuracyReport:
        """Take over the fields of a comparison."""
        return cls(**vars(accuracy))

    @property
    def judged(self) -> Accuracy:
        """The comparison, which knows whether a floor is met."""
        up = self.higher_is_better
        if up is None:
            up = higher_is_better(self.metric)
        return Accuracy(**{**vars(self), "higher_is_better": up})


def higher_is_better(metric: str) -> bool:
    """Which way is up, by a metric's name; a user's own metric goes up by definition."""
    known = METRICS.get(metric)
    return known is None or known.higher_is_better


@dataclass(frozen=True)
class StepReport:
    """The state of a chain after one of its passes; None for what was not measured there.

    ``difference`` is the largest one of the outputs to the source's on the check samples.
    """

    step: str
    p50_ms: float | None
    p99_ms: float | None
    accuracy: float | None
    size_bytes: int | None
    difference: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class VariantReport:
    """One row: a chain, its verdict, and the evidence.

    ``speedup`` is the source's median latency over this one's, paired block by block as they were
    timed in turns, with its interval at the run's confidence. ``operators`` are the slowest, by
    the runtime's own profiler, in a pass of its own. ``config`` are the options that the runtime
    must load the artefact with. ``steps`` are the chain's passes with what each of them changed,
    ``explanation`` says what keeps the variant from being faster and what cost its accuracy.
    ``trial`` says that a search beyond the plan proposed it.
    ``bound_ms`` is the least latency that this device allows. ``recalled`` says that its timings
    in the comparison are all an earlier run's, from the cache. ``relative`` are its latencies in
    the comparison as multiples of the source's, by which variants are ranked.
    """

    chain: str
    runtime: str
    status: Status
    reason: str
    latency: LatencyReport | None = None
    accuracy: AccuracyReport | None = None
    size_bytes: int | None = None
    digest: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    operators: tuple[OperatorReport, ...] = ()
    notes: tuple[str, ...] = ()
    build_s: float = 0.0
    profile_s: float = 0.0
    config: dict[str, str] = field(default_factory=dict)
    steps: tuple[StepReport, ...] = ()
    explanation: tuple[str, ...] = ()
    bound_ms: float | None = None
    recalled: bool = False
    relative: RelativeReport | None = None
    trial: bool = False


@dataclass(frozen=True)
class SourceReport:
    """The user's model, and how it became the first variant."""

    name: str
    kind: str
    digest: str
    size_bytes: int
    route: str
    difference: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataReport:
    """The samples, and how many served which purpose."""

    origin: str
    digest: str
    synthetic: bool
    samples: int
    latency_samples: int
    evaluation_samples: int
    calibration_samples: int
    calibration_origin: str | None
    batch: int


@dataclass(frozen=True)
class BudgetReport:
    """A budget in its canonical form (``text``) and as it was understood."""

    text: str
    quantity: str
    limit: int
    unit: Literal["ns", "bytes"]

    @classmethod
    def of(cls, budget: Budget) -> BudgetReport:
        """Describe a budget."""
        unit: Literal["ns", "bytes"] = "bytes" if budget.tail is None else "ns"
        return cls(str(budget), budget.quantity, budget.limit, unit)


@dataclass(frozen=True)
class FloorReport:
    """A floor as it was declared (``text``), and the metric that it holds for."""

    text: str
    kind: str
    value: float
    metric: str

    @classmethod
    def of(cls, floor: Floor, metric: str) -> FloorReport:
        """Describe a floor on ``metric``."""
        return cls(str(floor), floor.kind, floor.value, metric)

    @property
    def declared(self) -> Floor:
        """The floor itself."""
        return Floor.parse(self.text)


@dataclass(frozen=True)
class SettingsReport:
    """How variants were run and judged; ``cpus`` are the cores that workers could use."""

    objective: str
    confidence: float
    provider: str
    threads: int
    seed: int
    time_limit_s: float | None
    strict_floor: bool = False
    cpus: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LoadReport:
    """What the chosen variant bears where requests come at random, see ``optimize.budgets.load``.

    ``calls_per_s`` is the highest rate at which one process still keeps ``budget``, waiting
    included, without being busy for more than 80% of the time; ``busy`` is the share of time in
    which it then computes. Simulated from the timed calls: it is no part of the verdict.
    """

    budget: str
    calls_per_s: float
    busy: float


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        chosen: the chain that the objective picked among the kept ones; None if none was kept.
        infeasible: why the latency budget is out of reach of every variant, if nothing was built
            for that reason; needs, peaks and what would have to shrink in a sentence.
        nearest_miss: in words, if none was kept and a variant came close.
        exit_code: 0 kept, 1 none, 3 none but some undecided, 70 internal error, 130 interrupted.
        notes: what a reader must know about the whole run.
        seconds: of the whole run.
        stages: seconds by stage, in their order.
        command: a line for a shell that repeats the run, without this machine's folders.
        load: what the chosen variant bears under the latency budget that bears least; None without
            either.
    """

    source: SourceReport
    device: Device
    versions: dict[str, str]
    settings: SettingsReport
    budgets: tuple[BudgetReport, ...]
    floor: FloorReport | None
    data: DataReport
    variants: tuple[VariantReport, ...]
    chosen: str | None
    exit_code: int
    nearest_miss: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    command: str | None = None
    infeasible: str | None = None
    load: LoadReport | None = None
    schema: Literal[1] = 1

    @property
    def nearest(self) -> str:
        """What ``nearest_miss`` is called: of what may hold, none has missed."""
        return "Nearest" if self.exit_code == EXIT_UNDECIDED else "Nearest miss"

    def variant(self, chain: str) -> VariantReport:
        """The row of a chain.

        Raises:
            KeyError: there is none.
        """
        for variant in self.variants:
            if variant.chain == chain:
                return variant
        raise KeyError(chain)

    def to_json(self) -> str:
        """The report as JSON text, schema first."""
        import json
        from dataclasses import asdict

        fields = asdict(self)
        return json.dumps({"schema": fields.pop("schema"), **fields}, indent=2, default=_plain)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read a report back.

        Raises:
            InputError: it is no report, or of another schema.
        """
        import json

        from pydantic import TypeAdapter, ValidationError

        try:
            report: Report = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the text"
            raise InputError(
                f"this is no report of schema {SCHEMA}: {place}: {first['msg']}"
            ) from None
        if "schema" not in json.loads(text):
            raise InputError(f"this is no report of schema {SCHEMA}: schema: Field required")
        return report


@dataclass(frozen=True)
class Result:
    """What :func:`optimize.optimize` returns: the report and where its folder lies.

    Attributes:
        report: as in ``report.json``.
        folder: the result folder; None if none was asked for.
        model: the chosen artefact; None if no variant was kept.
        error: what cut the run short; None if nothing did.
    """

    report: Report
    folder: Path | None
    model: Path | None
    error: BaseException | None = None

    @property
    def exit_code(self) -> int:
        """As the command exits."""
        return self.report.exit_code


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not belong in a report")
