"""Options of the runtime's session, as a pass: what it optimizes at load, or must not."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from optimize.errors import InputError, NotApplicable, NotNow
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import WITHOUT
from optimize.worker import GRAPH_LEVEL, SPINNING, THREADS, granted_cpus

MOST_THREADS = 4  # for each core: more wait for each other only, and hundreds of them for minutes


@dataclass(frozen=True)
class Session(Pass):
    """Load the model at another graph level, without some optimizers, or with other threads.

    The graph stays as it is; the options travel with it. Some fusions are slower than what they
    replace on some processors, for example SkipLayerNormalization on x86. ``threads=N`` serves
    this variant with N threads, whatever the others get; 0 leaves it as it is. With
    ``spinning=false`` idle threads sleep at once, which costs a wake-up for every operator and
    leaves their cores to others.
    """

    name: ClassVar[str] = "session"
    summary: ClassVar[str] = (
        "onnxruntime's session options: graph level, optimizers left out, threads"
    )
    tolerance: ClassVar[float | None] = 1e-3  # other kernels sum in another order
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    level: Literal["ALL", "EXTENDED", "BASIC"] = "ALL"
    without: str = "none"
    threads: int = 0
    spinning: bool = True

    def __post_init__(self) -> None:
        """Check ``without``, ``none`` or names of optimizers joined by ``+``, and ``threads``."""
        if not re.fullmatch(r"\w+(\+\w+)*", self.without):
            raise InputError(
                f"session: without={self.without} is not of the form "
                "SkipLayerNormFusion+MatMulAddFusion"
            )
        if self.threads < 0:
            raise InputError(f"session: threads={self.threads} is negative; 0 is as given")

    def apply(self, model: Model, context: Context) -> PassResult:
        """Set the options."""
        if self.threads > MOST_THREADS * len(granted_cpus()):
            raise NotNow(f"threads={self.threads} on {len(granted_cpus())} cores")
        changed = model
        if self.level != "ALL":
            changed = changed.configured({GRAPH_LEVEL: self.level})
        if self.without != "none":
            changed = left_out(changed, *_known(self.without.split("+")))
        if self.threads:
            changed = changed.configured({THREADS: str(self.threads)})
        if not self.spinning:
            changed = changed.configured({SPINNING: "0"})
        if self == Session():
            raise NotApplicable("session without options changes nothing")
        return PassResult(changed, changed != model)


def _known(optimizers: Sequence[str]) -> Sequence[str]:
    """The same names, if onnxruntime has them, which itself ignores what it does not know.

    It cannot list them; but each is in its library, as a text or in the name of a class.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as library

    with Path(library.__file__).open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for name in optimizers:
        if content.find(name.encode()) < 0 and not re.fullmatch(r"Level\d_\w+", name):
            raise NotApplicable(f"without={name}: onnxruntime has no such optimizer")
    return optimizers


def left_out(model: Model, *optimizers: str) -> Model:
    """The same model, to be loaded without these of onnxruntime's optimizers, too."""
    known = dict(model.config).get(WITHOUT, "")
    names = dict.fromkeys([*filter(None, known.split(";")), *optimizers])
    return model.configured({WITHOUT: ";".join(names)})
