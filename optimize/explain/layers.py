"""Which layers cost the accuracy: tensors of the same name, before a pass and after it.

Meant for the child process (:class:`optimize.processes.child.Child`). A layer's loss is its
signal-to-noise ratio in decibels, 10 log10(sum x^2 / sum (y - x)^2) over all samples, with x before
and y after.
The layer to blame is not the one with the least ratio, since noise travels on, but the one whose
output holds most noise that its inputs do not. Noise is counted as a share of all power, from 0 to
1, so that a fall from 31 to 12 dB weighs more than one from 100 to 35, as it does for the outputs.
Layers that the pass left alone only pass noise on, and are not blamed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from optimize.models.data import Array, Dataset
from optimize.models.graph import Graph
from optimize.models.model import FILE_NAME, Model
from optimize.models.run import run_each
from optimize.passes.base import Pass
from optimize.passes.chain import SOURCE, Chain

CLEAN_DB = 100.0  # float32 holds 24 bits, 144 dB; beyond this a tensor counts as unharmed
LEAST_DROP_DB, LEAST_ADDED = 1.0, 1e-4
MASKED = 1e30  # from this magnitude on, a number means minus infinity, as in attention masks
# Tensors of one sample held in memory: some at first, then as many as this allows for both models.
_AT_ONCE, _HELD_BYTES = 64, 512 << 20
_READ_MOST = 2**31 - 2**26  # larger models keep their weights in side files
# What only moves or stores numbers is nobody's layer.
_MOVES = frozenset(
    (
        "QuantizeLinear DequantizeLinear Cast Identity Constant Shape Reshape Transpose Squeeze "
        "Unsqueeze Flatten Slice Concat Split Expand"
    ).split()
)


# Passes that write numbers in another format, and those that keep every number that they keep.
# All others rescale, train or cut: their tensors may have a name in common, and no value.
_FORMATS = frozenset(("fp16", "bf16", "int8"))
_KEEPS_VALUES = _FORMATS | {"fold", "fuse", "session", "shapes"}


def comparable(chain: Chain, models: Mapping[str, Model]) -> Model | None:
    """What the layers of a chain can be compared with: the model before formats were changed.

    Args:
        chain: whose layers are to be blamed.
        models: the artefacts at hand by chain, the source's among them.

    Returns:
        That model, or the source if all until then kept the tensors' values; None if neither.
    """
    names = [step.name for step in chain.passes]
    last = max((i for i, name in enumerate(names) if name in _FORMATS), default=None)
    if last is None or not _keeps_values(chain.passes[last:]):
        return None
    before = models.get(str(Chain(chain.passes[:last], chain.runtime)))
    if before is None and _keeps_values(chain.passes[:last]):
        before = models.get(SOURCE)
    return before if before and before.format == "onnx" else None


def _keeps_values(passes: Sequence[Pass]) -> bool:
    trained = (getattr(step, "recover", "none") != "none" for step in passes)
    return all(step.name in _KEEPS_VALUES for step in passes) and not any(trained)


@dataclass(frozen=True)
class LayerLoss:
    """What a layer lost.

    Attributes:
        node: its name in the graph before the pass; its output's name if it has none.
        op: its operator type.
        tensor: its output that was compared.
        sqnr_db: signal-to-quantization-noise ratio of that output, in dB; 100 at most.
        drop_db: how far that is below the worst of its inputs, in dB.
    """

    node: str
    op: str
    tensor: str
    sqnr_db: float
    drop_db: float

    def __str__(self) -> str:
        before = self.sqnr_db + self.drop_db
        clean = "a clean input" if before >= CLEAN_DB else f"{before:.0f}"
        return f"{self.node} ({self.op}): SQNR falls from {clean} to {self.sqnr_db:.0f} dB"


def worst_layers(
    before: Model, after: Model, samples: Dataset, most: int = 3
) -> tuple[LayerLoss, ...]:
    """The layers at which the signal-to-noise ratio drops most, most added noise first.

    Args:
        before: the model that a pass took.
        after: what it gave; tensors of equal name are compared.
        samples: inputs of both; a few dozen do.
        most: how many layers to return.

    Returns:
        Layers that lose at least 1 dB and add a ten-thousandth of noise (40 dB); empty if none
        does, or if no tensor is in both graphs.

    Raises:
        InputError: onnxruntime cannot load or run one of the models.
    """
    protos = _load(before), _load(after)
    old, new = (Graph(proto.graph) for proto in protos)
    shown = _shown(old, new)
    ratios, cast = _ratios((before, after), protos, shown, samples)
    losses = [
        loss
        for node in old.nodes
        if cast & set(node.output) or _touched(old, new, node, shown)
        for loss in _losses(old, node, ratios)
    ]
    harmful = [x for x in losses if x.drop_db >= LEAST_DROP_DB and _added(x) >= LEAST_ADDED]
    return tuple(sorted(harmful, key=_added, reverse=True)[:most])


def _added(loss: LayerLoss) -> float:
    return _noise_share(loss.sqnr_db) - _noise_share(loss.sqnr_db + loss.drop_db)


def _noise_share(decibels: float) -> float:
    return 1 / (1 + 10 ** (decibels / 10))


def _losses(graph: Graph, node: Any, ratios: Mapping[str, float]) -> Iterator[LayerLoss]:
    """One layer's loss, against the nearest compared tensors above it."""
    for tensor in node.output:
        if tensor in ratios and node.op_type not in _MOVES:
            above = min(_above(graph, node, ratios, set()), default=CLEAN_DB)
            name = node.name or tensor
            yield LayerLoss(name, node.op_type, tensor, ratios[tensor], above - ratios[tensor])


