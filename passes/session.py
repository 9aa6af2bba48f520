"""Options of the runtime's session, as a pass: what it optimizes at load, or must not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from optimize.errors import InputError, NotApplicable
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import WITHOUT
from optimize.worker import GRAPH_LEVEL


@dataclass(frozen=True)
class Session(Pass):
    """Load the model at another graph level, or without some of onnxruntime's optimizers.

    The graph stays as it is; the options travel with it. Some fusions are slower than what they
    replace on some processors, for example SkipLayerNormalization on x86.
    """

    name: ClassVar[str] = "session"
    summary: ClassVar[str] = "onnxruntime's session options: graph level, optimizers left out"
    tolerance: ClassVar[float | None] = 1e-3  # other kernels sum in another order
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    level: Literal["ALL", "EXTENDED", "BASIC"] = "ALL"
    without: str = "none"

    def __post_init__(self) -> None:
        """Check ``without``: ``none``, or names of optimizers joined by ``+``."""
        import re

        if not re.fullmatch(r"\w+(\+\w+)*", self.without):
            raise InputError(
                f"session: without={self.without} is not of the form "
                "SkipLayerNormFusion+MatMulAddFusion"
            )

    def apply(self, model: Model, context: Context) -> PassResult:
        """Set the options; the check of the outputs shows that onnxruntime takes them."""
        changed = model
        if self.level != "ALL":
            changed = changed.configured({GRAPH_LEVEL: self.level})
        if self.without != "none":
            changed = left_out(changed, *self.without.split("+"))
        if self == Session():
            raise NotApplicable("session without options changes nothing")
        return PassResult(changed, changed != model)


def left_out(model: Model, *optimizers: str) -> Model:
    """The same model, to be loaded without these of onnxruntime's optimizers, too."""
    known = dict(model.config).get(WITHOUT, "")
    names = dict.fromkeys([*filter(None, known.split(";")), *optimizers])
    return model.configured({WITHOUT: ";".join(names)})
