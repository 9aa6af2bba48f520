"""How a target is to serve a model: in its runtime, with its own options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from optimize.models.model import Model
from optimize.models.runtimes import find_runtime
from optimize.targets.base import Job, Settings
from optimize.worker import THREADS


def serving(
    model: Model,
    runtime: str,
    settings: Settings,
    inputs: Path,
    scratch: Path,
    pre: str | None = None,
    post: str | None = None,
) -> Job:
    """What a worker is to load.

    Args:
        model: its options, the number of threads among them, go before the settings.
        runtime: what serves it.
        settings: of the service in general; the provider is that of ``settings.runtime``.
        inputs: see :class:`Job`, as for all that follow.
        scratch: an empty folder.
        pre: before every call.
        post: after every call.
    """
    provider = settings.provider
    if runtime != settings.runtime:
        provider = find_runtime(runtime).provider
    own = replace(
        settings,
        runtime=runtime,
        provider=provider,
        threads=int(dict(model.config).get(THREADS, settings.threads)),
        config=model.config,
    )
    signature = model.signature
    names = tuple(s.name for s in signature.inputs), tuple(s.name for s in signature.outputs)
    return Job(model.path, inputs, scratch, own, names, pre, post)