def _above(graph: Graph, node: Any, ratios: Mapping[str, float], seen: set[str]) -> Iterator[float]:
    """Ratios of the tensors that a node takes; where one was not compared, of those before it."""
    for tensor in node.input:
        if tensor in seen:
            continue
        seen.add(tensor)
        source = graph.source(tensor)
        if tensor in ratios:
            yield ratios[tensor]
        elif source is not None:
            yield from _above(graph, source, ratios, seen)


def _load(model: Model) -> Any:
    import onnx

    return onnx.load(str(model.path), load_external_data=model.size_bytes < _READ_MOST)


def _shown(old: Graph, new: Graph) -> dict[str, str]:
    """Tensors that nodes of both graphs make, in the order of execution: old name to new name.

    A tensor that is only read to be quantized is what comes out of the pair: the pair may also
    clip, in place of a Relu that was left out.
    """
    made = {name for node in new.nodes for name in node.output if name}
    names = [name for node in old.nodes for name in node.output if name in made]
    return {name: _dequantized(new, name) for name in names}


def _dequantized(graph: Graph, tensor: str) -> str:
    source = graph.source(tensor)
    readers = [] if source is None else [n for n in graph.readers(source) if tensor in n.input]
    if tensor in graph.outputs or any(n.op_type != "QuantizeLinear" for n in readers):
        return tensor
    pairs = [pair for n in readers for pair in graph.readers(n)]
    ends: list[str] = [pair.output[0] for pair in pairs if pair.op_type == "DequantizeLinear"]
    return ends[0] if ends else tensor


def _touched(old: Graph, new: Graph, node: Any, shown: Mapping[str, str]) -> bool:
    """Whether a pass changed a layer: its operator, inputs, weights or its output's pair."""
    for tensor in node.output:
        other = new.source(tensor)
        if other is None:
            continue
        if shown[tensor] != tensor or other.op_type != node.op_type or other.input != node.input:
            return True
        for name in node.input:
            weight, changed = old.constant(name), new.constant(name)
            if weight is not None and (changed is None or not np.array_equal(weight, changed)):
                return True
    return False


def _ratios(
    models: tuple[Model, Model],
    protos: tuple[Any, Any],
    shown: Mapping[str, str],
    samples: Dataset,
) -> tuple[dict[str, float], set[str]]:
    """Signal-to-noise ratio of every tensor in ``shown``, in dB, and those with another type."""
    ratios: dict[str, float] = {}
    cast: set[str] = set()
    names = list(shown)
    with tempfile.TemporaryDirectory(prefix="optimize-layers-") as folder:
        start, count = 0, _AT_ONCE
        while start < len(names):
            part = {name: shown[name] for name in names[start : start + count]}
            old = _showing(models[0], protos[0], [*part], Path(folder) / "before")
            new = _showing(
                models[1], protos[1], [*dict.fromkeys(part.values())], Path(folder) / "after"
            )
            found, others, largest = _compare(old, new, part, samples)
            ratios |= found
            cast |= others
            start += count
            count = max(_AT_ONCE, _HELD_BYTES // (2 * max(largest, 1)))
    return ratios, cast


def _showing(model: Model, proto: Any, tensors: Sequence[str], folder: Path) -> Model:
    """The model with ``tensors`` for outputs, in a folder of its own."""
    import onnx

    folder.mkdir(exist_ok=True)
    if model.size_bytes >= _READ_MOST:
        for file in model.files[1:]:
            place = folder / file.relative_to(model.path.parent)
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    onnx.save(shown, str(folder / FILE_NAME))
    return replace(model, path=folder / FILE_NAME)


def _compare(
    before: Model, after: Model, shown: Mapping[str, str], samples: Dataset
) -> tuple[dict[str, float], set[str], int]:
    """Ratios in dB, tensors with another type, and the bytes of the largest tensor."""
    largest = 0
    signal, noise = dict.fromkeys(shown, 0.0), dict.fromkeys(shown, 0.0)
    cast: set[str] = set()
    for old, new in zip(run_each(before, samples), run_each(after, samples), strict=True):
        for name in [*signal]:
            x, y = old[name], new[shown[name]]
            largest = max(largest, getattr(x, "nbytes", 0))
            if not _comparable(x, y):
                del signal[name]
                continue
            if x.dtype != y.dtype:
                cast.add(name)
            known = np.abs(x) < MASKED
            wide = x[known].astype(np.float64)
            signal[name] += _power(wide)
            noise[name] += _power(y[known].astype(np.float64) - wide)
    ratios = {name: _decibels(power, noise[name]) for name, power in signal.items()}
    return ratios, cast, largest


def _comparable(x: Any, y: Any) -> bool:
    floats = all(isinstance(v, np.ndarray) and v.dtype.kind == "f" for v in (x, y))
    return floats and x.shape == y.shape


def _power(x: Array) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _decibels(signal: float, noise: float) -> float:
    """Between -100 and 100; noise that is no number counts as infinite."""
    if noise == 0:
        return CLEAN_DB
    if signal == 0 or not math.isfinite(noise):
        return -CLEAN_DB
    return max(-CLEAN_DB, min(CLEAN_DB, 10 * math.log10(signal / noise)))
