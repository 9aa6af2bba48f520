"""Which layers to leave in float: accuracy recovered per microsecond lost.

Every layer of a quantized model is put back to float alone; what the outputs' error falls by is
what that layer's quantization cost, and the layer's own float time is what giving it up costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimize.models.data import Dataset
from optimize.models.run import feed
from optimize.passes.files import open_session
from optimize.passes.quantizers.static import MATMUL
from optimize.worker import GRAPH_LEVEL, session_options

# What only moves numbers costs no accuracy.
_MOVES = frozenset(
    (
        "QuantizeLinear DequantizeLinear Reshape Transpose Squeeze Unsqueeze Flatten Slice Split "
        "Concat Gather MaxPool Identity"
    ).split()
)
MOST_LAYERS = 96
_CHECKED = 8
# onnxruntime's optimizer that quantizes float weights between quantized tensors: a layer that was
# put back to float would be quantized again while it is loaded.
REQUANTIZER = "WeightBiasQuantization"


@dataclass(frozen=True)
class Layer:
    """A layer and what its quantization brings.

    Attributes:
        node: its name.
        recovered: by how much the outputs' relative squared error falls when it stays in float.
        time_share: its share of the float model's time in such layers.
    """

    node: str
    recovered: float
    time_share: float

    @property
    def worth(self) -> float:
        """Error recovered for each share of the time."""
        return self.recovered / max(self.time_share, 1e-6)


def rank(
    full: Any,
    reference: Path,
    without: Callable[[str], Any],
    layers: Sequence[str],
    samples: Dataset,
    most: int,
) -> list[Layer]:
    """Rank layers by what leaving each of them in float recovers, best first.

    Args:
        full: the quantized ``onnx.ModelProto``.
        reference: the float model's file, with the same names.
        without: gives the quantized model with one layer, by name, in float.
        layers: names of the quantized layers.
        samples: inputs to compare outputs on.
        most: how many to rank, the slowest.
    """
    samples = samples.first(_CHECKED)
    true = _outputs(reference, samples)
    times = float_times(reference, samples, layers)
    chosen = sorted(layers, key=lambda name: -times[name])[:most]
    total = sum(times.values()) or 1.0
    error = output_error(_outputs(full.SerializeToString(), samples), true)
    ranked = [
        Layer(
            name,
            error - output_error(_outputs(without(name).SerializeToString(), samples), true),
            times[name] / total,
        )
        for name in chosen
    ]
    return sorted(ranked, key=lambda layer: -layer.worth)


def output_error(got: Sequence[Sequence[Any]], want: Sequence[Sequence[Any]]) -> float:
    """Squared error of all float outputs, each relative to its power, summed over outputs."""
    errors = []
    for output in range(len(want[0])):
        a = [np.asarray(values[output]) for values in got]
        b = [np.asarray(values[output]) for values in want]
        if b[0].dtype.kind == "f":
            gap = sum(float(((x - y) ** 2).sum()) for x, y in zip(a, b, strict=True))
            power = sum(float((y**2).sum()) for y in b)
            errors.append(gap / max(power, 1e-30))
    return sum(errors)


def restore(quantized: Any, reference: Any, nodes: Sequence[str]) -> Any:
    """Put layers of a QDQ model back to float.

    Args:
        quantized: QDQ ``onnx.ModelProto`` made from ``reference``.
        reference: the float model, with the same names of nodes and tensors.
        nodes: names of the layers.

    Returns:
        A copy of ``quantized`` in which these nodes read their float weights, and the float
        activations where the node that makes them still does.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    originals = {node.name: node for node in reference.graph.node}
    weights = {tensor.name: tensor for tensor in reference.graph.initializer}
    makers, first_makers = _makers(result), _makers(reference)
    added: set[str] = set()
    for node in result.graph.node:
        if node.name not in nodes:
            continue
        for index, name in enumerate(originals[node.name].input):
            if name not in weights:
                if _still_float(makers.get(name), first_makers.get(name), makers):
                    node.input[index] = name
                continue
            # A dequantized bias goes by the name of the original one.
            node.input[index] = f"{name}_float"
            if name not in added:
                added.add(name)
                tensor = result.graph.initializer.add()
                tensor.CopyFrom(weights[name])
                tensor.name = f"{name}_float"
    return _pruned(result)


def _makers(proto: Any) -> dict[str, Any]:
    return {name: node for node in proto.graph.node for name in node.output}


def _still_float(maker: Any, original: Any, makers: Mapping[str, Any]) -> bool:
    """Whether a tensor is what it was, and can be read in float at no other layer's cost.

    A ReLU before a quantized tensor is gone, since the range clips what it would; and a
    convolution or pooling whose result is read in float has no integer kernel. Products have.
    """
    if maker is None or original is None:
        return maker is original  # an input of the model
    if maker.op_type != original.op_type:
        return False
    quantized = any(
        name in makers and makers[name].op_type == "DequantizeLinear" for name in maker.input
    )
    return maker.op_type in MATMUL or not quantized


def _pruned(proto: Any) -> Any:
    """Drop nodes and weights that no output needs any more."""
    import onnx_ir
    from onnx_ir.passes import common

    graph = onnx_ir.from_proto(proto)
    common.RemoveUnusedNodesPass()(graph)
    return onnx_ir.to_proto(graph)


def quantized_layers(quantized: Any, reference: Any) -> list[str]:
    """Names of the nodes that compute on dequantized tensors."""
    dequantized = {
        name
        for node in quantized.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    known = {node.name for node in reference.graph.node}
    return [
        node.name
        for node in quantized.graph.node
        if node.op_type not in _MOVES and node.name in known and dequantized & set(node.input)
    ]


def float_times(model: Path, samples: Dataset, layers: Sequence[str]) -> Mapping[str, float]:
    """Nanoseconds that each layer takes in the float model, on one thread."""
    import json

    import onnxruntime

    # Beyond this level nodes lose their names.
    options = session_options({GRAPH_LEVEL: "BASIC"}, 1)
    options.enable_profiling = True
    options.profile_file_prefix = str(model.with_name("layers"))
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for index in range(len(samples)):
        session.run(None, feed(samples.sample(index)))
    file = Path(session.end_profiling())
    events = json.loads(file.read_text())
    file.unlink()
    times = dict.fromkeys(layers, 0.0)
    suffix = "_kernel_time"
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(suffix):
            # A fused node's name begins with the name of the first that it was made of.
            node = name.removesuffix(suffix)
            owner = node if node in times else node.split("/MatMulAddFusion")[0]
            if owner in times:
                times[owner] += 1000.0 * event["dur"]
    return times


def _outputs(model: Path | bytes, samples: Dataset) -> list[list[Any]]:
    session = open_session(model, without=REQUANTIZER)
    return [session.run(None, feed(samples.sample(i))) for i in range(len(samples))]
