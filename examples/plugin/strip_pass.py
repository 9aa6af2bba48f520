"""The pass `strip`: a file without what exporters note in it for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from optimize.errors import NotApplicable
from optimize.models.model import Model, graphs
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import load_proto, save_proto


@dataclass(frozen=True)
class Strip(Pass):
    """Drop doc strings and metadata, which no runtime reads.

    Attributes:
        what: ``nodes`` for those of nodes, ``all`` for those of the graph and its values, too.
    """

    name: ClassVar[str] = "strip"
    summary: ClassVar[str] = "drop doc strings and metadata"
    tolerance: ClassVar[float | None] = 0.0  # promises the very same outputs; it is checked

    what: Literal["nodes", "all"] = "all"

    def apply(self, model: Model, context: Context) -> PassResult:
        """Write the stripped graph to the context's folder; the input stays as it is."""
        proto = load_proto(model)
        for graph in graphs(proto.graph):
            kept = [graph, *graph.value_info, *graph.input, *graph.output, *graph.initializer]
            for item in (*graph.node, *(kept if self.what == "all" else ())):
                item.doc_string = ""
                item.ClearField("metadata_props")
        result = save_proto(proto, context)
        saved = model.size_bytes - result.size_bytes
        if saved <= 0:
            raise NotApplicable("the graph holds no doc strings and no metadata")
        return PassResult(result, True, (f"{saved:,} bytes fewer",))
