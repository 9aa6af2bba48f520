"""The command: parse, call, print, exit. Nothing heavy is imported before a run begins."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from optimize import __version__
from optimize.errors import InputError, OptimizeError, first_cause

if TYPE_CHECKING:
    from optimize.report import Result
    from optimize.request import Request

EXIT_USAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 2, 70, 130
DEFAULT = "run"


class _DefaultCommand(TyperGroup):
    """``optimize MODEL`` runs the hidden default command; named commands stand beside it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--version",):
            args.insert(0, DEFAULT)
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_DefaultCommand, add_completion=False, rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"optimize {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Optimize a model under a latency budget and an accuracy floor."""


@app.command(
    DEFAULT,
    hidden=True,
    epilog=(
        "Exit codes: 0 a variant was kept, 1 none meets the budget and floor, 2 unusable input, "
        "3 none kept but some undecided, 70 internal error, 130 interrupted. "
        "Other commands: optimize passes. A file of that name is reached as ./passes."
    ),
)
def run_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="TorchScript, .pt2, weights, ONNX, or a Hugging Face folder."
        ),
    ],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="Q=LIMIT",
            help="p50|p90|p95|p99|p99.9=20ms or size=25MB; repeat: all must hold.",
        ),
    ] = None,
    floor: Annotated[
        str | None,
        typer.Option(help="METRIC=VALUE, drop=0.01 or drop=1%.  [default: drop=0.01; cosine=0.99]"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Samples: .npz, a folder of .npz, or file.py:function.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Samples to calibrate on.  [default: a fifth of --data]")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="top1, top5, f1, mae, rmse, cosine or file.py:function.")
    ] = None,
    chain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PASS,...", help="Only these chains, e.g. 'fold,fuse,int8{mode=dynamic}'."
        ),
    ] = None,
    objective: Annotated[str, typer.Option(help="latency, accuracy or size.")] = "latency",
    threads: Annotated[
        int | None, typer.Option(help="Threads of the runtime.  [default: the cores granted]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Samples a call.  [default: the model's own, or 1]")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of a kept verdict.")] = 0.99,
    time_limit: Annotated[str, typer.Option(help="90s, 10m or none.")] = "10m",
    input: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHAPE:TYPE",
            help="An input's shape, e.g. image=Nx3x224x224:float32.",
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="file.py:factory for weights without an architecture.")
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Let a pickled model run its code.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="[default: MODEL.optimized]")] = None,
    seed: Annotated[int, typer.Option(help="For shares and order.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print report.json and nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the answer.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print every step.")] = False,
) -> None:
    """Optimize MODEL; keep only variants that meet every budget and the floor."""
    from optimize.budgets.budget import Budget, Floor
    from optimize.request import Request, parse_chains, parse_duration, parse_input

    request = Request(
        model=Path(model),
        budgets=tuple(map(Budget.parse, budget or ())),
        floor=Floor.parse(floor) if floor else None,
        data=data,
        calibration=calibration,
        metric=metric,
        chains=parse_chains(chain or ()),
        objective=objective,  # type: ignore[arg-type]  # Request checks it
        threads=threads,
        batch=batch,
        confidence=confidence,
        time_limit_s=parse_duration(time_limit),
        inputs=tuple(map(parse_input, input or ())),
        arch=arch,
        trust_pickle=trust_pickle,
        out=Path(out) if out else None,
        seed=seed,
    )
    result = _observed(request, json or quiet, verbose)
    _print(result, json, quiet)
    raise typer.Exit(result.exit_code)


@app.command("passes")
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


def main() -> None:
    """Run the command line and exit; every error of the user's is one sentence on stderr."""
    try:
        code = app(prog_name="optimize", standalone_mode=False)
    except TyperException as error:
        _fail(f"{error.message if hasattr(error, 'message') else error}", EXIT_USAGE)
    except InputError as error:
        _fail(str(error), EXIT_USAGE)
    except OptimizeError as error:
        _fail(str(error), EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader went away; silence the interpreter's own complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_INTERNAL)
    except Exception as error:  # noqa: BLE001  the last resort
        _crash(error)
    sys.exit(code if isinstance(code, int) else 0)


def _observed(request: Request, silent: bool, verbose: bool) -> Result:
    from rich.console import Console

    from optimize.console import Bar, Lines
    from optimize.pipeline import run

    if silent:
        return run(request)
    console = Console(stderr=True)
    observer = Bar(console) if console.is_terminal and not verbose else Lines(console, verbose)
    try:
        return run(request, observer)
    finally:
        observer.close()


def _print(result: Result, json: bool, quiet: bool) -> None:
    from rich.console import Console

    from optimize.console import answer, show

    if json:
        typer.echo(result.report.to_json())
    elif quiet:
        typer.echo(answer(result))
    else:
        # A log has no width of its own: never cut a figure there.
        width = None if sys.stdout.isatty() else 200
        show(result, Console(width=width, highlight=False))
    if result.error is not None and result.exit_code == EXIT_INTERNAL:
        _say(f"internal error: {first_cause(result.error)}; see {result.folder / 'error.txt'}")


def _crash(error: Exception) -> None:
    """Save the traceback of an error that no report could take up."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="optimize-error-", suffix=".txt", delete=False
    ) as file:
        traceback.print_exception(error, file=file)
    _fail(f"internal error: {first_cause(error)}; see {file.name}", EXIT_INTERNAL)


def _fail(sentence: str, code: int) -> None:
    _say(sentence)
    sys.exit(code)


def _say(sentence: str) -> None:
    print(f"optimize: {' '.join(sentence.split())}", file=sys.stderr)
