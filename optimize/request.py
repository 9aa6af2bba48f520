"""What a caller asks for, checked and typed, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimize.budgets.budget import PERCENTILES, Budget, Floor
from optimize.errors import InputError
from optimize.models.model import TensorSpec
from optimize.models.runtimes import DEFAULT_RUNTIME, find_runtime, runtime_names
from optimize.models.usercode import is_reference
from optimize.passes.chain import Chain
from optimize.passes.session import MOST_THREADS
from optimize.results.choose import Objective
from optimize.search.space import RUNTIMES as SEARCHED
from optimize.worker import granted_cpus

DEFAULT_TIME_LIMIT_S = 600.0
_AXIS = r"(?:[0-9]+|\?|[A-Za-wyz_][A-Za-wyz_0-9]*)"
_INPUT = re.compile(rf"([^=\s]+)=({_AXIS}(?:x{_AXIS})*|scalar):(\w+)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_LONGEST_S = 1e9
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Request:
    """One run.

    Attributes:
        model: the source.
        budgets: at least one; all must hold.
        floor: None for the metric's default floor.
        data, calibration: where samples are read from; None for none.
        metric: a metric's name or ``file.py:function``; None for the default.
        chains: only these; None for the built-in plan.
        everything: whether the plan holds every strategy that applies, and all are measured.
        strategies: only chains of the plan that go by one of these names; empty for all.
        runtimes: those that may serve.
        objective: what to pick by among the kept.
        threads: None for the cores that are granted.
        cpus: numbers of the cores that workers may use; None for all that are granted.
        batch: samples a call; None for the model's own, or 1.
        confidence: of a kept verdict.
        time_limit_s: for the whole run; None for no limit.
        inputs: types and shapes that the source does not tell.
        arch: ``file.py:factory`` for weights without an architecture.
        trust_pickle: whether a pickle may run code.
        out: the result folder; None for ``<model>.optimized``, or for none with ``as_is``.
        seed: for shares, order and synthetic inputs.
        strict_floor: whether the floor must hold at the worse end of the interval.
        max_samples: timed calls of one variant.
        pre, post: ``file.py:function`` around every call; they count towards the latency.
        as_is: whether models are judged as they are, without passes.
        rivals: further models to judge beside ``model``, with ``as_is``.
        labels: names for ``model`` and ``rivals``; empty for their files' names.
        cache: the folder that work is kept in between runs; None for none.
        tune_session: whether threads and session options of the best variant are tried, too.
        trials: chains to try beyond the plan, proposed by what is known so far.
        jobs: passes that may run at once; None for what cores and memory allow.
        fresh: whether what earlier runs measured is forgotten.
        records: whether what is measured is kept and recalled at all.
        force: whether to go on where the budget is below the lower bound of every variant.
        train: samples to train on; None for those to calibrate on.
        distill: ``file.py:function``, a training of the user's own.
        student: ``file.py:factory``, another architecture to train from the source.
        prune: a ratio, or the percentile whose budget decides: ``p99``.
        reference_only: whether ``model`` is timed for comparison and cannot be chosen.
    """

    model: Path
    budgets: tuple[Budget, ...]
    floor: Floor | None = None
    data: str | None = None
    calibration: str | None = None
    metric: str | None = None
    chains: tuple[Chain, ...] | None = None
    everything: bool = False
    strategies: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = (DEFAULT_RUNTIME,)
    objective: Objective = "latency"
    threads: int | None = None
    cpus: tuple[int, ...] | None = None
    batch: int | None = None
    confidence: float = 0.99
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S
    inputs: tuple[TensorSpec, ...] = ()
    arch: str | None = None
    trust_pickle: bool = False
    out: Path | None = None
    seed: int = 0
    strict_floor: bool = False
    max_samples: int = 5000
    pre: str | None = None
    post: str | None = None
    as_is: bool = False
    rivals: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    reference_only: bool = False
    cache: Path | None = None
    jobs: int | None = None
    fresh: bool = False
    records: bool = True
    force: bool = False
    train: str | None = None
    distill: str | None = None
    student: str | None = None
    prune: str | None = None
    tune_session: bool = False
    trials: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything.

        Raises:
            InputError: a value is out of its range.
        """
        if not self.budgets and not self.everything:
            raise InputError("no budget is given; add for example --budget p99=20ms")
        names = [budget.quantity for budget in self.budgets]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise InputError(f"budget {twice} is given twice")
        if not 0.5 < self.confidence < 1:
            raise InputError(f"--confidence {self.confidence:g} is not between 0.5 and 1")
        for option, value in (
            ("--threads", self.threads),
            ("--batch", self.batch),
            ("--max-samples", self.max_samples),
            ("--jobs", self.jobs),
        ):
            if value is not None and value < 1:
                raise InputError(f"{option} {value} is not at least 1")
        self._check_threads()
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise InputError(f"--time-limit {self.time_limit_s:g} s is not positive")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed} is negative")
        if self.trials < 0:
            raise InputError(f"--trials {self.trials} is negative")
        if self.trials and not set(self.runtimes) & set(SEARCHED):
            raise InputError(f"--trials searches for {' and '.join(SEARCHED)}; see --runtime")
        if self.tune_session and DEFAULT_RUNTIME not in self.runtimes:
            raise InputError(f"--tune-session tunes {DEFAULT_RUNTIME}, which --runtime leaves out")
        if self.objective not in ("latency", "accuracy", "size"):
            raise InputError(f"--objective {self.objective} is none of latency, accuracy, size")
        if self.chains and self.strategies:
            raise InputError(
                "--strategies chooses from the built-in plan, which --chain replaces; give one"
            )
        if self.calibration and not self.data:
            raise InputError("--calibration needs --data, on which the accuracy is evaluated")
        self._check_training()
        if self.pre and not self.data:
            raise InputError("--pre needs --data, which holds what it takes")
        if self.pre and (self.batch or 1) > 1:
            raise InputError("--pre takes one sample at a time; leave --batch out")

    def _check_threads(self) -> None:
        cores = len(granted_cpus())
        if self.threads is not None and self.threads > MOST_THREADS * cores:
            raise InputError(
                f"--threads {self.threads} is more than {MOST_THREADS} for each of the "
                f"{cores} cores granted here"
            )

    def _check_training(self) -> None:
        for option, text in (("--distill", self.distill), ("--student", self.student)):
            if text and not is_reference(text):
                raise InputError(f"{option} {text!r} is not of the form file.py:function")
        given = {"--distill": self.distill, "--student": self.student, "--prune": self.prune}
        options = " and ".join(option for option, text in given.items() if text)
        if options and self.chains:
            raise InputError(
                f"{options} would add to the built-in plan, which --chain replaces; "
                "write student, prune and distill as passes of the chain"
            )
        if (options or self.train) and not self.data:
            raise InputError(
                f"{options or '--train'} needs --data, which the results are judged on"
            )
        if self.prune:
            self._check_prune(self.prune)

    def _check_prune(self, text: str) -> None:
        if text in PERCENTILES:
            if text not in [budget.quantity for budget in self.budgets]:
                raise InputError(f"--prune {text} needs a budget on it, as --budget {text}=20ms")
            return
        try:
            ratio = float(text)
        except ValueError:
            ratio = 0.0
        if not 0 < ratio < 1:
            raise InputError(
                f"--prune {text!r} is neither a share between 0 and 1 nor one of "
                f"{', '.join(PERCENTILES)}"
            )

    @property
    def folder(self) -> Path | None:
        """Where the result goes; None for nowhere."""
        if self.out is not None or self.as_is:
            return self.out
        name = self.model.resolve().name if self.model.is_dir() else self.model.stem
        return self.model.resolve().parent / f"{name}.optimized"


