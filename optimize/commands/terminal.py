"""What the commands share: who is told how a run goes on, how its result is printed, and exits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from optimize.errors import EXIT_INTERNAL, first_cause

if TYPE_CHECKING:
    from rich.console import Console

    from optimize.observer import Observer
    from optimize.results.report import Result


@contextlib.contextmanager
def observed(silent: bool, verbose: bool) -> Iterator[Observer]:
    """Who is told how it goes on; a metric that prints must not spoil what is read from us."""
    from rich.console import Console

    from optimize.commands.console import Bar, Lines
    from optimize.observer import Silent

    stderr = Console(stderr=True)
    with contextlib.redirect_stdout(sys.stderr):
        if silent:
            yield Silent()
            return
        shown = Bar(stderr) if stderr.is_terminal and not verbose else Lines(stderr, verbose)
        try:
            yield shown
        finally:
            shown.close()


def finish(result: Result, json: bool, quiet: bool) -> None:
    """Print a result, and exit by it."""
    from optimize.commands.console import answer, show
    from optimize.reports.folder import shareable

    if json:
        typer.echo(shareable(result.report).to_json())
    elif quiet:
        typer.echo(answer(result))
    else:
        show(result, table_console())
    if result.error is not None and result.exit_code == EXIT_INTERNAL:
        place = result.folder / "error.txt" if result.folder else saved(result.error)
        say(f"internal error: {first_cause(result.error)}; see {place}")
    raise typer.Exit(result.exit_code)


def table_console() -> Console:
    """Where a table is printed."""
    from rich.console import Console

    # A log has no width of its own: never cut a figure there.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def saved(error: BaseException) -> str:
    """Save the traceback of an error that no result folder holds; where it lies."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="optimize-error-", suffix=".txt", delete=False
    ) as file:
        traceback.print_exception(error, file=file)
    return file.name


def say(sentence: str) -> None:
    """One line on stderr."""
    print(f"optimize: {' '.join(sentence.split())}", file=sys.stderr)
