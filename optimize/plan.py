"""The built-in plan: which chains are worth trying on a model."""

from __future__ import annotations

from optimize.models.model import Model
from optimize.passes.chain import Chain

_ALWAYS = ("fold,fuse", "fold,fuse,fp16", "fold,fuse,int8{mode=dynamic}")
_TRANSFORMER = (
    # Fused attention hides its weights from the quantizer, so quantizing without it may win.
    "fold,int8{mode=dynamic}",
    "fold,int8{mode=static,ops=matmul}",
    "fold,int8{mode=static,calibration=percentile,ops=matmul}",
)
_CONVOLUTIONAL = (
    "fold,fuse,int8{mode=static}",
    "fold,fuse,int8{mode=static,calibration=percentile}",
    "fold,fuse,int8{mode=static,ops=conv}",
)
_WEIGHTS = (
    "fold,fuse,int8{mode=weights}",
    "fold,fuse,int8{mode=weights,bits=4}",
)


def built_in(model: Model, calibrated: bool) -> tuple[Chain, ...]:
    """The chains to try besides ``source``, cheapest and likeliest first.

    Args:
        model: the source as exported.
        calibrated: whether there is real data to calibrate on.
    """
    texts = [*_ALWAYS]
    transformer = model.count("Softmax") > 0 and model.count("MatMul") > 1
    if transformer:
        texts += _TRANSFORMER
    if model.count("Conv"):
        texts += _CONVOLUTIONAL
    elif not transformer:
        texts += _CONVOLUTIONAL[:1]
    if model.count("MatMul", "Gemm"):
        texts += _WEIGHTS
    chains = [Chain.parse(text) for text in texts]
    return tuple(c for c in chains if calibrated or not c.needs_calibration)
