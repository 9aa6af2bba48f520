"""Input shapes that are fixed when the model is loaded, where the runtime plans for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimize.errors import NotApplicable
from optimize.models.model import Model
from optimize.models.runtimes import Format
from optimize.passes.base import Context, Pass, PassResult
from optimize.worker import SHAPES


@dataclass(frozen=True)
class Shapes(Pass):
    """Compile the model for the shapes of the data instead of for any.

    The file still takes any shape; what the service loads of it takes this one alone, as the
    script beside the model says. OpenVINO ran MiniLM in INT8 6% faster so; onnxruntime gained
    nothing.
    """

    name: ClassVar[str] = "shapes"
    summary: ClassVar[str] = "input shapes fixed at load to those of the data"
    needs: ClassVar[str] = "@openvino, and data of one shape"
    takes: ClassVar[tuple[Format, ...]] = ("onnx", "openvino")
    runtimes: ClassVar[tuple[str, ...]] = ("openvino",)

    def apply(self, model: Model, context: Context) -> PassResult:
        """Note the shapes for the loader."""
        specs = model.signature.inputs
        if all(isinstance(dim, int) for spec in specs for dim in spec.shape or (None,)):
            raise NotApplicable("the model's input shapes are fixed already")
        found = {spec.name: self._shape(spec.name, context) for spec in specs}
        text = ";".join(f"{name}={'x'.join(map(str, dims))}" for name, dims in found.items())
        note = f"takes {text.replace(';', ', ')} only, as it is loaded"
        return PassResult(model.configured({SHAPES: text}), True, (note,))

    def _shape(self, name: str, context: Context) -> tuple[int, ...]:
        data = [context.samples, *filter(None, [context.calibration])]
        shapes = {array.shape for samples in data for array in samples.inputs[name]}
        if len(shapes) > 1:
            raise NotApplicable(f"the data's {name} comes in {len(shapes)} shapes")
        return tuple(next(iter(shapes)))
