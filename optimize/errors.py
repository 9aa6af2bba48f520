"""The exceptions of this project.

::

    OptimizeError           where it ends a command: one sentence, exit code 2
    ├── InputError          the caller's input is at fault
    ├── PassError           one pass, hence one variant, is concerned
    │   ├── NotApplicable   the pass has nothing to do here: its variant is *skipped*
    │   └── PassFailed      the pass broke or broke its promise: its variant is *failed*
    ├── WorkerError         a worker process died, hung or answered nonsense: *failed*
    └── TimeIsUp            the time limit ended what was going on: *skipped*

Exceptions of other libraries are translated once, where they enter, by
``raise Ours(sentence) from error``; :func:`first_cause` finds the sentence to show.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# How a command exits, by what it has shown or what ended it.
EXIT_KEPT, EXIT_NONE, EXIT_USAGE, EXIT_UNDECIDED = 0, 1, 2, 3
EXIT_INTERNAL, EXIT_INTERRUPTED = 70, 130


class OptimizeError(Exception):
    """Base of all errors that this project raises on purpose."""


class InputError(OptimizeError):
    """What the user gave cannot be used; the message says what, where and what would be right."""


class PassError(OptimizeError):
    """A pass could not give its result."""


class NotApplicable(PassError):
    """The pass does not apply to this model or these circumstances; the message is the reason."""


class NotNow(NotApplicable):
    """The same, for a reason outside of the model and the libraries' versions; it may pass."""


class PassFailed(PassError):
    """The pass raised, or changed outputs that it promised to keep."""


class WorkerError(OptimizeError):
    """A worker process crashed, hung, or reported an error."""


class TimeIsUp(OptimizeError):
    """The time limit of the run has passed; the message says during what."""


class WorkerEnded(WorkerError):
    """This run has ended it."""


def first_cause(error: BaseException, limit: int = 300) -> str:
    """Return one line that names the first cause of ``error``.

    Args:
        error: any exception; explicit causes (``raise ... from``) are followed to the first.
        limit: the most characters to return.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    if lines and "TorchScript" in lines[0]:
        lines = lines[-1:]  # a traceback through the script comes first, what failed last
    text = " ".join(" ".join(lines).split())
    if not isinstance(error, OptimizeError):
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
    return text if len(text) <= limit else text[: limit - 1] + "…"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Say which valid name is closest to a wrong one, and list them all."""
    names = list(choices)
    close = difflib.get_close_matches(word, names, 1, 0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}known: {', '.join(names) or 'none'}"
