"""``optimize MODEL``, ``compare`` and ``profile``. Heavy imports wait for a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimize.commands.options import (
    Arch,
    Batch,
    Budgets,
    Cache,
    Calibration,
    ChainTexts,
    Confidence,
    Cpus,
    Data,
    DistillHook,
    FloorText,
    Force,
    Fresh,
    Inputs,
    Jobs,
    Json,
    MaxSamples,
    MetricName,
    NoCache,
    ObjectiveName,
    Out,
    Post,
    Pre,
    PruneTo,
    Quiet,
    RuntimeNames,
    Seed,
    Strategies,
    StrictFloor,
    StudentArch,
    Threads,
    TimeLimit,
    Train,
    Trials,
    TrustPickle,
    TuneSession,
    Verbose,
    refuse_empty,
)
from optimize.commands.terminal import finish, observed

if TYPE_CHECKING:
    from collections.abc import Callable

    from optimize.budgets.budget import Budget, Floor


def run_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="TorchScript, .pt2, weights, ONNX, or a Hugging Face folder."
        ),
    ],
    budget: Budgets = None,
    floor: FloorText = None,
    data: Data = None,
    calibration: Calibration = None,
    train: Train = None,
    metric: MetricName = None,
    chain: ChainTexts = None,
    prune: PruneTo = None,
    distill: DistillHook = None,
    student: StudentArch = None,
    runtime: RuntimeNames = "onnxruntime",
    objective: ObjectiveName = "latency",
    threads: Threads = None,
    cpus: Cpus = None,
    batch: Batch = None,
    confidence: Confidence = 0.99,
    time_limit: TimeLimit = "10m",
    max_samples: MaxSamples = 5000,
    strict_floor: StrictFloor = False,
    pre: Pre = None,
    post: Post = None,
    input: Inputs = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    fresh: Fresh = False,
    tune_session: TuneSession = False,
    trials: Trials = 0,
    jobs: Jobs = None,
    force: Force = False,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Optimize MODEL; keep only variants that meet every budget and the floor."""
    _optimize(dict(locals()))


def compare_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for optimize MODEL.")],
    budget: Budgets = None,
    floor: FloorText = None,
    data: Data = None,
    calibration: Calibration = None,
    train: Train = None,
    metric: MetricName = None,
    prune: PruneTo = None,
    distill: DistillHook = None,
    student: StudentArch = None,
    chain: ChainTexts = None,
    strategies: Strategies = None,
    runtime: RuntimeNames = "onnxruntime",
    objective: ObjectiveName = "latency",
    threads: Threads = None,
    cpus: Cpus = None,
    batch: Batch = None,
    confidence: Confidence = 0.99,
    time_limit: TimeLimit = "30m",
    max_samples: MaxSamples = 5000,
    strict_floor: StrictFloor = False,
    pre: Pre = None,
    post: Post = None,
    input: Inputs = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    fresh: Fresh = False,
    tune_session: TuneSession = False,
    trials: Trials = 0,
    jobs: Jobs = None,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Try every strategy that applies to MODEL, measure all of them, and show the frontier."""
    _optimize(dict(locals()), everything=True)


def profile_command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="The first is the reference.")
    ],
    budget: Budgets = None,
    floor: FloorText = None,
    data: Data = None,
    metric: MetricName = None,
    threads: Threads = None,
    cpus: Cpus = None,
    batch: Batch = None,
    confidence: Confidence = 0.99,
    time_limit: TimeLimit = "10m",
    max_samples: MaxSamples = 5000,
    strict_floor: StrictFloor = False,
    pre: Pre = None,
    post: Post = None,
    input: Inputs = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    fresh: Fresh = False,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge models as they are, side by side, without passes."""
    given = dict(locals())
    refuse_empty({"models": given["models"]})
    first, *rivals = given.pop("models")
    _optimize({"model": first, **given}, as_is=True, rivals=tuple(map(Path, rivals)))


def _optimize(given: dict[str, Any], **fixed: Any) -> None:
    """Turn a command's arguments, by name, into a request; run it, print, exit."""
    refuse_empty(given)
    given |= {"budget": _budgets(given["budget"]), "floor": _floor(given["floor"])}
    from optimize.request import (
        Request,
        cache_folder,
        parse_chains,
        parse_cpus,
        parse_duration,
        parse_input,
        parse_runtimes,
        parse_strategies,
    )

    json, quiet, verbose = (given.pop(name) for name in ("json", "quiet", "verbose"))
    given["cache"] = cache_folder(given["cache"], given.pop("no_cache"))
    read: dict[str, Callable[[Any], Any]] = {
        "model": Path,
        "chain": lambda texts: parse_chains(texts or ()),
        "runtime": parse_runtimes,
        "strategies": parse_strategies,
        "cpus": lambda text: parse_cpus(text) if text else None,
        "time_limit": parse_duration,
        "input": lambda texts: tuple(map(parse_input, texts or ())),
        "out": lambda text: Path(text) if text else None,
    }
    names = {
        "budget": "budgets",
        "chain": "chains",
        "runtime": "runtimes",
        "time_limit": "time_limit_s",
        "input": "inputs",
    }
    values = {
        names.get(name, name): read[name](value) if name in read else value
        for name, value in given.items()
    }
    request = Request(**values, **fixed)
    from optimize.run.pipeline import run

    with observed(json or quiet, verbose) as observer:
        result = run(request, observer)
    finish(result, json, quiet)


def _budgets(texts: list[str] | None) -> tuple[Budget, ...]:
    from optimize.budgets.budget import Budget

    return tuple(map(Budget.parse, texts or ()))


def _floor(text: str | None) -> Floor | None:
    from optimize.budgets.budget import Floor

    return Floor.parse(text) if text else None
