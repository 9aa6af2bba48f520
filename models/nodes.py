"""Single nodes of an ONNX graph: their attributes, and the graphs in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, a string as text; ``default`` if it is not given."""
    from onnx import helper

    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default


def inner_graphs(node: Any) -> Iterator[Any]:
    """The graphs that a node holds (If, Loop, Scan), without those in their own nodes."""
    for item in node.attribute:
        if item.HasField("g"):
            yield item.g
        yield from item.graphs
