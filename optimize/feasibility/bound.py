"""The least latency of models on this device; what was measured and counted is kept in the cache.

Nothing here fails a run: where a model cannot be counted or the device cannot be measured there is
no bound, and a note says why.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from optimize.budgets.budget import Budget, format_ns
from optimize.cache.entries import key_of
from optimize.cache.store import Store
from optimize.errors import InputError, first_cause
from optimize.feasibility.peaks import (
    GLANCE_S,
    PACKAGES,
    SECONDS,
    Peaks,
    load_libraries,
    measure_peaks,
)
from optimize.feasibility.peaks import VERSION as PEAKS_VERSION
from optimize.feasibility.roofline import (
    Bounds,
    Infeasible,
    Precision,
    judge_feasibility,
    lower_bound,
)
from optimize.models.cost import VERSION as COST_VERSION
from optimize.models.cost import Cost, count_cost
from optimize.models.data import Array, Dataset
from optimize.models.model import Model
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.passes.chain import Chain
from optimize.passes.session import Session
from optimize.processes.child import Child
from optimize.results.report import VariantReport
from optimize.targets.base import Device
from optimize.worker import THREADS

P = ParamSpec("P")
R = TypeVar("R")
# The most that they may take; measuring, once for a device, takes three where nothing hinders it.
COUNT_S, MEASURE_S = 5, 10
# Larger models are not counted beside others that are built: together they might not fit.
AHEAD_BYTES = 1 << 30
# Of calls whose shapes differ, that share may be smaller than what is counted: less than half, so
# that the bound holds for the median and all that is above it, in samples drawn at random, too.
SMALLER = 0.3
# Of other passes, plug-ins among them, it is not known what operations they leave.
_SAME_OPERATIONS = frozenset("fold fuse session shapes equalize smooth fp16 bf16 int8".split())
_HINTS: Mapping[str, Precision] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


@dataclass
class Bounder:
    """Bounds of one run's models.

    Attributes:
        device: this device.
        threads: of the runtimes.
        versions: of the installed libraries.
        store: where peaks and costs are kept; None for nowhere.
        notes: why there is no bound, if there is none.
        hurried: whether there is no time to measure peaks that are not known yet.
        temporary: where the counting process has its temporary files; None for the system's.
        source: bounds of the source; None if there are none.
        glanced: whether its peaks are those of a glance.
    """

    device: Device
    threads: int
    versions: Mapping[str, str]
    store: Store | None = None
    notes: list[str] = field(default_factory=list)
    hurried: bool = False
    source: Bounds | None = None
    glanced: bool = False
    temporary: Path | None = None
    _child: Child = field(init=False)
    _costs: dict[str, Cost] = field(default_factory=dict)
    _counting: ThreadPoolExecutor | None = None
    _sample: Mapping[str, Array] = field(default_factory=dict)
    _looked: bool = False

    def __post_init__(self) -> None:
        """Start nothing yet."""
        self._child = Child(self.temporary)

    def prepare(self) -> None:
        """Load what measuring needs, if there is anything to measure, beside what goes on."""
        if not self.hurried and self._known_peaks() is None:
            self._child.begin(_in_time, MEASURE_S, load_libraries)

    def judge_source(self, model: Model, samples: Dataset) -> Bounds | None:
        """The bounds of the source in every precision; None, with a note, if there are none.

        Peaks that are not known are glanced at: higher ones are found by :meth:`settle`.

        Args:
            model: the source.
            samples: inputs of calls, of which a typical one is counted.
        """
        try:
            self._sample = typical(samples)
            cost, peaks = self._cost(model), self._known_peaks()
            self.glanced = peaks is None
            self.source = Bounds.of(cost, peaks or self._glance(), self.threads)
        except Exception as error:  # noqa: BLE001  an estimate never ends a run
            self._give_up(error)
        return self.source

    def count_ahead(self, model: Model) -> None:
        """Count a model's operations beside what goes on: its bound will be asked for."""
        if self.source is None or model.format != "onnx" or model.size_bytes > AHEAD_BYTES:
            return
        try:
            self._child.start()  # by this thread, with which it ends
        except OSError:
            return  # it is tried again when the bound is asked for
        self._counting = self._counting or ThreadPoolExecutor(1)
        self._counting.submit(self._cost, model)  # if it fails, that is told when it is asked for

    def rest(self) -> None:
        """End what is counted beside other work, so that the device is at rest.

        What was not begun is counted when it is asked for.
        """
        if self._counting is not None:
            self._counting.shutdown(cancel_futures=True)
            self._counting = None
        if self._child.foreign:  # it was started anew by the thread that ended, with which it ends
            self._child.close()

    def infeasible(self, budgets: Sequence[Budget], threads: int) -> Infeasible | None:
        """Which latency budget no variant can meet; None if none is out of reach.

        Nothing is refused without a look of this run's own: it can only find higher peaks, and the
        device may have been disturbed when those that are known were measured.

        Args:
            budgets: what is asked.
            threads: the most that a variant may be served with.
        """
        source = self.source
        if source is None:
            return None
        bounds = Bounds.of(source.cost, source.peaks, threads)
        found = judge_feasibility(budgets, bounds)
        if found and not (self._looked or self.hurried):
            self._look(source)
            return self.infeasible(budgets, threads)
        return found

    def settle(self) -> None:
        """Measure in full what was glanced at, and keep it."""
        if self.source is not None and self.glanced:
            self._look(self.source)

    def _look(self, source: Bounds) -> None:
        """Measure the device's peaks; the higher ones are kept."""
        glanced, key = self.glanced, key_of(self._peak_parts())
        self.glanced, self._looked = False, True
        try:
            with self._turn():
                seen = self._measured(SECONDS)
            peaks = source.peaks.either(seen)
            if glanced:
                peaks = replace(peaks, bandwidth_gbs=seen.bandwidth_gbs)
            self.source = Bounds.of(source.cost, peaks, self.threads)
            if self.store is not None:
                self.store.drop(key)
            self._keep(key, asdict(peaks), "peaks of this device")
        except Exception as error:  # noqa: BLE001  as above
            self._give_up(error)
        finally:
            self.close()

    def _turn(self) -> contextlib.AbstractContextManager[None]:
        """Alone on the device, unless another run takes longer than a time limit could bear."""
        if self.store is None:
            return contextlib.nullcontext()
        return self.store.turns.turn(shared=False, deadline=time.monotonic() + MEASURE_S)

    def bound(self, model: Model, chain: Chain) -> float | None:
        """The least milliseconds of an artefact in the runtime and precision that serve it."""
        source = self.source
        if source is None or (model.format != "onnx" and changes_architecture(chain)):
            return None
        try:
            # Compiled forms cannot be counted: they hold the source's operations, in any precision.
            cost = self._cost(model) if model.format == "onnx" else source.cost
            threads = int(dict(model.config).get(THREADS, self.threads))
            return lower_bound(cost, source.peaks, threads, _precision(model, chain, cost))
        except Exception:  # noqa: BLE001  as above; the variant itself is judged by its calls
            return None

    def checked(self, row: VariantReport, bound: float | None) -> VariantReport:
        """A row with its bound; one that was beaten is no bound, and the peaks are forgotten."""
        if bound is None or row.latency is None or row.latency.p50_ms >= bound:
            return replace(row, bound_ms=bound)
        self.notes.append(
            f"{row.chain} is faster than its bound: this device was slow when its peaks were "
            "measured; they are measured again in the next run"
        )
        if self.store is not None:
            self.store.drop(key_of(self._peak_parts()))
        return row

    def skipped(self, chains: Sequence[Chain], found: Infeasible) -> list[VariantReport]:
        """Rows of what is not built, as its budget is out of reach."""
        return [
            VariantReport(
                chain=str(chain),
                runtime=chain.runtime,
                status="skipped",
                reason=f"not built: {_no_faster(bound)}, so that {found.budget} is out of reach",
                bound_ms=bound,
            )
            for chain in chains
            for bound in [self.planned(chain)]
        ]

    def planned(self, chain: Chain) -> float | None:
        """The same of a chain that was not built, in the narrowest precision that it names."""
        if self.source is None or changes_architecture(chain):
            return None
        precision: Precision = "float32"
        for word, narrower in _NARROWER:
            precision = narrower if word in str(chain) else precision
        threads = own_threads(chain) or self.threads
        return Bounds.of(self.source.cost, self.source.peaks, threads).ms.get(precision)

    def close(self) -> None:
        """End the process that counts; the next model starts another."""
        counting, self._counting = self._counting, None
        if counting is not None:  # what waits must not begin in a new process
            counting.shutdown(wait=False, cancel_futures=True)
        self._child.close()
        if counting is not None:
            counting.shutdown()
            self._child.close()

    def _cost(self, model: Model) -> Cost:
        """What a call of a model needs; it is counted once."""
        if model.digest not in self._costs:
            self._costs[model.digest] = self._counted(model)
        return self._costs[model.digest]

    def _counted(self, model: Model) -> Cost:
        shapes = {name: [str(a.dtype), *a.shape] for name, a in self._sample.items()}
        what = {"cost": COST_VERSION, "model": model.digest, "inputs": shapes}
        key = key_of({**what, "onnxruntime": self.versions.get("onnxruntime")})
        kept = self.store.document(key) if self.store else None
        if kept is not None:
            return Cost.from_json(kept)
        cost = self._timed(COUNT_S, count_cost, model.path, self._sample)
        self._keep(key, asdict(cost), f"operations of {model.digest[:12]}")
        return cost

    def _known_peaks(self) -> Peaks | None:
        return self._kept_peaks(self._peak_parts())

    def _glance(self) -> Peaks:
        """Peaks of one round; those of an earlier run, if it was ended before it looked longer."""
        parts = {**self._peak_parts(), "glance": True}
        # Who has no time to look longer must not be refused by a glance.
        peaks = None if self.hurried else self._kept_peaks(parts)
        if peaks is None:
            peaks = self._measured(GLANCE_S)
            self._keep(key_of(parts), asdict(peaks), "peaks of this device, at a glance")
        return peaks

    def _kept_peaks(self, parts: Mapping[str, Any]) -> Peaks | None:
        text = self.store.document(key_of(parts)) if self.store else None
        return None if text is None else Peaks(**json.loads(text))

    def _measured(self, seconds: float) -> Peaks:
        if self.hurried:
            raise InputError("the time limit leaves no time to measure what this device can do")
        device = self.device
        return self._timed(MEASURE_S, measure_peaks, device.isa, device.architecture, seconds)

    def _timed(self, most: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What a function gives in the child, which ends if that takes more seconds."""
        return self._child.call(_in_time, most, partial(function, *args, **kwargs))

    def _give_up(self, error: Exception) -> None:
        self.source = None
        self.notes.append(f"no bound of the latency is known: {first_cause(error)}")

    def _peak_parts(self) -> dict[str, Any]:
        libraries = {name: self.versions.get(name) for name in PACKAGES}
        return {"peaks": PEAKS_VERSION, "device": asdict(self.device), "versions": libraries}

    def _keep(self, key: str, value: dict[str, Any], what: str) -> None:
        if self.store is not None:
            self.store.put(key, json.dumps(value).encode(), {"what": what})
            self.store.release(key)


def _no_faster(bound: float | None) -> str:
    least = "the least bound" if bound is None else format_ns(bound * 1e6)
    return f"a call cannot take less than {least}"


def _in_time(seconds: int, function: Callable[[], R]) -> R:
    signal.alarm(seconds)  # its default action ends the process, wherever it hangs
    try:
        return function()
    finally:
        signal.alarm(0)


# Words in a chain, and the precision that each of them brings; the narrowest last.
_NARROWER: tuple[tuple[str, Precision], ...] = (
    ("fp16", "float16"),
    ("bf16", "bfloat16"),
    ("int8", "int8"),
    ("bits=4", "int4"),
)


def changes_architecture(chain: Chain) -> bool:
    """Whether a chain may leave fewer operations, so that the source's bound is not its own."""
    return any(step.name not in _SAME_OPERATIONS for step in chain.passes)


def own_threads(chain: Chain) -> int:
    """How many threads a chain asks for itself; 0 if it takes what is given."""
    return max((step.threads for step in chain.passes if isinstance(step, Session)), default=0)


def typical(samples: Dataset) -> dict[str, Array]:
    """The inputs of one call than which most others are no smaller; see ``SMALLER``."""
    sizes = [sum(a.size for a in samples.sample(i).values()) for i in range(len(samples))]
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    return dict(samples.sample(order[int(SMALLER * len(order))]))


def _precision(model: Model, chain: Chain, cost: Cost) -> Precision:
    """What a runtime may compute the graph's unquantized products in, at the narrowest."""
    if model.format != "onnx":
        return "int4"
    if chain.runtime == DEFAULT_RUNTIME:
        return "float16" if cost.half else "float32"
    return _HINTS.get(dict(model.config).get("INFERENCE_PRECISION_HINT", "f32"), "int4")
