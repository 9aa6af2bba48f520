"""The command: parse, call, print, exit. Nothing heavy is imported before a run begins."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from optimize import __version__
from optimize.commands.cache import cache_app
from optimize.commands.check import check_command, init_command
from optimize.errors import InputError, OptimizeError, first_cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from optimize.budgets.budget import Budget, Floor
    from optimize.results.report import Result
    from optimize.run.observer import Observer

EXIT_USAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 2, 70, 130
DEFAULT = "run"


# Options that several commands share.
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="Q=LIMIT",
        help="p50|p90|p95|p99|p99.9=20ms, size=25MB or memory=500MB; repeat: all must hold.",
    ),
]
FloorText = Annotated[
    str | None,
    typer.Option(
        "--floor", help="METRIC=VALUE, drop=0.01 or drop=1%.  [default: drop=0.01; cosine=0.99]"
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Samples: .npz, a folder of .npz, or file.py:function."),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="top1, top5, f1, mae, rmse, cosine, or file.py:function (higher is better).",
    ),
]
Strategies = Annotated[
    str | None,
    typer.Option(
        "--strategies",
        metavar="A,B",
        help="Only chains with one of these passes or modes, as static,fp16,nncf.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Threads of the runtime.  [default: the cores granted]"),
]
Cpus = Annotated[
    str | None,
    typer.Option("--cpus", help="Cores for the model, e.g. 0,2-3.  [default: those granted]"),
]
Batch = Annotated[
    int | None, typer.Option("--batch", help="Samples a call.  [default: the model's own, or 1]")
]
Confidence = Annotated[float, typer.Option("--confidence", help="Of a kept verdict.")]
TimeLimit = Annotated[str, typer.Option("--time-limit", help="90s, 10m or none.")]
MaxSamples = Annotated[int, typer.Option("--max-samples", help="Timed calls of one variant.")]
StrictFloor = Annotated[
    bool, typer.Option("--strict-floor", help="The interval's worse end must meet the floor.")
]
Pre = Annotated[
    str | None, typer.Option("--pre", help="file.py:function before each call; it is timed too.")
]
Post = Annotated[
    str | None, typer.Option("--post", help="file.py:function after each call; it is timed too.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=SHAPE:TYPE",
        help="An input's shape, e.g. image=Nx3x224x224:float32.",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="file.py:factory for weights without an architecture."),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Let a pickled model run its code.")
]
Calibration = Annotated[
    str | None,
    typer.Option("--calibration", help="Samples to calibrate on.  [default: a fifth of --data]"),
]
Train = Annotated[
    str | None,
    typer.Option("--train", help="Samples to train on.  [default: those to calibrate on]"),
]
DistillHook = Annotated[
    str | None,
    typer.Option("--distill", help="file.py:function, a training of your own, as a variant."),
]
StudentArch = Annotated[
    str | None,
    typer.Option("--student", help="file.py:factory, a smaller network to train from MODEL."),
]
PruneTo = Annotated[
    str | None,
    typer.Option("--prune", metavar="SHARE|p99", help="Remove that share, or what p99 asks for."),
]
RuntimeNames = Annotated[
    str,
    typer.Option("--runtime", help="onnxruntime, openvino, inductor, several with commas, or all."),
]
ObjectiveName = Annotated[str, typer.Option("--objective", help="latency, accuracy or size.")]
Cache = Annotated[
    str | None,
    typer.Option("--cache", help="Folder kept between runs.  [default: ~/.cache/optimize]"),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep nothing, and use nothing kept.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", help="Passes at once.  [default: the cores granted]")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what the cache knows.")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on where the budget is below every lower bound.")
]
TuneSession = Annotated[
    bool,
    typer.Option(
        "--tune-session", help="Try threads, up to the cores, and options of the best's session."
    ),
]
Trials = Annotated[
    int, typer.Option("--trials", help="Chains to try beyond the plan; needs tailfit[search].")
]
Out = Annotated[
    str | None,
    typer.Option("--out", help="Result folder.  [default: MODEL.optimized; profile: none]"),
]
Seed = Annotated[int, typer.Option("--seed", help="For shares and order.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the answer.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print every step.")]


class _DefaultCommand(TyperGroup):
    """``optimize MODEL`` runs the hidden default command; named commands stand beside it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--version",):
            args.insert(0, DEFAULT)
        return super().parse_args(ctx, args)


