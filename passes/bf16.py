"""Brain floating point, where a runtime has kernels for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimize.errors import NotApplicable
from optimize.models.model import Model
from optimize.models.runtimes import Format, find_runtime
from optimize.passes.base import Context, Pass, PassResult

_ISA = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Bf16(Pass):
    """Arithmetic in bfloat16: the range of float32 with 8 bits of precision.

    The file keeps its float32 weights; OpenVINO converts them at load.
    """

    name: ClassVar[str] = "bf16"
    summary: ClassVar[str] = "bfloat16 arithmetic, where the runtime has kernels for it"
    needs: ClassVar[str] = "@openvino, and a CPU with bfloat16 instructions"
    takes: ClassVar[tuple[Format, ...]] = ("onnx", "openvino")

    @property
    def tailored(self) -> bool:
        """Each runtime has its own way."""
        return True

    def apply(self, model: Model, context: Context) -> PassResult:
        """Ask the runtime for it."""
        if context.runtime != "openvino":
            title = find_runtime(context.runtime).title
            raise NotApplicable(f"{title} has no bfloat16 kernels for this CPU's operators")
        if not context.isa & _ISA:
            raise NotApplicable("this CPU has no bfloat16 instructions")
        return PassResult(model.configured({"INFERENCE_PRECISION_HINT": "bf16"}), True)