def parse_input(text: str) -> TensorSpec:
    """Read ``name=1x3x224x224:float32``; a word or ``?`` for an axis is one that may vary.

    Raises:
        InputError: the text is no input specification.
    """
    match = _INPUT.fullmatch(text.strip())
    example = "write for example image=Nx3x224x224:float32"
    if match is None:
        raise InputError(f"--input {text!r} is not of the form name=SHAPE:TYPE; {example}")
    name, axes, dtype = match.groups()
    import numpy as np

    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "biuf":
        raise InputError(f"--input {text!r}: {dtype!r} is no element type; {example}")
    shape: tuple[int | str | None, ...] = ()
    if axes != "scalar":
        shape = tuple(int(a) if a.isdigit() else None if a == "?" else a for a in axes.split("x"))
    if 0 in shape:
        raise InputError(f"--input {text!r} has an axis of length 0")
    return TensorSpec(name, kind.name, shape)


def spec_text(spec: TensorSpec) -> str:
    """Write a specification as :func:`parse_input` reads it."""
    # A symbol with an x in it would be read as two axes; any symbol means the same: it may vary.
    named = ["?" if dim is None or "x" in str(dim) else str(dim) for dim in spec.shape or ()]
    axes = "x".join(named)
    return f"{spec.name}={axes or 'scalar'}:{spec.dtype}"


