"""The module that Hugging Face models are wrapped in; imported with torch, and late."""

from __future__ import annotations

from typing import Any

import torch


class Plain(torch.nn.Module):
    """Positional tensors in, a tuple of tensors out.

    Attributes:
        model: takes the named inputs and returns a dictionary-like output.
        inputs: names of the inputs by position.
    """

    def __init__(self, model: Any, inputs: tuple[str, ...]) -> None:
        """Wrap ``model``."""
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the model by name."""
        given = dict(zip(self.inputs, args, strict=False))
        result = self.model(**given, return_dict=True)
        return tuple(v for v in result.values() if isinstance(v, torch.Tensor))
