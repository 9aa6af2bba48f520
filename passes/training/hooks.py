"""Hooks: a user's own training instead of the built-in one, and a user's own student.

A hook is a function of a file, ``file.py:function``, called as
``function(student, teacher, batches, context) -> student``. Any training loop fits in, for example
Lightning's::

    import lightning as L
    import torch
    from torch.utils.data import DataLoader, IterableDataset

    class Task(L.LightningModule):
        def __init__(self, student, teacher, rate=1e-3):
            super().__init__()
            self.student, self.teacher, self.rate = student, teacher, rate

        def training_step(self, batch, _):
            with torch.no_grad():
                wanted = self.teacher(*batch.args)
            return torch.nn.functional.mse_loss(self.student(*batch.args), wanted)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.student.parameters(), self.rate)

    class Epochs(IterableDataset):
        def __init__(self, batches):
            self.batches = batches

        def __iter__(self):
            return self.batches.training(epoch=0)

    def function(student, teacher, batches, context):
        trainer = L.Trainer(max_epochs=3, default_root_dir=context.folder, logger=False)
        loader = DataLoader(Epochs(batches), batch_size=None)  # they are batches already
        trainer.fit(Task(student, teacher), loader)
        return student

With transformers, a ``Trainer`` whose ``compute_loss`` runs both modules does the same. The example
``examples/hooks/trainer.py`` needs neither.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from optimize.errors import InputError, PassFailed, first_cause
from optimize.models.usercode import call, load_function
from optimize.passes.training.batches import Batch, Batches
from optimize.passes.training.outputs import named_outputs


@dataclass(frozen=True, eq=False)
class HookContext:
    """What a hook may use besides its arguments.

    Attributes:
        folder: for its own files; kept between runs, so that checkpoints can be found again.
        seed: for whatever is drawn at random.
        deadline: on ``time.monotonic()``'s clock, by which it should return; or None.
        progress: shows one line.
    """

    folder: Path
    seed: int = 0
    deadline: float | None = None
    progress: Callable[[str], None] = print


class DistillHook(Protocol):
    """A user's training.

    The student is a copy that may be changed, or replaced by another module that takes the same
    inputs and gives outputs of the same names, types and shapes. The teacher is in evaluation mode
    and shared: it must stay as it is.
    """

    def __call__(
        self, student: Any, teacher: Any, batches: Batches, context: HookContext, /
    ) -> Any:
        """Return the trained student, a ``torch.nn.Module``."""
        ...


def load_hook(reference: str, purpose: str = "--distill") -> DistillHook:
    """Load ``file.py:function``.

    Raises:
        InputError: no such file or function, or the file raised while it was imported.
    """
    found: DistillHook = load_function(reference, purpose)
    return found


def run_hook(
    hook: DistillHook, student: Any, teacher: Any, batches: Batches, context: HookContext
) -> tuple[Any, tuple[str, ...]]:
    """Call a hook and hold what it returns against the teacher; return it, and notes.

    Raises:
        PassFailed: it raised, changed the teacher, or returned something that is no module, has
            other outputs or gives NaN. The message is the reason, for this variant only.
    """
    from optimize.passes.training.checkpoint import digest_of

    before = digest_of(teacher)
    try:
        result = hook(copy.deepcopy(student), teacher.eval(), batches, context)
    except (Exception, SystemExit) as error:
        raise PassFailed(f"the distillation hook raised {first_cause(error)}") from error
    if digest_of(teacher) != before:
        raise PassFailed("the distillation hook changed the teacher's weights")
    check_student(result, teacher, next(batches.validation()), "the distillation hook returned")
    return result.eval(), (f"trained by the hook {getattr(hook, '__name__', 'given')}",)


def build_student(reference: str, teacher: Any, batches: Batches) -> Any:
    """Call a student factory, ``file.py:factory``, and hold the module against the teacher.

    What it draws at random follows the batches' seed.

    Raises:
        InputError: the file cannot be loaded.
        PassFailed: the factory raised, or its module does not fit.
    """
    import torch

    factory = load_function(reference, "--student")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batches.seed)
            student = call(factory, f"--student {reference}")
    except InputError as error:
        raise PassFailed(str(error)) from error
    check_student(student, teacher, next(batches.validation()), f"--student {reference} returned")
    return student


def check_student(student: Any, teacher: Any, batch: Batch, what: str) -> None:
    """Check that a student is a module with the teacher's outputs, and gives finite numbers.

    Args:
        student: what the user's code returned.
        teacher: the module to stand in for.
        batch: inputs to run both on.
        what: begins the message.

    Raises:
        PassFailed: it does not fit.
    """
    import torch

    if not isinstance(student, torch.nn.Module):
        raise PassFailed(f"{what} a {type(student).__name__}, not a torch.nn.Module")
    student.eval()
    with torch.no_grad():
        wanted = named_outputs(teacher.eval()(*batch.args))
        try:
            given = named_outputs(student(*batch.args))
        except Exception as error:
            raise PassFailed(
                f"{what} a module that does not run on the teacher's inputs: {first_cause(error)}"
            ) from error
    mine, theirs = _signature(given), _signature(wanted)
    if mine != theirs:
        raise PassFailed(f"{what} a module with other outputs: {mine}; the source gives {theirs}")
    broken = [name for name, value in given.items() if not _finite(value)]
    if broken and all(_finite(wanted[name]) for name in broken):
        raise PassFailed(f"{what} a module whose output {broken[0]} is NaN or infinite")


def _signature(outputs: dict[str, Any]) -> str:
    """Names, types and shapes, in words."""
    shown = [
        f"{name} {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        for name, value in outputs.items()
    ]
    return ", ".join(shown) or "no tensor"


def _finite(value: Any) -> bool:
    return not value.is_floating_point() or math.isfinite(float(value.abs().max()))
