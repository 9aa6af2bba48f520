"""The script beside a chosen model: how a service loads it, runnable as it is."""

from __future__ import annotations

from optimize.models.model import Model
from optimize.worker import GRAPH_LEVEL, SHAPES, THREADS, shapes

SCRIPT = "serve.py"

_ONNXRUNTIME = '''\
"""Load the model as it was measured, and run it on zeros. Needs onnxruntime and numpy."""

from pathlib import Path

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
{options}session = onnxruntime.InferenceSession(
    str(Path(__file__).with_name({file!r})), options, providers=[{provider!r}]
)
inputs = {inputs}
for output, value in zip(session.get_outputs(), session.run(None, inputs)):
    print(output.name, getattr(value, "shape", type(value).__name__))
'''
_OPENVINO = '''\
"""Load the model as it was measured, and run it on zeros. Needs openvino and numpy."""

from pathlib import Path

import numpy as np
import openvino

properties = {properties}
core = openvino.Core()
model = core.read_model(str(Path(__file__).with_name({file!r})))
{reshape}compiled = core.compile_model(model, {provider!r}, properties)
inputs = {inputs}
for output, value in compiled(inputs).items():
    print(output.get_any_name(), value.shape)
'''
_RESHAPE = """\
# The shapes that were measured; without this line it takes any, and is slower.
model.reshape({shapes})
"""
_INDUCTOR = '''\
"""Load the model as it was measured, and run it on zeros. Needs torch."""

from pathlib import Path

import numpy as np
import torch

torch.set_num_threads({threads})
package = torch._inductor.aoti_load_package(str(Path(__file__).with_name({file!r})))
inputs = {inputs}
with torch.inference_mode():
    results = package(*(torch.from_numpy(value) for value in inputs.values()))
for value in torch.utils._pytree.tree_leaves(results):
    print(tuple(value.shape))
'''


def script(model: Model, runtime: str, provider: str, threads: int, file: str, batch: int) -> str:
    """Write the script for one artefact.

    Args:
        model: its signature and options.
        runtime: what serves it.
        provider: where.
        threads: how many, unless the model's own options say otherwise.
        file: the artefact's name in the same folder.
        batch: samples a call, for axes that may vary.
    """
    threads = int(dict(model.config).get(THREADS, threads))
    values = {"threads": threads, "file": file, "provider": provider}
    values["inputs"] = _inputs(model, batch)
    if runtime == "openvino":
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            **dict(model.config),
        }
        fixed = properties.pop(SHAPES, None)
        reshape = _RESHAPE.format(shapes=shapes(str(fixed))) if fixed else ""
        return _OPENVINO.format(properties=properties, reshape=reshape, **values)
    if runtime == "inductor":
        return _INDUCTOR.format(**values)
    return _ONNXRUNTIME.format(options=_options(model), **values)


def _options(model: Model) -> str:
    lines = []
    for key, value in model.config:
        if key == THREADS:
            continue  # set already
        if key == GRAPH_LEVEL:
            level = f"onnxruntime.GraphOptimizationLevel.ORT_ENABLE_{value}"
            lines.append(f"options.graph_optimization_level = {level}\n")
        else:
            lines.append(f"options.add_session_config_entry({key!r}, {value!r})\n")
    return "".join(lines)


def _inputs(model: Model, batch: int) -> str:
    entries = []
    fixed = shapes(dict(model.config).get(SHAPES, ""))
    for spec in model.signature.inputs:
        dims = fixed.get(spec.name) or [
            dim if isinstance(dim, int) else batch if axis == 0 else 16
            for axis, dim in enumerate(spec.shape or ())
        ]
        kind = "object" if spec.dtype == "str" else f"np.{spec.dtype}"
        kind = "bool" if spec.dtype == "bool" else kind
        entries.append(f"    {spec.name!r}: np.zeros({tuple(dims)}, {kind}),\n")
    return "{\n" + "".join(entries) + "}"
