"""``optimize verify``: a second verdict on a result folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimize.commands.options import (
    Cache,
    Data,
    Json,
    MetricName,
    NoCache,
    Quiet,
    Threads,
    TimeLimit,
    TrustPickle,
    Verbose,
    refuse_empty,
)
from optimize.commands.terminal import finish, observed


def verify_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A result folder.")],
    source: Annotated[str | None, typer.Option(help="The source.  [default: where it was]")] = None,
    data: Data = None,
    metric: MetricName = None,
    threads: Threads = None,
    time_limit: TimeLimit = "10m",
    trust_pickle: TrustPickle = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge a result folder again, on this machine."""
    from optimize.request import cache_folder, parse_duration
    from optimize.run.verify import Overrides, verify

    refuse_empty(
        {"folder": folder, "source": source, "data": data, "metric": metric, "cache": cache}
    )
    limit = parse_duration(time_limit)
    overrides = Overrides(
        source, data, metric, threads, limit,
        unlimited=limit is None, trust_pickle=trust_pickle, cache=cache_folder(cache, no_cache),
    )  # fmt: skip
    with observed(json or quiet, verbose) as observer:
        result = verify(Path(folder), overrides, observer)
    finish(result, json, quiet)
