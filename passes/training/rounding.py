"""Fake quantization as modules. Imports torch: only to be imported by functions that need it.

Gradients pass straight through the rounding and stop outside the range
(https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_DECAY = 0.99  # of the ranges' moving average
_UNSIGNED, _SIGNED, _REDUCED = 255, 127, 64  # onnxruntime's ends of a range


class RoundedWeight(nn.Module):
    """A parametrization: signed 8 (or 7) bits, one scale for each output channel (first axis)."""

    def __init__(self, reduced: bool = False) -> None:
        super().__init__()
        self._most = _REDUCED if reduced else _SIGNED

    def forward(self, weight: Tensor) -> Tensor:
        """Float (channels, ...) -> the same, on 255 (or 129) levels a channel."""
        largest = weight.detach().abs().flatten(1).amax(1)
        scale = (largest / self._most).clamp_min(torch.finfo(torch.float32).tiny)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        most = self._most
        return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -most, most)


class RoundedInput(nn.Module):
    """A layer whose input is rounded to unsigned 8 bits over one range, zero included.

    Attributes:
        layer: the wrapped layer.
        watching: whether inputs widen the range and pass unrounded, as in calibration.
    """

    low: Tensor
    high: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.watching = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        """Round the input and run the layer; in training the range follows the inputs."""
        with torch.no_grad():
            low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
            if self.watching:
                self.low.copy_(torch.minimum(self.low, low))
                self.high.copy_(torch.maximum(self.high, high))
            elif self.training:
                self.low.lerp_(low, 1 - _DECAY)
                self.high.lerp_(high, 1 - _DECAY)
        return self.layer(x if self.watching else self._rounded(x))

    def _rounded(self, x: Tensor) -> Tensor:
        scale = ((self.high - self.low) / _UNSIGNED).clamp_min(torch.finfo(torch.float32).tiny)
        zero = (-self.low / scale).round().clamp(0, _UNSIGNED).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, _UNSIGNED)
