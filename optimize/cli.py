"""The program: its commands, and one sentence for every error. Nothing heavy is imported here."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from optimize import __version__
from optimize.commands.cache import cache_app
from optimize.commands.check import check_command
from optimize.commands.doctor import doctor_command
from optimize.commands.init import init_command
from optimize.commands.passes import passes_command
from optimize.commands.report import report_command
from optimize.commands.run import compare_command, profile_command, run_command
from optimize.commands.terminal import saved, say
from optimize.commands.verify import verify_command
from optimize.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    InputError,
    OptimizeError,
    first_cause,
)

DEFAULT = "run"
EPILOG = (
    "Exit codes: 0 a variant was kept, 1 none meets the budget and floor, 2 unusable input, "
    "3 none kept but some undecided, 70 internal error, 130 interrupted. "
    "Other commands: compare, profile, verify, report, doctor, passes, cache, check, init; "
    "each has --help. "
    "A file of such a name is reached as ./NAME."
)


class _DefaultCommand(TyperGroup):
    """``optimize MODEL`` runs the hidden default command; named commands stand beside it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--version",):
            self._refuse_mistyped(args[0])
            args.insert(0, DEFAULT)
        return super().parse_args(ctx, args)

    def _refuse_mistyped(self, word: str) -> None:
        """Tell a command that nearly is one from a model that is missing."""
        named = {*self.commands} - {DEFAULT}
        if word.isalpha() and not os.path.exists(word):  # noqa: PTH110  pathlib takes 10 ms
            if word in ("help", "version"):
                raise InputError(f"there is no command {word!r}; try optimize --{word}")
            close = difflib.get_close_matches(word, named, 1)
            if close:
                raise InputError(f"there is no command {word!r}; did you mean {close[0]}?")


class _ModelCommand(TyperCommand):
    """The default command, whose own name nobody writes."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage("optimize", " ".join(self.collect_usage_pieces(ctx)))


class _Heard:
    """A standard stream whose reader may go away: the run goes on, and exits by its verdict.

    What cannot be written for another reason, such as a full disk, is an error of ``result``.
    """

    def __init__(self, stream: TextIO, *, result: bool) -> None:
        self._stream = stream
        self._result = result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if text == "":
            return 0  # typer's question whether this is a stream of text
        with self._unheard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unheard():
            self._stream.flush()

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # what is buffered must go somewhere when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._result and not isinstance(error, BrokenPipeError):
                raise InputError(f"the output cannot be written: {error.strerror}") from error


def _heard(stream: TextIO | None, *, result: bool) -> TextIO:
    """The stream, or one for nobody where it was closed."""
    if stream is None:
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  for the whole run
    return cast(TextIO, _Heard(stream, result=result))


# No --help of its own, which the default command's stands for: typer would import pydantic to see
# that it was not given, and that is most of what ``--help`` takes.
app = typer.Typer(
    cls=_DefaultCommand, add_completion=False, rich_markup_mode=None, add_help_option=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)  # fmt: skip
app.command(DEFAULT, cls=_ModelCommand, hidden=True, epilog=EPILOG)(run_command)
app.command("compare")(compare_command)
app.command("profile")(profile_command)
app.command("verify")(verify_command)
app.command("report")(report_command)
app.command("doctor")(doctor_command)
app.command("passes")(passes_command)
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


def main() -> None:
    """Run the command line and exit; every error of the user's is one sentence on stderr."""
    # A build system's SIGTERM is an interruption like Ctrl-C: report what is finished, leave clean.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Or the collector would walk through all modules and samples before the process ends: 0.3 s.
    atexit.register(gc.freeze)
    sys.stdout, sys.stderr = _heard(sys.stdout, result=True), _heard(sys.stderr, result=False)
    try:
        code = app(prog_name="optimize", standalone_mode=False)
        sys.stdout.flush()
    except TyperException as error:
        _fail(_usage(error), EXIT_USAGE)
    except OptimizeError as error:
        _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except typer.Abort as error:  # of Ctrl-C, but also of any file that ends too early
        if isinstance(error.__cause__, EOFError):
            _internal(error.__cause__)
        _fail("interrupted", EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  the last resort
        _internal(error)
    sys.exit(code if isinstance(code, int) else 0)


def _internal(error: BaseException) -> None:
    _fail(f"internal error: {first_cause(error)}; see {saved(error)}", EXIT_INTERNAL)


def _usage(error: TyperException) -> str:
    """One sentence for a wrong option, with the options that come close."""
    if len(sys.argv) == 1:
        return "no model is given; see optimize --help"
    commands = getattr(getattr(error, "ctx", None), "command", None)
    if str(error) == "Missing command." and isinstance(commands, TyperGroup):
        return f"name one of its commands: {', '.join(commands.commands)}"
    show = getattr(error, "format_message", None)
    return str(show()) if show else str(error)


def _fail(sentence: str, code: int) -> None:
    say(sentence)
    sys.exit(code)