# No --help of its own, which the default command's stands for: typer would import pydantic to see
# that it was not given, and that is most of what ``--help`` takes.
app = typer.Typer(
    cls=_DefaultCommand, add_completion=False, rich_markup_mode=None, add_help_option=False
)
app.add_typer(cache_app, name="cache")
app.command("check")(check_command)
app.command("init")(init_command)


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
        "Other commands: compare, profile, verify, report, doctor, passes, cache, check, init; "
        "each has --help. "
        "A file of such a name is reached as ./NAME."
    ),
)
def run_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="TorchScript, .pt2, weights, ONNX, or a Hugging Face folder."
        ),
    ],
    budget: Budgets = None,
    floor: FloorText = None,
    data: Data = None,
    calibration: Calibration = None,
    train: Train = None,
    metric: MetricName = None,
    chain: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS,...", help="Only these, e.g. 'fold,fuse,int8{mode=dynamic}'."),
    ] = None,
    prune: PruneTo = None,
    distill: DistillHook = None,
    student: StudentArch = None,
    runtime: RuntimeNames = "onnxruntime",
    objective: ObjectiveName = "latency",
    threads: Threads = None,
    cpus: Cpus = None,
    batch: Batch = None,
    confidence: Confidence = 0.99,
    time_limit: TimeLimit = "10m",
    max_samples: MaxSamples = 5000,
    strict_floor: StrictFloor = False,
    pre: Pre = None,
    post: Post = None,
    input: Inputs = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    fresh: Fresh = False,
    tune_session: TuneSession = False,
    trials: Trials = 0,
    jobs: Jobs = None,
    force: Force = False,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Optimize MODEL; keep only variants that meet every budget and the floor."""
    _optimize(dict(locals()))


@app.command("compare")
def compare_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for optimize MODEL.")],
    budget: Budgets = None,
    floor: FloorText = None,
    data: Data = None,
    calibration: Calibration = None,
    train: Train = None,
    metric: MetricName = None,
    prune: PruneTo = None,
    distill: DistillHook = None,
    student: StudentArch = None,
    strategies: Strategies = None,
    runtime: RuntimeNames = "onnxruntime",
    objective: ObjectiveName = "latency",
    threads: Threads = None,
    cpus: Cpus = None,
    batch: Batch = None,
    confidence: Confidence = 0.99,
    time_limit: TimeLimit = "30m",
    max_samples: MaxSamples = 5000,
    strict_floor: StrictFloor = False,
    pre: Pre = None,
    post: Post = None,
    input: Inputs = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    fresh: Fresh = False,
    tune_session: TuneSession = False,
    trials: Trials = 0,
    jobs: Jobs = None,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Try every strategy that applies to MODEL, measure all of them, and show the frontier."""
    _optimize(dict(locals()), everything=True)


@app.command("profile")
def profile_command(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="The first is the reference.")
    ],
    budget: Budgets = None,
    floor: FloorText = None,
    data: Data = None,
    metric: MetricName = None,
    threads: Threads = None,
    cpus: Cpus = None,
    batch: Batch = None,
    confidence: Confidence = 0.99,
    time_limit: TimeLimit = "10m",
    max_samples: MaxSamples = 5000,
    strict_floor: StrictFloor = False,
    pre: Pre = None,
    post: Post = None,
    input: Inputs = None,
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge models as they are, side by side, without passes."""
    given = dict(locals())
    first, *rivals = given.pop("models")
    _optimize({"model": first, **given}, as_is=True, rivals=tuple(map(Path, rivals)))


@app.command("verify")
def verify_command(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A result folder.")],
    source: Annotated[str | None, typer.Option(help="The source.  [default: where it was]")] = None,
    data: Data = None,
    metric: MetricName = None,
    threads: Threads = None,
    time_limit: TimeLimit = "10m",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge a result folder again, on this machine."""
    from optimize.commands.verify import Overrides, verify
    from optimize.request import parse_duration

    overrides = Overrides(source, data, metric, threads, parse_duration(time_limit))
    _finish(
        _observed(lambda o: verify(Path(folder), overrides, o), json or quiet, verbose), json, quiet
    )