def parse_duration(text: str) -> float | None:
    """Read ``90s``, ``10m``, ``1.5h`` or ``none`` as seconds.

    Raises:
        InputError: the text is no duration.
    """
    if text.strip() == "none":
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None or not 0 < float(match.group(1)) < _LONGEST_S:
        raise InputError(
            f"--time-limit {text!r} is no duration; write for example 90s, 10m or none"
        )
    return float(match.group(1)) * _SECONDS[match.group(2)]


def cache_folder(given: str | None, none: bool) -> Path | None:
    """Where results of passes are kept: the folder given, the platform's, or nowhere."""
    from optimize.cache.store import default_folder

    if none:
        return None
    return Path(given) if given else default_folder()


def parse_cpus(text: str) -> tuple[int, ...]:
    """Read ``0,2-3`` as numbers of cores.

    Raises:
        InputError: the text is no such list, or names cores that this process is not granted.
    """
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text.strip()):
        raise InputError(f"--cpus {text!r} is no list of cores; write for example 0,2-3")
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    granted = granted_cpus()
    strange = sorted(found - set(granted))
    if strange or not found:
        listed = ", ".join(map(str, granted))
        raise InputError(
            f"--cpus {text!r}: core {strange[0] if strange else text} is not granted "
            f"here; there are {listed}"
        )
    return tuple(sorted(found))


def parse_runtimes(text: str) -> tuple[str, ...]:
    """Read ``openvino``, ``onnxruntime,openvino`` or ``all``: all that are installed.

    Raises:
        InputError: there is no such runtime, or it is not installed.
    """
    if text.strip() == "all":
        return tuple(name for name in runtime_names() if find_runtime(name).installed)
    runtimes = [find_runtime(name.strip()) for name in text.split(",")]
    for runtime in runtimes:
        if not runtime.installed:
            raise InputError(f"--runtime {runtime.name}: {runtime.missing}")
    return tuple(dict.fromkeys(runtime.name for runtime in runtimes))


def parse_strategies(text: str | None) -> tuple[str, ...]:
    """Read ``static,fp16``; empty for None."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def parse_chains(texts: Sequence[str]) -> tuple[Chain, ...] | None:
    """Read chains, dropping repetitions; None if there are none.

    Raises:
        InputError: a text is no chain, or its runtime is not installed.
    """
    chains = {str(chain): chain for chain in map(Chain.parse, texts)}
    for chain in chains.values():
        runtime = find_runtime(chain.runtime)
        if not runtime.installed:
            raise InputError(f"--chain {chain}: {runtime.missing}")
    return tuple(chains.values()) or None
