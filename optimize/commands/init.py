"""``optimize init``: a first ``optimize.toml``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def init_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for optimize MODEL.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="What to write.")] = "optimize.toml",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a first optimize.toml from what the model and the folder around it tell."""
    from optimize.errors import InputError
    from optimize.gate.starter import refuse_to_overwrite, starter
    from optimize.targets.local import LocalTarget

    file = Path(out)
    if not force:
        refuse_to_overwrite(file)
    source = Path(model)
    if not source.is_absolute() and file.parent != Path():
        source = Path(os.path.relpath(source, file.parent))
    text = starter(Path(model), source, LocalTarget().device())
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from None
    typer.echo(text, nl=False)
    typer.echo(f"\nWritten to {file}. Set the budget, then run: optimize check", err=True)
