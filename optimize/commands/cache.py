"""``optimize cache``: look at what is kept between runs, and remove it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from optimize.cache.store import Store

Folder = Annotated[
    str | None, typer.Option("--cache", help="Its folder.  [default: ~/.cache/optimize]")
]

cache_app = typer.Typer(help="What is kept between runs: list it, measure it, remove it.")


@cache_app.command("ls")
def list_command(cache: Folder = None) -> None:
    """Every entry, the last used first: key, size, when it was used, what it is."""
    from optimize.budgets.budget import format_bytes

    with _open(cache) as store:
        for entry in reversed(store.entries()):
            used = datetime.fromtimestamp(entry.used_ns / 1e9).isoformat(" ", "seconds")
            what = entry.meta.get("what", "")
            typer.echo(f"{entry.key[:12]}  {format_bytes(entry.size_bytes):>9}  {used}  {what}")


@cache_app.command("size")
def size_command(cache: Folder = None) -> None:
    """How full it is."""
    from optimize.budgets.budget import format_bytes

    with _open(cache) as store:
        count, size, limit = store.sizes()
        filled = f"{format_bytes(size)} of {format_bytes(limit)}"
        typer.echo(f"{_entries(count)}, {filled} in {store.folder}")


@cache_app.command("clear")
def clear_command(cache: Folder = None) -> None:
    """Remove every entry that no run is using, and what unfinished training has left."""
    from optimize.budgets.budget import format_bytes

    with _open(cache) as store:
        cleared = store.clear()
    removed = f"{_entries(cleared.entries)}, {format_bytes(cleared.size_bytes)}"
    ended = cleared.trainings
    trained = f", and {ended} unfinished training{'' if ended == 1 else 's'}" if ended else ""
    kept = f"; {cleared.in_use} in use by a run left" if cleared.in_use else ""
    typer.echo(f"removed {removed}{trained}{kept}")


def _open(cache: str | None) -> Store:
    from optimize.cache.store import Store, default_folder

    return Store(
        Path(cache) if cache else default_folder(), report=lambda s: typer.echo(s, err=True)
    )


def _entries(count: int) -> str:
    return f"{count} {'entry' if count == 1 else 'entries'}"
