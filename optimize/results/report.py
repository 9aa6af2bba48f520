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
from optimize.budgets.budget import PERCENTILES, Budget, Floor
from optimize.budgets.metrics import METRICS
from optimize.budgets.profile import Profile, percentile_bounds, relative_samples
from optimize.budgets.verdict import Status
from optimize.errors import InputError
from optimize.targets.base import Device

SCHEMA: Literal[1] = 1


@dataclass(frozen=True)
class LatencyReport:
    """Percentiles of all timed calls, in milliseconds.

    ``bounds_ms`` holds a lower and an upper bound of every percentile, each one-sided at the run's
    confidence (``p99_lower_ms`` and ``p99_upper_ms`` repeat the p99's); None where there are too
    few samples.
    ``clean_samples`` were timed while nothing disturbed the machine. ``parts`` decompose a call
    into pre, input_transfer, compute, output_transfer, post and rest.
    """

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float
    p99_lower_ms: float | None
    p99_upper_ms: float | None
    samples: int
    clean_samples: int
    processes: int
    load_ms: float
    first_call_ms: float
    warmup_calls: int
    steady: bool
    peak_memory_bytes: int | None = None
    bounds_ms: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    parts: dict[str, PartReport] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile, confidence: float) -> LatencyReport:
        """Summarize a profile that has samples."""
        ms = {name: profile.percentile_ns(p) / 1e6 for name, p in PERCENTILES.items()}
        bounds = {
            name: _in_ms(percentile_bounds(profile.samples_ns, p, confidence))
            for name, p in PERCENTILES.items()
        }
        return cls(
            p50_ms=ms["p50"],
            p90_ms=ms["p90"],
            p95_ms=ms["p95"],
            p99_ms=ms["p99"],
            p999_ms=ms["p99.9"],
            p99_lower_ms=bounds["p99"][0],
            p99_upper_ms=bounds["p99"][1],
            samples=profile.samples_ns.size,
            clean_samples=profile.clean_ns.size,
            processes=len({block.process for block in profile.blocks}),
            load_ms=profile.load_ns / 1e6,
            first_call_ms=profile.first_call_ns / 1e6,
            warmup_calls=profile.warmup_calls,
            steady=profile.steady,
            peak_memory_bytes=profile.peak_bytes,
            bounds_ms=bounds,
            parts=_parts(profile),
        )


def _in_ms(bounds: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    lower, upper = (None if bound is None else bound / 1e6 for bound in bounds)
    return lower, upper


def _parts(profile: Profile) -> dict[str, PartReport]:
    """Decompose calls; where nothing but compute was marked, it is all there is."""
    names = ("pre", "input_transfer", "compute", "output_transfer", "post")
    blocks = [block.parts_ns for block in profile.blocks]
    if any(blocks):
        found = {name: np.concatenate([block[name] for block in blocks]) for name in names}
    else:
        nothing = np.zeros_like(profile.samples_ns)
        found = dict.fromkeys(names, nothing) | {"compute": profile.samples_ns}
    found["rest"] = profile.samples_ns - np.sum(list(found.values()), axis=0)
    return {
        name: PartReport(*(float(v) / 1e6 for v in np.quantile(values, (0.5, 0.95, 0.99))))
        for name, values in found.items()
    }


@dataclass(frozen=True)
class RelativeReport:
    """Latencies as multiples of what a call of the source took at the same moment (its median).

    Rows that were timed at different moments can be compared by them, on a machine whose speed
    drifts, too. The bounds are one-sided, each at the run's confidence.
    """

    p50: float
    p99: float
    p99_lower: float | None
    p99_upper: float | None

    @classmethod
    def of(cls, source: Profile, profile: Profile, confidence: float) -> RelativeReport | None:
        """Compare two profiles; None if one has no samples."""
        samples = relative_samples(source, profile)
        if samples.size == 0:
            return None
        p50, p99 = np.quantile(samples, (0.5, 0.99), method="inverted_cdf")
        return cls(float(p50), float(p99), *percentile_bounds(samples, 0.99, confidence))


@dataclass(frozen=True)
class OperatorReport:
    """One operator type: its nodes, its milliseconds a call, and its share of all operators."""

    op: str
    nodes: int
    ms: float
    share: float


@dataclass(frozen=True)
class PartReport:
    """A part of a call, in milliseconds; zero where the device has no such part."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


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
    schema: Literal[1] = 1

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
