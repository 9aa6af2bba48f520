"""``optimize report``: print a result, and draw its pages again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimize.commands.options import refuse_empty
from optimize.commands.terminal import table_console


def report_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A result folder.")],
    out: Annotated[
        str | None, typer.Option(help="Where to put the files.  [default: the result folder]")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Show report.html in the browser.")
    ] = False,
) -> None:
    """Print a result, and draw report.html, report.md and pictures of it again."""
    from optimize.commands.console import show
    from optimize.reports.folder import drawn, read, result
    from optimize.reports.page import PAGE
    from optimize.reports.terminal import plot
    from optimize.results import output

    refuse_empty({"folder": folder, "out": out})
    view, screen = read(Path(folder)), table_console()
    show(result(Path(folder)), screen)
    screen.print(plot(view), soft_wrap=not screen.is_terminal)
    place = Path(out or folder)
    output.add(place, drawn(view))
    typer.echo(f"Drawn: {place / PAGE}")
    if open_page:
        typer.launch(str(place / PAGE))
