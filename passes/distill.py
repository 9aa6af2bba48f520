"""Distillation: the variant learns from the source what pruning or another shape has cost it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optimize.errors import InputError, NotApplicable
from optimize.models.model import Model
from optimize.models.runtimes import Format
from optimize.passes.base import Context, Pass, PassResult

if TYPE_CHECKING:
    from optimize.passes.training.batches import Batches
    from optimize.passes.training.options import DistillOptions


@dataclass(frozen=True)
class Distill(Pass):
    """Train the module so far, as student, to give the outputs of the source, its teacher.

    On ``--train``, or the samples to calibrate on, labels optional. Deterministic by seed; the best
    state by a held-out part is kept, so the result is never worse there than what it began with. A
    hook, ``file.py:function``, trains in its place; see :mod:`optimize.passes.training.hooks`.

    Attributes:
        epochs: passes over the samples.
        temperature: softens class scores.
        alpha: weight of the labels, 0 to 1; the rest is the teacher's.
        features: weight of hidden features; 0 for none.
        lr: peak learning rate.
        batch: samples a step.
        hook: the user's own training; ``none`` for the built-in one.
    """

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "train the module so far to give the source's outputs"
    needs: ClassVar[str] = "a torch module as source, and real data"
    takes: ClassVar[tuple[Format, ...]] = ("torch",)

    epochs: float = 10.0
    temperature: float = 2.0
    alpha: float = 0.0
    features: float = 0.0
    lr: float = 1e-3
    batch: int = 64
    hook: str = "none"

    def __post_init__(self) -> None:
        """Reject values out of range."""
        if self.batch < 1:
            raise InputError(f"distill: batch={self.batch} is not at least 1")
        self._options(0)  # which refuse the rest

    def _options(self, seed: int) -> DistillOptions:
        """Of the built-in training."""
        from optimize.passes.training.options import DistillOptions

        return DistillOptions(
            epochs=self.epochs,
            temperature=self.temperature,
            alpha=self.alpha,
            features=self.features,
            lr=self.lr,
            seed=seed,
        )

    @property
    def needs_calibration(self) -> bool:
        """It trains on real samples."""
        return True

    def apply(self, model: Model, context: Context) -> PassResult:
        """Train a copy; the chain's own module stays as it was."""
        from optimize.models.program import load_program, save_program
        from optimize.passes.training.batches import Batches
        from optimize.passes.training.checkpoint import checkpoint_folder, is_unfinished

        if context.teacher is None or context.lessons is None:
            raise NotApplicable("there is no torch module to learn from")
        student, teacher = load_program(model.path), load_program(context.teacher.path)
        batches = Batches(context.lessons, self.batch, seed=context.seed)
        parts = str(self), model.digest, context.teacher.digest
        with checkpoint_folder(context, *parts) as folder:
            trained, notes = self._trained(student.module, teacher.module, batches, context, folder)
            cut_short = is_unfinished(folder)
        result: Any = student.with_module(trained)
        made = save_program(result, context.folder, model.signature)
        return PassResult(made, True, notes, cut_short=cut_short)

    def _trained(
        self, student: Any, teacher: Any, batches: Batches, context: Context, folder: Path
    ) -> tuple[Any, tuple[str, ...]]:
        """By the hook or the built-in training."""
        from optimize.passes.training.checkpoint import leave_unfinished
        from optimize.passes.training.distill import distill
        from optimize.passes.training.hooks import HookContext, load_hook, run_hook

        if self.hook != "none":
            hook = load_hook(self.hook, "distill: hook")
            own = HookContext(folder, context.seed, context.deadline, context.progress)
            result = run_hook(hook, student, teacher, batches, own)
            if context.late:  # a hook cannot say whether it was cut short
                leave_unfinished(folder)
            return result
        return distill(
            student,
            teacher,
            batches,
            self._options(context.seed),
            progress=lambda now: context.progress(str(now)),
            checkpoint_folder=folder,
            deadline=context.deadline,
        )


@dataclass(frozen=True)
class Student(Pass):
    """Go on with another architecture in the source's place, to be trained by ``distill``.

    Attributes:
        arch: ``file.py:factory``, a function that returns the module.
    """

    name: ClassVar[str] = "student"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "another architecture, untrained; follow it with distill"
    needs: ClassVar[str] = "a torch module as source, and real data"
    takes: ClassVar[tuple[Format, ...]] = ("torch",)

    arch: str

    @property
    def needs_calibration(self) -> bool:
        """Its outputs are held against the source's on real samples."""
        return True

    def apply(self, model: Model, context: Context) -> PassResult:
        """Build it, and check that it takes the same inputs and gives the same outputs."""
        from dataclasses import replace

        from optimize.models.program import load_program, save_program
        from optimize.passes.training.batches import Batches
        from optimize.passes.training.hooks import build_student

        if context.lessons is None:
            raise NotApplicable("student needs --data or --calibration")
        teacher = load_program(model.path)
        batches = Batches(context.lessons, 1, seed=context.seed)
        module = build_student(self.arch, teacher.module, batches)
        student = teacher.with_module(module)
        student = replace(student, loaded=replace(student.loaded, arch=self.arch))
        made = save_program(student, context.folder, model.signature)
        count = sum(p.numel() for p in module.parameters())
        of = sum(p.numel() for p in teacher.module.parameters())
        return PassResult(made, True, (f"{count:,} parameters in place of {of:,}",))
