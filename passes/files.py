"""Read and write the graphs that passes work on."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimize.models.model import FILE_NAME, Model, Signature, graphs, link_or_copy, tensors
from optimize.passes.base import INLINE_MOST, Context
from optimize.worker import GRAPH_LEVEL, SPINNING, session_options

WITHOUT = "optimization.disable_specified_optimizers"
_CONSTANTS_IR = 4  # the first version whose weights need not be inputs, too


def load_ir(model: Model) -> Any:
    """Load the model as an ``onnx_ir.Model`` whose weights are read on demand.

    Of its inputs it has those that :func:`keep_inputs` keeps.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveInitializersFromInputsPass

    graph = onnx_ir.load(str(model.path))
    RemoveInitializersFromInputsPass()(graph)
    graph.ir_version = max(graph.ir_version, _CONSTANTS_IR)
    return graph


def save_ir(graph: Any, model: Model, context: Context) -> Model:
    """Write an ``onnx_ir.Model`` that came from ``model``; large ones get a side file."""
    import onnx_ir

    path = context.folder / FILE_NAME
    side = f"{FILE_NAME}.data" if model.size_bytes > INLINE_MOST else None
    onnx_ir.save(graph, str(path), external_data=side)
    return Model.read(path)


def brought(model: Model, context: Context) -> Model:
    """The same model in the pass's own folder, for libraries that write beside what they read."""
    folder = context.folder / "brought"
    folder.mkdir(exist_ok=True)
    for file in model.files:
        target = folder / file.relative_to(model.path.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            link_or_copy(file, target)
    return replace(model, path=folder / model.path.name)


def load_proto(model: Model) -> Any:
    """Load the model as an ``onnx.ModelProto`` with its weights."""
    import onnx

    proto = onnx.load(str(model.path))
    keep_inputs(proto, model.signature)
    return proto


def keep_inputs(proto: Any, signature: Signature) -> None:
    """Drop the inputs that a signature does not count, in place.

    Old models list their weights among the inputs, as defaults that a caller could override; what
    is dropped is a constant from then on.
    """
    names = {spec.name for spec in signature.inputs}
    inputs = [value for value in proto.graph.input if value.name in names]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, _CONSTANTS_IR)


def save_proto(proto: Any, context: Context) -> Model:
    """Write an ``onnx.ModelProto``; large ones get a side file."""
    import onnx

    path = context.folder / FILE_NAME
    large = _weight_bytes(proto) > INLINE_MOST
    onnx.save(proto, str(path), save_as_external_data=large, location=f"{FILE_NAME}.data")
    return Model.read(path)


def _weight_bytes(proto: Any) -> int:
    """Bytes of all weights; protobuf cannot tell the size of a message of more than 2 GiB."""
    return sum(tensor.ByteSize() for graph in graphs(proto.graph) for tensor in tensors(graph))


def open_session(graph: Path | bytes, level: str = "ALL", without: str = "") -> Any:
    """Open a float or quantized graph on the CPU, to look at values that it computes.

    Args:
        graph: a file, or a serialized ``onnx.ModelProto``.
        level: as :func:`optimize.worker.session_options` takes it.
        without: names of onnxruntime's optimizers to leave out, joined by semicolons.
    """
    import onnxruntime

    # Idle threads that spin would hinder what other processes build meanwhile.
    config = {GRAPH_LEVEL: level, SPINNING: "0"}
    if without:
        config[WITHOUT] = without
    return onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph),
        session_options(config, 0),
        providers=["CPUExecutionProvider"],
    )


def needs_side_file(model: Model) -> bool:
    """Whether a model of this size must keep its weights beside the graph."""
    return model.size_bytes > INLINE_MOST


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep libraries from printing and logging every pattern that they did not match."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
