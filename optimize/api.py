"""The pipeline as one typed call."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

from pydantic import ConfigDict, SkipValidation, ValidationError, validate_call

from optimize.budgets.budget import Budget, Floor
from optimize.errors import InputError
from optimize.models.model import TensorSpec
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.observer import Observer
from optimize.passes.chain import Chain
from optimize.request import (
    DEFAULT_TIME_LIMIT_S,
    Request,
    cache_folder,
    parse_chains,
    parse_cpus,
    parse_input,
    parse_runtimes,
)
from optimize.results.choose import Objective
from optimize.results.report import Result
from optimize.run.pipeline import run

P = ParamSpec("P")
T = TypeVar("T")


def _checked(function: Callable[P, T]) -> Callable[P, T]:
    """Refuse arguments of other types than are annotated, in one sentence."""
    config = ConfigDict(arbitrary_types_allowed=True)
    checked: Callable[..., T] = validate_call(config=config)(function)
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs).arguments  # or Python's own TypeError
        try:
            return checked(**given)
        except ValidationError as error:
            if error.title != function.__name__:
                raise
            name = str(error.errors()[0]["loc"][0])
            wanted = signature.parameters[name].annotation
            raise InputError(f"{name}={given[name]!r:.80} is none of {wanted}") from error

    return call


@_checked
def optimize(
    model: str | os.PathLike[str],
    budget: str | Budget | Sequence[str | Budget],
    *,
    floor: str | Floor | None = None,
    data: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    train: str | os.PathLike[str] | None = None,
    metric: str | None = None,
    chains: str | Sequence[str | Chain] = (),
    prune: float | str | None = None,
    distill: str | None = None,
    student: str | None = None,
    runtime: str = DEFAULT_RUNTIME,
    objective: Objective = "latency",
    threads: int | None = None,
    cpus: str | None = None,
    batch: int | None = None,
    confidence: float = 0.99,
    time_limit_s: float | None = DEFAULT_TIME_LIMIT_S,
    inputs: Sequence[str | TensorSpec] = (),
    arch: str | None = None,
    trust_pickle: bool = False,
    cache: str | os.PathLike[str] | None = None,
    no_cache: bool = False,
    fresh: bool = False,
    tune_session: bool = False,
    trials: int = 0,
    jobs: int | None = None,
    force: bool = False,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strict_floor: bool = False,
    max_samples: int = 5000,
    pre: str | None = None,
    post: str | None = None,
    observer: Annotated[Observer | None, SkipValidation] = None,
) -> Result:
    """Optimize ``model`` and return what the command reports.

    Every argument means what the option of the same name means; texts are parsed as there.

    Returns:
        The result; ``result.model`` is the path of the artefact, None if no variant was kept.

    Raises:
        InputError: what was given cannot be used; nothing is written.
        Exception: an internal error, after what was finished has been reported in the folder.
        KeyboardInterrupt: likewise.
    """
    budgets = [budget] if isinstance(budget, (str, Budget)) else list(budget)
    request = Request(
        model=Path(model),
        budgets=tuple(Budget.parse(b) if isinstance(b, str) else b for b in budgets),
        floor=Floor.parse(floor) if isinstance(floor, str) else floor,
        data=None if data is None else os.fspath(data),
        calibration=None if calibration is None else os.fspath(calibration),
        train=None if train is None else os.fspath(train),
        metric=metric,
        chains=parse_chains([str(c) for c in ([chains] if isinstance(chains, str) else chains)]),
        runtimes=parse_runtimes(runtime),
        objective=objective,
        threads=threads,
        cpus=parse_cpus(cpus) if cpus else None,
        batch=batch,
        confidence=confidence,
        time_limit_s=time_limit_s,
        inputs=tuple(parse_input(i) if isinstance(i, str) else i for i in inputs),
        arch=arch,
        trust_pickle=trust_pickle,
        cache=cache_folder(None if cache is None else os.fspath(cache), no_cache),
        fresh=fresh,
        tune_session=tune_session,
        trials=trials,
        jobs=jobs,
        force=force,
        out=None if out is None else Path(out),
        seed=seed,
        strict_floor=strict_floor,
        max_samples=max_samples,
        pre=pre,
        post=post,
        prune=None if prune is None else str(prune),
        distill=distill,
        student=student,
    )
    result = run(request, observer)
    if result.error is not None:
        result.error.add_note(f"What was finished is reported in {result.folder}.")
        raise result.error
    return result
