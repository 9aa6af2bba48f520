"""Attention heads: found by structure, removed as wholes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# How Hugging Face's encoders and their like name the three projections ...
_PROJECTIONS = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
)
# ... the number of heads, and what their total width is kept as.
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_WIDTHS = ("all_head_size", "inner_dim")


@dataclass(frozen=True)
class Attention:
    """Self-attention whose heads can be removed.

    Attributes:
        name: the module's name in the model.
        module: it holds the projections and the number of heads.
        projections: query, key and value, ``nn.Linear`` of heads x head_size outputs each.
        output: the ``nn.Linear`` that reads the joined heads; None where none is known.
        heads: how many there are.
    """

    name: str
    module: Any
    projections: tuple[Any, Any, Any]
    output: Any
    heads: int

    @property
    def head_size(self) -> int:
        """Columns of one head."""
        return int(self.projections[2].out_features) // self.heads

    def columns(self, heads: Sequence[int]) -> list[int]:
        """The columns that make up the given heads."""
        size = self.head_size
        return [head * size + column for head in heads for column in range(size)]

    def importance(self, scores: Any) -> Any:
        """Mean score of each head, shape (heads,), from one score a column."""
        return scores.reshape(self.heads, -1).mean(1)

    def remove(self, heads: Sequence[int]) -> None:
        """Remove heads in place, from the projections, the output layer and the attributes."""
        import torch_pruning as tp

        columns = self.columns(heads)
        for projection in self.projections:
            tp.prune_linear_out_channels(projection, columns)
        tp.prune_linear_in_channels(self.output, columns)
        for name in (*_HEADS, *_WIDTHS):
            value = getattr(self.module, name, None)
            if isinstance(value, int):
                share = len(heads) if name in _HEADS else len(columns)
                setattr(self.module, name, value - share)


def find_attention(module: Any, graph: Any) -> Iterator[Attention]:
    """Find self-attention in a model by its three projections and its number of heads.

    Args:
        module: the model.
        graph: its ``torch_pruning.DependencyGraph``, which knows who reads the joined heads.
    """
    for name, part in module.named_modules():
        heads = next((h for n in _HEADS if isinstance(h := getattr(part, n, None), int)), None)
        projections = _projections(part)
        if heads and projections and all(p.out_features % heads == 0 for p in projections):
            output = _reader(graph, projections)
            yield Attention(name, part, projections, output, heads)


def _projections(part: Any) -> tuple[Any, Any, Any] | None:
    import torch

    for names in _PROJECTIONS:
        found: list[Any] = [getattr(part, name, None) for name in names]
        if all(isinstance(layer, torch.nn.Linear) for layer in found):
            query, key, value = found
            same = query.out_features == key.out_features == value.out_features
            # Grouped queries share keys: their heads cannot be removed one by one.
            return (query, key, value) if same else None
    return None


def _reader(graph: Any, projections: tuple[Any, Any, Any]) -> Any:
    """Return the one linear layer that reads the value projection's columns."""
    import torch
    import torch_pruning as tp

    value = projections[2]
    if value not in graph.module2node:
        return None
    group = graph.get_pruning_group(
        value, tp.prune_linear_out_channels, list(range(value.out_features))
    )
    readers = {
        dependency.target.module
        for dependency, _ in group
        if isinstance(dependency.target.module, torch.nn.Linear)
        and graph.is_in_channel_pruning_fn(dependency.handler)
    }
    return readers.pop() if len(readers) == 1 else None
