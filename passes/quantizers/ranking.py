"""Which layers to leave in float: accuracy recovered per microsecond lost.

Every layer of a quantized model is put back to float alone: what the outputs' error falls by is
what that layer's quantization cost, and what the kernels take longer is what it saved. Both
depend on what else is in float, so that the ranking is made anew as the best of it are put back.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimize.models.data import Dataset
from optimize.models.run import feed
from optimize.passes.files import WITHOUT
from optimize.passes.quantizers.layers import REQUANTIZER
from optimize.worker import GRAPH_LEVEL, session_options

MOST_LAYERS = 96
_CHECKED = 8  # samples that outputs are compared on
# Timed calls of each form: as many as this, fewer of slow ones.
_RUNS, _RUNS_S = 24, 0.2
# Differences of kernel times below this share of a call, or so many microseconds, which profiles
# count in whole, are not told from none.
_NOISE, _NOISE_US = 0.005, 2.0
_CHEAP, _CHEAP_US = 0.1, 10.0
# Of the error of all layers: what is most of it, and what may be cancelled by chance.
_MOST, _CANCELLED = 0.5, 0.1
# Ranking anew is worth this long, once every layer was tried.
_AGAIN_S = 10.0

# onnxruntime numbers what it inserts, and one more shifts all numbers that follow.
_NUMBER = re.compile(r"_token_\d+$")

Without = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class Layer:
    """A layer and what its quantization brings.

    Attributes:
        node: its name.
        recovered: by how much the outputs' relative squared error falls when it stays in float.
        lost_us: microseconds that a call takes longer then; negative where INT8 is the slower.
    """

    node: str
    recovered: float
    lost_us: float

    def worth(self, least_us: float) -> float:
        """Error recovered for each microsecond, of which no less than ``least_us`` count."""
        return self.recovered / max(self.lost_us, least_us)


@dataclass(frozen=True)
class Spent:
    """What a call spends in the kernels of one operator and name.

    Attributes:
        count: how many there are.
        us: microseconds that they take, the slowest quarter of the runs left out.
    """

    count: int
    us: float


Kernels = Mapping[tuple[str, str], Spent]


@dataclass(frozen=True)
class Form:
    """What one form of the model computes, and how long its kernels take.

    Attributes:
        error: of its outputs, see :func:`output_error`.
        kernels: by operator and name.
    """

    error: float
    kernels: Kernels

    def slower_than(self, other: Form) -> float:
        """Microseconds by which a call of this form takes longer.

        Kernels that both have as often are left out: only their noise would count.
        """
        none = Spent(0, 0.0)
        pairs = [
            (self.kernels.get(key, none), other.kernels.get(key, none))
            for key in self.kernels.keys() | other.kernels.keys()
        ]
        return sum(mine.us - theirs.us for mine, theirs in pairs if mine.count != theirs.count)


def rank(
    reference: Path,
    without: Without,
    layers: Sequence[str],
    samples: Dataset,
    most: int,
    again_s: float = _AGAIN_S,
) -> list[Layer]:
    """Rank layers by what leaving each of them in float recovers, best first.

    One that gives back most of the accuracy for little time comes first, then those that are faster
    in float. Of the others, accuracy recovered per microsecond counts, and after each doubling of
    those that are put back it is measured again beside them.

    Args:
        reference: the float model's file, with the same names.
        without: gives the quantized ``onnx.ModelProto`` with some layers, by name, in float.
        layers: names of the quantized layers.
        samples: inputs to compare outputs on.
        most: how many to rank, the slowest.
        again_s: how long to rank anew, once every layer was tried.
    """
    bench = _Bench(samples.first(_CHECKED), without, reference)
    left = bench.slowest(layers, most)
    order, ranked = bench.ranked([], left), list[Layer]()
    until = time.monotonic() + again_s
    while order:
        count = max(1, len(ranked))
        ranked, order = ranked + order[:count], order[count:]
        if time.monotonic() < until:
            near = [layer.node for layer in order[: 4 * count]]
            order = bench.ranked([layer.node for layer in ranked], near) + order[len(near) :]
    return ranked


class _Bench:
    """Runs forms of one quantized model on a few samples, on one thread."""

    def __init__(self, samples: Dataset, without: Without, reference: Path) -> None:
        self._feeds = [feed(samples.sample(index)) for index in range(len(samples))]
        self._without, self._reference = without, reference
        self._true, _ = _run(reference, self._feeds)

    def slowest(self, layers: Sequence[str], most: int) -> list[str]:
        """The ``most`` layers that take longest in float."""
        if len(layers) <= most:
            return [*layers]
        _, kernels = _run(self._reference, self._feeds, "BASIC")  # beyond it nodes lose their names
        times = owned(kernels, layers)
        return sorted(layers, key=lambda name: -times[name])[:most]

    def ranked(self, kept: Sequence[str], layers: Sequence[str]) -> list[Layer]:
        """Rank layers by what putting each back brings, where ``kept`` are already."""
        base = self._form(kept)
        total = sum(spent.us for spent in base.kernels.values())
        found = []
        for name in layers:
            form = self._form((*kept, name))
            found.append(Layer(name, base.error - form.error, form.slower_than(base)))
        return sorted(found, key=lambda layer: _order(layer, total, base.error))

    def _form(self, kept: Sequence[str]) -> Form:
        outputs, kernels = _run(self._without(kept).SerializeToString(), self._feeds)
        return Form(output_error(outputs, self._true), kernels)


def _order(layer: Layer, total_us: float, error: float) -> tuple[int, float]:
    """Sort key: what gives most accuracy cheaply, then what is faster in float, then by worth.

    Last is what had no integer kernel, for it is in float already. Errors of layers cancel in
    part, so that a faster one may add a little.
    """
    least_us = max(_NOISE * total_us, _NOISE_US)
    if abs(layer.lost_us) < least_us and abs(layer.recovered) <= _NOISE * error:
        return 3, 0.0
    cheap_us = max(_CHEAP * total_us, _CHEAP_US)
    if layer.recovered >= _MOST * error and layer.lost_us <= cheap_us:
        return 0, -layer.worth(least_us)
    if layer.lost_us < -least_us and layer.recovered >= -_CANCELLED * error:
        return 1, layer.lost_us
    return 2, -layer.worth(least_us)


def output_error(got: Sequence[Sequence[Any]], want: Sequence[Sequence[Any]]) -> float:
    """Squared error of all float outputs, each relative to its power, summed over outputs."""
    errors = []
    for output in range(len(want[0])):
        a = [np.asarray(values[output]) for values in got]
        b = [np.asarray(values[output]) for values in want]
        if b[0].dtype.kind == "f":
            pairs = list(zip(a, b, strict=True))
            gap = sum(float(np.nansum((x - y) ** 2)) for x, y in pairs)
            power = sum(float(np.nansum(y**2)) for y in b)
            errors.append(gap / max(power, 1e-30))
    return sum(errors)


def owned(kernels: Kernels, layers: Sequence[str]) -> Mapping[str, float]:
    """Microseconds of each layer, by the names of its kernels."""
    times = dict.fromkeys(layers, 0.0)
    for (_, name), spent in kernels.items():
        # A fused node's name begins with the name of the first that it was made of.
        owner = name if name in times else name.split("/MatMulAddFusion")[0]
        if owner in times:
            times[owner] += spent.us
    return times


def _run(
    graph: Path | bytes, feeds: Sequence[Mapping[str, Any]], level: str = "ALL"
) -> tuple[list[list[Any]], Kernels]:
    """The outputs for each sample, and the time of every kernel in a call."""
    import onnxruntime

    options = session_options({GRAPH_LEVEL: level, WITHOUT: REQUANTIZER}, 1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/layers"
        session = onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            options,
            providers=["CPUExecutionProvider"],
        )
        begun, runs = time.monotonic(), len(feeds)
        outputs = [session.run(None, given) for given in feeds]
        while runs < _RUNS and time.monotonic() - begun < _RUNS_S:
            session.run(None, feeds[runs % len(feeds)])
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken = defaultdict[tuple[str, str], list[float]](list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            kind = str(event["args"]["op_name"])
            plain = _NUMBER.sub("", name.removesuffix("_kernel_time"))
            taken[kind, plain].append(float(event["dur"]))
    return outputs, {key: _usual(durations, runs) for key, durations in taken.items()}


def _usual(durations: Sequence[float], runs: int) -> Spent:
    """What a call spends in kernels of one name, by events in the order in which they ran.

    Whole microseconds are averaged, not ranked.
    """
    count = round(len(durations) / runs)
    if len(durations) != count * runs:  # inside of a branch or a loop
        return Spent(count, sum(durations) / runs)
    calls = sorted(sum(durations[run * count : (run + 1) * count]) for run in range(runs))
    kept = calls[: max(1, 3 * runs // 4)]
    return Spent(count, sum(kept) / len(kept))