@app.command("report")
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
    from optimize.console import show
    from optimize.reports.folder import drawn, read, result
    from optimize.reports.page import PAGE
    from optimize.reports.terminal import plot
    from optimize.results import output

    view, console = read(Path(folder)), _console()
    show(result(Path(folder)), console)
    console.print(plot(view), soft_wrap=not console.is_terminal)
    place = Path(out or folder)
    output.add(place, drawn(view))
    typer.echo(f"Drawn: {place / PAGE}")
    if open_page:
        typer.launch(str(place / PAGE))


@app.command("doctor")
def doctor_command(
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 20.0,
) -> None:
    """What this device is, how quiet it is, and how sharp a verdict can be here."""
    from optimize.console import show_examination
    from optimize.profiling.doctor import examine

    if not 0 < seconds < 3600:
        raise InputError(f"--seconds {seconds:g} is not between 0 and 3600")

    examination = examine(seconds, _say)
    show_examination(examination, _console())


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
    # A build system's SIGTERM is an interruption like Ctrl-C: report what is finished, leave clean.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = app(prog_name="optimize", standalone_mode=False)
    except TyperException as error:
        _fail(_usage(error), EXIT_USAGE)
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


def _optimize(given: dict[str, Any], **fixed: Any) -> None:
    """Turn a command's arguments, by name, into a request; run it, print, exit."""
    from optimize.request import (
        Request,
        cache_folder,
        parse_chains,
        parse_cpus,
        parse_duration,
        parse_input,
        parse_runtimes,
        parse_strategies,
    )

    json, quiet, verbose = (given.pop(name) for name in ("json", "quiet", "verbose"))
    if "no_cache" in given:
        given["cache"] = cache_folder(given["cache"], given.pop("no_cache"))
    read: dict[str, Callable[[Any], Any]] = {
        "model": Path,
        "chain": lambda texts: parse_chains(texts or ()),
        "runtime": parse_runtimes,
        "strategies": parse_strategies,
        "cpus": lambda text: parse_cpus(text) if text else None,
        "time_limit": parse_duration,
        "input": lambda texts: tuple(map(parse_input, texts or ())),
        "budget": _budgets,
        "floor": _floor,
        "out": lambda text: Path(text) if text else None,
    }
    names = {
        "budget": "budgets",
        "chain": "chains",
        "runtime": "runtimes",
        "time_limit": "time_limit_s",
        "input": "inputs",
    }
    values = {
        names.get(name, name): read[name](value) if name in read else value
        for name, value in given.items()
    }
    request = Request(**values, **fixed)
    from optimize.run.pipeline import run

    _finish(_observed(lambda observer: run(request, observer), json or quiet, verbose), json, quiet)


def _usage(error: TyperException) -> str:
    """One sentence for a wrong option, with the options that come close."""
    if len(sys.argv) == 1:
        return "no model is given; see optimize --help"
    show = getattr(error, "format_message", None)
    return str(show()) if show else str(error)


def _budgets(texts: list[str] | None) -> tuple[Budget, ...]:
    from optimize.budgets.budget import Budget

    return tuple(map(Budget.parse, texts or ()))


def _floor(text: str | None) -> Floor | None:
    from optimize.budgets.budget import Floor

    return Floor.parse(text) if text else None


def _finish(result: Result, json: bool, quiet: bool) -> None:
    _print(result, json, quiet)
    raise typer.Exit(result.exit_code)


def _observed(work: Callable[[Observer | None], Result], silent: bool, verbose: bool) -> Result:
    from rich.console import Console

    from optimize.console import Bar, Lines

    if silent:
        # A metric or a data function that prints must not spoil what a program reads from us.
        with contextlib.redirect_stdout(sys.stderr):
            return work(None)
    console = Console(stderr=True)
    observer = Bar(console) if console.is_terminal and not verbose else Lines(console, verbose)
    try:
        return work(observer)
    finally:
        observer.close()


def _print(result: Result, json: bool, quiet: bool) -> None:
    from optimize.console import answer, show

    if json:
        typer.echo(result.report.to_json())
    elif quiet:
        typer.echo(answer(result))
    else:
        show(result, _console())
    if result.error is not None and result.exit_code == EXIT_INTERNAL:
        place = f"; see {result.folder / 'error.txt'}" if result.folder else ""
        _say(f"internal error: {first_cause(result.error)}{place}")


def _console() -> Console:
    from rich.console import Console

    # A log has no width of its own: never cut a figure there.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


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
