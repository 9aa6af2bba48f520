"""``optimize check``: the build step. Heavy imports wait for a run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimize.commands.options import Cache, NoCache, Quiet, Verbose, refuse_empty
from optimize.commands.terminal import observed, table_console
from optimize.errors import EXIT_USAGE

if TYPE_CHECKING:
    from optimize.gate.check import Asked, Checked
    from optimize.gate.config import ConfigError, Declared
    from optimize.gate.outcome import Outcome


def check_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Of models; all without.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="The file.  [default: optimize.toml, or [tool.optimize] in pyproject.toml]"
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Whose budgets count; here: those of this device.  [default: all]"
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A baseline: a result, or a folder with one a model."),
    ] = None,
    allow_new: Annotated[
        bool, typer.Option("--allow-new", help="Let models pass that have no baseline.")
    ] = False,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write every result to DIR/NAME.")
    ] = None,
    junit: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write the outcomes as JUnit XML.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the file's JSON Schema, for editors, and exit.")
    ] = False,
    budget: Annotated[
        list[str] | None, typer.Option(metavar="Q=LIMIT", help="Instead of all declared budgets.")
    ] = None,
    floor: Annotated[str | None, typer.Option(help="Instead of the declared floor.")] = None,
    chain: Annotated[list[str] | None, typer.Option(help="Instead of the declared chains.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Instead of the declared runtime.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime.")] = None,
    cpus: Annotated[str | None, typer.Option(help="Cores for the model, e.g. 0,2-3.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Of a kept verdict.")] = None,
    time_limit: Annotated[str | None, typer.Option(help="Of each run: 90s, 10m or none.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Timed calls of one variant.")] = None,
    tolerance: Annotated[
        str | None, typer.Option(help="How much slower than the baseline.  [default: 10%]")
    ] = None,
    metric_tolerance: Annotated[
        str | None, typer.Option(help="How much of the metric may be lost: 0.01, 1% or none.")
    ] = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge all declared models, print one table, and exit by the worst outcome.

    Exit codes, the worst first: 130 interrupted, 2 unusable input, 70 internal error, 1 a promise
    is shown to be missed, 3 one is undecided or not judged on this device, 0 all are kept.
    """
    refuse_empty(dict(locals()))
    if schema:
        from optimize.gate.schema import json_schema

        typer.echo(json_schema(), nl=False)
        return
    from optimize.gate.cases import Overrides
    from optimize.gate.check import Asked
    from optimize.gate.config import find
    from optimize.request import cache_folder

    given = {
        "budget": budget,
        "floor": floor,
        "chains": chain,
        "runtime": runtime.split(",") if runtime else None,
        "threads": threads,
        "cpus": cpus,
        "confidence": confidence,
        "time_limit": time_limit,
        "max_samples": max_samples,
        "tolerance": tolerance,
        "metric_tolerance": metric_tolerance,
    }
    declared = _read(find(config))
    overrides = Overrides(
        _validated({name: value for name, value in given.items() if value is not None}),
        cache_folder(cache, no_cache),
        Path(out) if out else None,
    )
    asked = Asked(
        tuple(names or ()),
        tuple(target or ()),
        overrides,
        Path(against) if against else None,
        allow_new,
    )
    if junit is not None:
        _refuse_unwritable(Path(junit))
    checked = _run(declared, asked, quiet, verbose)
    _tell(checked, declared, Path(junit) if junit else None, quiet)
    raise typer.Exit(checked.exit_code)


def _read(file: Path) -> Declared:
    """The declared file; each of its mistakes is a line of its own."""
    from optimize.gate.config import ConfigError, read

    try:
        return read(file)
    except ConfigError as error:
        for fault in error.faults:
            typer.echo(f"optimize: {fault}", err=True)
        _annotate_faults(error)
        raise typer.Exit(EXIT_USAGE) from None


def _annotate_faults(error: ConfigError) -> None:
    from optimize.gate.github import faults

    if _on_github():
        for line in faults(error.faults):
            typer.echo(line)


def _validated(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line by the rules of the file.

    Raises:
        InputError: naming the option.
    """
    from pydantic import ValidationError

    from optimize.errors import InputError
    from optimize.gate.schema import Options

    try:
        read = Options.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("chains", "chain").replace("_", "-")
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise InputError(f"--{option}: {reason}") from None
    return {name: getattr(read, name) for name in options}


def _run(declared: Declared, asked: Asked, quiet: bool, verbose: bool) -> Checked:
    from optimize.gate.check import check

    with observed(quiet, verbose) as observer:

        def done(outcome: Outcome) -> None:
            observer.note(f"{outcome.case.label}: {outcome.state}")

        return check(declared, asked, observer, done)


def _tell(checked: Checked, declared: Declared, junit: Path | None, quiet: bool) -> None:
    """Put the outcomes where they are looked for."""
    from optimize.errors import InputError
    from optimize.gate import github
    from optimize.gate.junit import junit as document
    from optimize.gate.table import show
    from optimize.gate.words import answer, reasons

    if quiet:
        for line in reasons(checked):
            typer.echo(line)
        typer.echo(answer(checked))
    else:
        show(checked, table_console())
    if _on_github():
        for line in github.errors(checked, declared.file):
            typer.echo(line)
    if place := os.environ.get("GITHUB_STEP_SUMMARY"):
        _summarize(Path(place), github.summary(checked))
    if junit is not None:
        try:
            junit.parent.mkdir(parents=True, exist_ok=True)
            junit.write_bytes(document(checked))
        except OSError as error:
            raise InputError(f"--junit {junit} cannot be written: {error.strerror}") from error


def _summarize(file: Path, text: str) -> None:
    """Append to the job's summary; that it cannot be shown is no verdict on the models."""
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        typer.echo(f"optimize: the summary cannot be written: {error.strerror}", err=True)


def _refuse_unwritable(junit: Path) -> None:
    """Say before the runs that their report could not be written after them."""
    from optimize.errors import InputError

    parent = junit.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:  # permissions do not tell of everything, such as a folder of /proc
        if junit.is_file() or junit.is_dir():
            junit.open("ab").close()
        elif not junit.exists():  # opening a pipe would wait for its reader
            tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise InputError(f"--junit {junit} cannot be written: {error.strerror}") from error


def _on_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"
