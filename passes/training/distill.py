"""Distillation: a student learns to give a teacher's outputs, on real inputs, labels or not."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimize.errors import InputError, PassFailed
from optimize.passes.training.batches import Batch, Batches
from optimize.passes.training.checkpoint import (
    digest_of,
    leave_unfinished,
    load_checkpoint,
    save_checkpoint,
)
from optimize.passes.training.features import pairs_of, recorded
from optimize.passes.training.norms import batch_norms, recalibrate
from optimize.passes.training.options import DistillOptions, Progress
from optimize.passes.training.outputs import (
    Kind,
    distance,
    kind_of,
    label_loss,
    named_outputs,
)
from optimize.passes.training.teacher import Teacher


@dataclass
class _State:
    """What a checkpoint holds besides the optimizer."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    first: float = math.inf
    waited: int = 0
    finished: bool = False
    look_seconds: float = 0.0
    weights: dict[str, Any] = field(default_factory=dict)


def distill(
    student: Any,
    teacher: Any,
    batches: Batches,
    options: DistillOptions | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint_folder: Path | None = None,
    deadline: float | None = None,
) -> tuple[Any, tuple[str, ...]]:
    """Train a copy of ``student`` to give what ``teacher`` gives; return its best state and notes.

    The best state is that of the lowest held-out loss, the start included, so the student is never
    worse than it was, by that loss. Weights, order and random draws depend on the options alone:
    a run that was killed and resumed gives what an uninterrupted one gives.

    Args:
        student: a ``torch.nn.Module``; frozen parameters stay frozen.
        teacher: a module that takes the same inputs.
        batches: where both are compared.
        options: see :class:`options.DistillOptions`.
        progress: called after each look at the held-out part.
        checkpoint_folder: for checkpoints and the teacher's outputs; a later call with the same
            arguments and folder goes on where an earlier one was stopped or killed.
        deadline: on ``time.monotonic()``'s clock; the best state by then is returned.

    Raises:
        InputError: outputs that cannot be compared, or labels that are missing.
        PassFailed: the loss became NaN or infinite.
    """
    import torch

    training = _Training(student, teacher, batches, options or DistillOptions(), checkpoint_folder)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        notes = training.run(progress or (lambda _: None), deadline)
    return training.result(student), notes


