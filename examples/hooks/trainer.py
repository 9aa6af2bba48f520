"""A training loop of your own in the place of the built-in distillation.

    optimize examples/fashion/resnet.safetensors --arch examples/fashion/arch.py:resnet \
        --data examples/fashion/data.npz --budget p99=1ms \
        --prune 0.5 --distill examples/hooks/trainer.py:train

``train`` is the hook. ``Trainer`` is shaped like those of Lightning and transformers: a module with
a loss and an optimizer, and a ``fit``. To use one of theirs, give it ``Task`` as its module and
``batches.training(epoch)`` as its data, which are batches already.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from optimize.passes.training.batches import Batch, Batches
from optimize.passes.training.hooks import HookContext

EPOCHS = 5
RATE = 1e-3


class Task(nn.Module):
    """What is trained, and by which loss."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = [teacher]  # in a list, so that it is no part of this module

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of the student's logits against the teacher's, relative to their size."""
        with torch.no_grad():
            wanted: Tensor = self._teacher[0](*batch.args)
        return nn.functional.mse_loss(self.student(*batch.args), wanted) / wanted.var()

    def optimizer(self) -> torch.optim.Optimizer:
        """For the student alone."""
        return torch.optim.AdamW(self.student.parameters(), RATE)


class Trainer:
    """Fits a task for some epochs, or until the time is up; keeps the best state."""

    def __init__(self, epochs: int, context: HookContext) -> None:
        self._epochs = epochs
        self._context = context

    def fit(self, task: Task, batches: Batches) -> None:
        """Train in place."""
        optimizer = task.optimizer()
        best, state = self.validate(task, batches), _copied(task)
        for epoch in range(self._epochs):
            task.train()
            for batch in self._until_late(batches.training(epoch)):
                optimizer.zero_grad()
                task.loss(batch).backward()
                optimizer.step()
            loss = self.validate(task, batches)
            if loss < best:
                best, state = loss, _copied(task)
            self._context.progress(f"epoch {epoch + 1}/{self._epochs}, held-out loss {loss:.4g}")
        task.load_state_dict(state)

    def validate(self, task: Task, batches: Batches) -> float:
        """Mean loss on the held-out part."""
        task.eval()
        with torch.no_grad():
            losses = [float(task.loss(batch)) for batch in batches.validation()]
        return sum(losses) / len(losses)

    def _until_late(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        deadline = self._context.deadline
        for batch in batches:
            if deadline is not None and time.monotonic() >= deadline:
                return
            yield batch


def _copied(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.state_dict().items()}


def train(
    student: nn.Module, teacher: nn.Module, batches: Batches, context: HookContext
) -> nn.Module:
    """The hook: return the student, trained to give the teacher's outputs.

    Args:
        student: a copy; it may be changed.
        teacher: in evaluation mode; it must stay as it is.
        batches: real samples, a part of them held out.
        context: a folder for files, a seed, a deadline, and a line to show progress on.
    """
    torch.manual_seed(context.seed)
    Trainer(EPOCHS, context).fit(Task(student, teacher), batches)
    return student
