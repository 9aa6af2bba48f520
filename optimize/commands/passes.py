"""``optimize passes``: what chains can be made of."""

from __future__ import annotations

import typer


def passes_command() -> None:
    """Every pass: what it does, its options and defaults, what it needs."""
    from optimize.passes.chain import options
    from optimize.passes.registry import load_pass, pass_names

    for name in pass_names():
        cls = load_pass(name)
        exact = f", outputs kept within {cls.tolerance:g}" if cls.tolerance is not None else ""
        typer.echo(f"{name}: {cls.summary}{exact}")
        for option in options(cls):
            typer.echo(f"    {option.name}={option.default}  ({option.type})")
        if cls.needs:
            typer.echo(f"    needs: {cls.needs}")