class _Training:
    """One training: the modules, the optimizer and how far it is."""

    def __init__(
        self,
        student: Any,
        teacher: Any,
        batches: Batches,
        options: DistillOptions,
        folder: Path | None,
    ) -> None:
        self.options = options
        self.batches = batches
        self.folder = folder
        self.student = copy.deepcopy(student)
        answers = _hash(digest_of(teacher), batches.data.digest)
        self.fingerprint = _hash(digest_of(student), answers, batches.digest, repr(options))
        cache = None if folder is None else folder / f"teacher-{answers[:16]}"
        self.teacher = Teacher(teacher, len(batches.data), batches.uniform, cache)
        self.steps = options.steps or max(1, round(options.epochs * batches.steps))
        self.every = max(1, self.steps // options.evaluations)
        example = next(batches.validation())
        self.kinds = _kinds(self.student, self.teacher, example, options)
        self.pairs: tuple[tuple[str, str], ...] = ()
        if options.features:
            self.pairs = pairs_of(teacher, self.student, example.args, options.layers)
        self.optimizer = _optimizer(self.student, options)
        self.zeros = _zeros(self.student) if options.keep_zeros else {}
        self.state = _State()

    def run(self, progress: Callable[[Progress], None], deadline: float | None) -> tuple[str, ...]:
        """Train to the end, to an early stop or to the deadline."""
        resumed = self._resume()
        if resumed is None:
            self._begin()
        began, first_step = time.monotonic(), self.state.step
        late = False
        losses = self._steps()
        while not self.state.finished and not late:
            next(losses)
            self.state.step += 1
            done = self.state.step == self.steps
            spent = time.monotonic() - began
            # Judging and saving what there is takes time too.
            late = deadline is not None and time.monotonic() + self.state.look_seconds >= deadline
            if done or late or self.state.step % self.every == 0:
                loss = self._look(counts=not late or done)
                pace = spent / (self.state.step - first_step)
                left = pace * (self.steps - self.state.step)
                progress(Progress(self.state.step, self.steps, loss, self.state.best, left))
        if self.folder is not None and not self.state.finished:
            leave_unfinished(self.folder)  # it stops before its deadline, to have time to save
        return tuple(self._notes(resumed, late))

    def result(self, student: Any) -> Any:
        """The student in its best state, in the mode that it came in."""
        self.student.load_state_dict(self.state.weights)
        return self.student.train(student.training)

    def _begin(self) -> None:
        self.state.first = self.state.best = self._held_out_loss()
        self._check(self.state.first, "before training")
        self.state.weights = _copied(self.student)
        # What equals its teacher cannot be improved.
        self.state.finished = self.state.first <= 1e-12

    def _steps(self) -> Iterator[None]:
        """Train one batch each time that the next value is asked for."""
        with self._features() as (mine, theirs):
            for batch in self._order():
                self._step(batch, mine, theirs)
                yield

    def _order(self) -> Iterator[Batch]:
        epoch, start = divmod(self.state.step, self.batches.steps)
        while True:
            yield from self.batches.training(epoch, start)
            epoch, start = epoch + 1, 0

    def _step(self, batch: Batch, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
        import torch

        step = self.state.step
        # A seed for each step: a resumed run draws what an uninterrupted one draws.
        torch.manual_seed(self.options.seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * schedule(step, self.steps, self.options.warmup)
        _training_mode(self.student, self.options.dropout)
        loss = self._objective(batch, mine, theirs)
        self._check(float(loss.detach()), f"at step {step + 1} of {self.steps}")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.options.clip)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, mask in self.zeros.items():
                parameter.mul_(mask)

    def _objective(self, batch: Batch, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Any:
        """Mean distance of the outputs, the labels' share, and the hidden features."""
        options = self.options
        wanted = self.teacher.compute(batch) if self.pairs else self.teacher(batch)
        given = named_outputs(self.student(*batch.args))
        total: Any = 0.0
        for (first, second), kind in self.kinds.items():
            apart = distance(
                given[second], wanted[first], kind, options.temperature, options.values, batch.mask
            )
            total = total + (1 - options.alpha) * apart / len(self.kinds)
        if options.alpha:
            (_, name), kind = next(iter(self.kinds.items()))
            total = total + options.alpha * label_loss(given[name], batch.labels, kind)
        for first, second in self.pairs:
            apart = distance(mine[second], theirs[first], "values", mask=batch.mask)
            total = total + options.features * apart / len(self.pairs)
        return total

    @contextmanager
    def _features(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        with ExitStack() as stack:
            mine = stack.enter_context(recorded(self.student, [pair[1] for pair in self.pairs]))
            names = [pair[0] for pair in self.pairs]
            yield mine, stack.enter_context(recorded(self.teacher.module, names))

    def _look(self, counts: bool) -> float:
        """Judge the present weights on the held-out part, keep them if best, save all."""
        state, began = self.state, time.monotonic()
        recalibrate(self.student, self.batches.training(epoch=0))
        loss = self._held_out_loss()
        if loss < state.best:
            state.best, state.best_step, state.waited = loss, state.step, 0
            state.weights = _copied(self.student)
        elif counts:
            state.waited += 1
        stopped = 0 < self.options.patience <= state.waited
        state.finished = stopped or state.step == self.steps
        state.look_seconds = time.monotonic() - began
        if self.folder is not None:
            held = {key: value for key, value in vars(state).items() if key != "weights"}
            save_checkpoint(
                self.folder,
                {
                    "fingerprint": self.fingerprint,
                    "state": held,
                    "weights": state.weights,
                    "student": self.student.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                },
            )
        return loss

    def _held_out_loss(self) -> float:
        import torch

        self.student.eval()
        total = count = 0.0
        with torch.no_grad(), self._features() as (mine, theirs):
            for batch in self.batches.validation():
                total += float(self._objective(batch, mine, theirs)) * len(batch)
                count += len(batch)
        return total / count

    def _resume(self) -> int | None:
        saved = load_checkpoint(self.folder, self.fingerprint)
        if saved is None:
            return None
        self.student.load_state_dict(saved["student"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state = _State(**saved["state"], weights=saved["weights"])
        return self.state.step

    def _check(self, loss: float, when: str) -> None:
        if not math.isfinite(loss):
            raise PassFailed(
                f"distill: the loss is {loss} {when}; a lower lr than {self.options.lr:g} may help"
                if when != "before training"
                else f"distill: the loss is {loss} {when}: the student or the teacher gives no "
                "finite numbers on this data"
            )

    def _notes(self, resumed: int | None, late: bool) -> Iterator[str]:
        state = self.state
        compared = ", ".join(f"{pair[0]} ({kind})" for pair, kind in self.kinds.items())
        yield f"compared {compared}" + (f" and {len(self.pairs)} features" if self.pairs else "")
        yield (
            f"held-out loss {state.first:.4g} -> {state.best:.4g} "
            f"(best at step {state.best_step} of {self.steps})"
        )
        if resumed:
            yield f"resumed at step {resumed}"
        if state.finished and state.step < self.steps and state.step:
            yield f"stopped at step {state.step}: {self.options.patience} looks without improvement"
        elif late and not state.finished:
            yield (
                f"stopped by the time limit at step {state.step} of {self.steps}; "
                "a schedule of so many steps would have come to its end"
            )
        if batch_norms(self.student):
            yield "batch normalization's statistics estimated anew"


def schedule(step: int, steps: int, warmup: float) -> float:
    """The rate's factor: a linear rise over ``warmup * steps``, then half a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _kinds(
    student: Any, teacher: Teacher, example: Batch, options: DistillOptions
) -> dict[tuple[str, str], Kind]:
    """Kinds of the outputs to compare, by (teacher's name, student's name)."""
    import torch

    theirs = teacher(example)
    with torch.no_grad():
        outputs = named_outputs(student.eval()(*example.args))
    mine = {name: value for name, value in outputs.items() if value.is_floating_point()}
    if len(mine) == len(theirs) == 1:
        pairs = [(next(iter(theirs)), next(iter(mine)))]
    else:
        pairs = [(name, name) for name in theirs if name in mine]
    pairs = [pair for pair in pairs if not options.outputs or pair[0] in options.outputs]
    pairs = [pair for pair in pairs if theirs[pair[0]].shape == mine[pair[1]].shape]
    if not pairs:
        raise InputError(
            f"distill: no output to compare: the teacher gives {_shown(theirs)}, the student "
            f"{_shown(mine)}"
            + (f"; asked for {', '.join(options.outputs)}" * bool(options.outputs))
        )
    labels = example.labels
    if options.alpha and labels is None:
        raise InputError("distill: alpha needs labels, and the data has none")
    if options.kind != "auto":
        return dict.fromkeys(pairs, options.kind)
    return {pair: kind_of(pair[0], theirs[pair[0]], labels) for pair in pairs}


def _shown(outputs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in outputs.items()) or "none"


def _optimizer(student: Any, options: DistillOptions) -> Any:
    import torch

    parameters = [value for value in student.parameters() if value.requires_grad]
    if not parameters:
        raise InputError("distill: the student has no parameter to train")
    decayed = [value for value in parameters if value.ndim > 1]
    plain = [value for value in parameters if value.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.lr)


def _zeros(student: Any) -> dict[Any, Any]:
    """Which weights are not zero, for parameters that have zeros."""
    masks = {value: value.detach() != 0 for value in student.parameters() if value.ndim > 1}
    return {value: mask for value, mask in masks.items() if not bool(mask.all())}


def _training_mode(student: Any, dropout: bool) -> None:
    import torch

    student.train()
    if not dropout:
        for part in student.modules():
            if isinstance(part, torch.nn.modules.dropout._DropoutNd):
                part.eval()


def _copied(module: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _hash(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
