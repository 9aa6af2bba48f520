"""Half precision."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from optimize.errors import InputError, NotApplicable
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import load_proto, save_proto

# Beyond the converter's own list: these lose most, or have no half-precision kernel on CPUs.
_KEPT = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt", "Loop", "If", "Scan")


@dataclass(frozen=True)
class Fp16(Pass):
    """Weights and arithmetic in float16; inputs and outputs stay as they are."""

    name: ClassVar[str] = "fp16"
    summary: ClassVar[str] = "float16 weights and arithmetic, sensitive operators kept in float32"
    version: ClassVar[int] = 2
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    keep: str = "auto"

    def __post_init__(self) -> None:
        """Check ``keep``: ``auto``, ``none``, or operators joined by ``+``."""
        import re

        if not re.fullmatch(r"\w+(\+\w+)*", self.keep):
            raise InputError(
                f"fp16: keep={self.keep} is not of the form Softmax+LayerNormalization"
            )

    def apply(self, model: Model, context: Context) -> PassResult:
        """Convert with onnxruntime's float16 converter."""
        from onnxruntime.transformers import float16

        if model.quantized:
            raise NotApplicable("the model is already quantized")
        kept = {"auto": list(_KEPT), "none": []}.get(self.keep, self.keep.split("+"))
        if self.keep not in ("auto", "none"):
            self._refuse_unknown(model, kept)
        blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *kept]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for every weight that is clipped or flushed
            proto = float16.convert_float_to_float16(
                load_proto(model), keep_io_types=True, op_block_list=blocked
            )
        result = save_proto(proto, context)
        if result.size_bytes > 0.98 * model.size_bytes:
            raise NotApplicable("hardly any of the model's weights is float32")
        casts = result.count("Cast") - model.count("Cast")
        return PassResult(result, True, (f"{casts} casts inserted",))

    @staticmethod
    def _refuse_unknown(model: Model, operators: Sequence[str]) -> None:
        """A word that is no operator would keep nothing, unnoticed."""
        import onnx

        for name in operators:
            own = any(operator.split("::")[-1] == name for operator, _ in model.op_counts)
            if not own and not onnx.defs.has(name):
                raise NotApplicable(f"keep={name}: there is no such operator")
