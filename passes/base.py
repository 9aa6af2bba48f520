"""What a pass is: a frozen value whose fields are its options.

A pass never changes its input. It says that it does not apply by raising ``NotApplicable``;
anything else that it raises makes its variant *failed*. A pass that declares a ``tolerance``
promises to keep the outputs: :func:`Pass.__call__` checks that on real samples.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from optimize.errors import InputError, NotApplicable, PassFailed, first_cause
from optimize.models.data import Dataset
from optimize.models.model import FILE_NAME, Model
from optimize.models.run import Difference, difference, run
from optimize.models.runtimes import DEFAULT_RUNTIME, FORMATS, Format, find_runtime
from optimize.passes.latency import Bench

INLINE_MOST = 2**31 - 2**26  # protobuf ends at 2 GiB; leave room for the graph itself


def _silent(text: str) -> None:
    """Show nothing."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a pass may use besides the model.

    Attributes:
        folder: an empty folder for the result.
        samples: a few real inputs, to check outputs on.
        calibration: inputs to estimate ranges from; None where there are none.
        seed: for whatever is drawn at random.
        isa: instruction sets of the device that will serve, as the operating system names them.
        teacher: the source as a saved torch module; None if it is none.
        runtime: the library that will serve.
        threads: how many it will use.
        deadline: on ``time.monotonic``, by which training should end; None for no limit.
        training: inputs to train on; None for those to calibrate on.
        checkpoints: a folder kept between runs for training that was cut short; None for none.
        progress: shows one line of how far training is.
        bench: tells how fast candidates are on the target; None where nothing can be timed.
    """

    folder: Path
    samples: Dataset
    calibration: Dataset | None = None
    seed: int = 0
    isa: frozenset[str] = frozenset()
    teacher: Model | None = None
    runtime: str = DEFAULT_RUNTIME
    threads: int = 1
    deadline: float | None = None
    training: Dataset | None = None
    checkpoints: Path | None = None
    progress: Callable[[str], None] = _silent
    bench: Bench | None = None

    @property
    def lessons(self) -> Dataset | None:
        """What to train on; None without data.

        Raises:
            NotApplicable: less than a batch of it is not judged on, too.
        """
        if self.training is not None and not len(self.training):
            raise NotApplicable(
                "too few samples to train on are not judged on, too; give more by --train"
            )
        return self.calibration if self.training is None else self.training

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True)
class PassResult:
    """What a pass gave.

    Attributes:
        model: the result; the input itself if nothing changed.
        changed: whether the result differs from the input.
        notes: what a user should know, for example which fusions matched.
        seconds: how long the pass took, without checks.
        difference: to the input's outputs; None if the pass promises nothing.
        cut_short: whether a time limit ended it before it had done all that its options ask for.
            Such a result serves the run that it was made in, and no later one.
    """

    model: Model
    changed: bool
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    difference: Difference | None = None
    cut_short: bool = False


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes; subclasses are frozen dataclasses with typed options.

    Attributes:
        name: in chains.
        summary: what it does, in one line.
        needs: what must be there for it, in words; empty if nothing.
        version: raised whenever the same options give another result.
        tolerance: the largest relative difference of the outputs that an exact pass may cause;
            None for passes that may change outputs.
        takes: the formats that it can work on; a torch model is exported first where ``onnx`` is
            taken and ``torch`` is not.
        runtimes: the runtimes whose models it can make; empty for any.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[str] = ""
    version: ClassVar[int] = 1
    tolerance: ClassVar[float | None] = None
    takes: ClassVar[tuple[Format, ...]] = ("onnx",)
    runtimes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def apply(self, model: Model, context: Context) -> PassResult:
        """Return the transformed model, written to ``context.folder``."""

    @property
    def needs_calibration(self) -> bool:
        """Whether these options need real data."""
        return False

    @property
    def times(self) -> bool:
        """Whether candidates are timed on the target, under the declared budget."""
        return False

    @property
    def tailored(self) -> bool:
        """Whether the result depends on the runtime that will serve it."""
        return bool(self.runtimes)

    def __call__(self, model: Model, context: Context) -> PassResult:
        """Apply the pass, time it, and check the promise to keep the outputs.

        Raises:
            NotApplicable: the pass does not apply.
            PassFailed: it raised, or broke its promise; the message names the pass.
        """
        if self.needs_calibration and context.calibration is None:
            raise NotApplicable(f"{self} needs --data or --calibration")
        if self.runtimes and context.runtime not in self.runtimes:
            title = find_runtime(context.runtime).title
            raise NotApplicable(f"{self} makes nothing that {title} could run")
        if model.format not in self.takes:
            wanted = " or ".join(FORMATS[name] for name in self.takes)
            raise NotApplicable(
                f"{self} works on {wanted}; here it would get {FORMATS[model.format]}"
            )
        start = time.perf_counter()
        try:
            result = self._apply_elsewhere(_in_one_file(model, context), context)
        except NotApplicable:
            raise
        except Exception as error:
            raise PassFailed(f"{self} raised {first_cause(error)}") from error
        made = result.model.configured({**dict(model.config), **dict(result.model.config)})
        result = replace(
            result,
            model=made if result.changed else model,
            seconds=time.perf_counter() - start,
        )
        if self.tolerance is None or not result.changed:
            return result
        return replace(result, difference=self._checked(model, result.model, context))

    def _apply_elsewhere(self, model: Model, context: Context) -> PassResult:
        """Apply the pass in its own folder: libraries leave files in the current one."""
        if model.format == "torch":  # the user's code may open files beside the user
            return self.apply(model, context)
        members = tuple(member.absolute() for member in model.members)
        model = replace(model, path=model.path.absolute(), members=members)
        with contextlib.chdir(context.folder):
            return self.apply(model, context)

    def _always(self, field: Field[Any]) -> bool:
        """Whether chains show an option even at its default."""
        return bool(field.metadata.get("always"))

    def _checked(self, before: Model, after: Model, context: Context) -> Difference:
        try:
            reference = run(before, context.samples)
            distance = difference(run(after, context.samples), reference)
        except InputError as error:
            raise PassFailed(f"after {self}, {first_cause(error)}") from error
        if self.tolerance is not None and not distance.relative <= self.tolerance:
            raise PassFailed(
                f"{self} changed the outputs by {distance}; it promises {self.tolerance:g} at most"
            )
        return distance

    def __str__(self) -> str:
        """The pass as chains are written: options that differ from their defaults in braces."""
        shown = [
            f"{field.name}={value_text(getattr(self, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != field.default or self._always(field)
        ]
        return f"{self.name}{{{','.join(shown)}}}" if shown else self.name


def _in_one_file(model: Model, context: Context) -> Model:
    """Join a model of less than 2 GB with its external data, which many tools lose track of."""
    if model.format != "onnx" or model.size_bytes >= INLINE_MOST or len(model.files) == 1:
        return model
    import onnx

    folder = context.folder / "joined"
    folder.mkdir()
    onnx.save(onnx.load(str(model.path)), str(folder / FILE_NAME))
    return replace(Model.read(folder / FILE_NAME), config=model.config)


def changed_counts(before: Model, after: Model) -> Mapping[str, int]:
    """How the number of nodes of each operator changed; unchanged ones are left out."""
    first, second = dict(before.op_counts), dict(after.op_counts)
    names = sorted(first.keys() | second.keys())
    changes = {name: second.get(name, 0) - first.get(name, 0) for name in names}
    return {name: change for name, change in changes.items() if change}


def value_text(value: Any) -> str:
    """An option's value as it is written in a chain."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)
