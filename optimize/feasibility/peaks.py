"""The best that one core of this device shows: arithmetic by precision, memory, and an empty call.

Every figure is the best of many short measurements, taken in turns over some seconds, because a
shared host is slow in spells; by every library that is installed, because a bound must hold for the
best kernel of any. One thread alone is measured: it has the highest clock, needs no second core to
be idle, and several threads are never faster than so many times one.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1
SECONDS, GLANCE_S = 1.5, 0.0  # a glance is one round
# Beyond all caches. To touch that much first takes half a second, which a glance spares: what it
# finds may be a cache's, and is never less than the memory's.
STREAM_BYTES, GLANCE_BYTES = 256 << 20, 64 << 20
PACKAGES = ("onnxruntime", "openvino", "torch", "numpy")
_LEAST_S = 0.01  # one measurement repeats its work for this long
_SIDE = 512  # of square matrices: large enough to be efficient, small enough for caches
_OPERATIONS = 2.0 * _SIDE**3
_IMAGES = ((64, 56), (256, 14))  # channels, pixels along a side, as in ResNets
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# Dot-product instructions take two or four numbers where a fused multiply-add takes one float.
_OVER_FLOAT32 = {"float16": 1.0, "bfloat16": 2.0, "int8": 4.0}
# Direct kernels reach the matrix product's speed at most; minimal filtering is well above it.
_FILTERED = 1.15


@dataclass(frozen=True)
class Peaks:
    """The best of one thread.

    Attributes:
        gops: 1e9 operations a second, two a multiply-accumulate, by precision: float32, float16,
            bfloat16, int8. What nothing here computes in is left out.
        bandwidth_gbs: bytes read from memory beyond all caches, 1e9 a second.
        call_us: one call of a model with one trivial node.
        winograd: whether a runtime may compute convolutions with fewer products.
    """

    gops: Mapping[str, float]
    bandwidth_gbs: float
    call_us: float
    winograd: bool

    def either(self, other: Peaks) -> Peaks:
        """The better of two measurements of one device, figure by figure."""
        kinds = self.gops.keys() | other.gops.keys()
        return Peaks(
            gops={k: max(self.gops.get(k, 0.0), other.gops.get(k, 0.0)) for k in sorted(kinds)},
            bandwidth_gbs=max(self.bandwidth_gbs, other.bandwidth_gbs),
            call_us=min(self.call_us, other.call_us),
            winograd=self.winograd or other.winograd,
        )


Work = tuple[str, float, Callable[[], object]]  # kind, amount, what does it


def load_libraries() -> None:
    """Import what measuring needs, so that it is there at once when it is asked for."""
    for package in ("numpy", "onnx", *PACKAGES):
        if package != "torch":  # it takes seconds, and is asked only where OpenVINO is missing
            with contextlib.suppress(Exception):
                importlib.import_module(package)


def measure_peaks(isa: Collection[str], architecture: str, seconds: float = SECONDS) -> Peaks:
    """Measure, for a process of its own.

    Args:
        isa: instruction sets of the processor.
        architecture: of the processor, as ``platform.machine()`` names it.
        seconds: the longer, the higher may what is found be; 0 for a glance, one round, whose
            bandwidth may be that of a large cache.
    """
    works = [*_onnxruntime(), _memory(STREAM_BYTES if seconds else GLANCE_BYTES)]
    for other in (_openvino, _torch):  # oneDNN serves both: torch is asked where it is alone
        try:
            works += other(isa)
            break
        except Exception:  # noqa: BLE001  not installed, or it has no such kernel here
            continue
    best: dict[str, float] = {}
    end = time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        for kind, amount, run in works:
            best[kind] = max(best.get(kind, 0.0), amount / _fastest(run) / 1e9)
    return peaks_of(best, architecture)


def peaks_of(best: Mapping[str, float], architecture: str) -> Peaks:
    """Put together what was measured, in 1e9 a second by kind of work."""
    gops = {k: best[k] for k in ("float32", "float16", "bfloat16", "int8") if k in best}
    for narrow, factor in _OVER_FLOAT32.items():
        if narrow in gops:
            gops[narrow] = max(gops[narrow], factor * gops["float32"])
    # On x86, neither onnxruntime nor oneDNN (which serves the others) filters minimally any more.
    known = architecture in ("x86_64", "AMD64")
    return Peaks(
        gops=gops,
        bandwidth_gbs=best["memory"],
        call_us=1e-3 / best["call"],
        winograd=not known or best["convolution"] > _FILTERED * gops["float32"],
    )


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    best, end = math.inf, time.perf_counter() + _LEAST_S
    while (start := time.perf_counter()) < end or best == math.inf:
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _onnxruntime() -> Iterator[Work]:
    x, *_ = _matrices(1)
    yield "call", 1, _session(one_node("Relu", {"x": x}), {"x": x})
    x, w, xq, wq = _matrices(_SIDE)
    x16, w16 = x.astype("float16"), w.astype("float16")
    for kind, operator, left, right in (
        ("float32", "MatMul", x, w),
        ("float16", "MatMul", x16, w16),
        ("int8", "MatMulInteger", xq, wq),
    ):
        model = one_node(operator, {"x": left}, {"w": right})
        yield kind, _OPERATIONS, _session(model, {"x": left})
    for model, x, amount in _convolutions():
        yield "convolution", amount, _session(model, {"x": x})


def _openvino(isa: Collection[str]) -> list[Work]:
    works: list[Work] = []
    hints = {"float32": "f32"} | ({"bfloat16": "bf16"} if _BF16 & set(isa) else {})
    x, w, _, wq = _matrices(_SIDE)
    for kind, hint in hints.items():
        run = _compiled(one_node("MatMul", {"x": x}, {"w": w}), x, hint)
        works.append((kind, _OPERATIONS, run))
    works.append(("int8", _OPERATIONS, _compiled(_quantized(x, wq), x, "f32")))
    for model, x, amount in _convolutions():
        works.append(("convolution", amount, _compiled(model, x, "f32")))
    return works


def _torch(isa: Collection[str]) -> list[Work]:
    import torch

    torch.set_num_threads(1)
    x, w, _, wq = map(torch.from_numpy, _matrices(_SIDE))
    works: list[Work] = [
        ("float32", _OPERATIONS, lambda: torch.mm(x, w)),
        ("int8", _OPERATIONS, lambda: torch._int_mm(wq, wq)),
    ]
    if _BF16 & set(isa):
        xb, wb = x.bfloat16(), w.bfloat16()
        works.append(("bfloat16", _OPERATIONS, lambda: torch.mm(xb, wb)))
    return works


def _memory(count: int) -> Work:
    import numpy as np

    stream = np.ones(count, np.uint8)
    return "memory", count, stream.max  # it finds the largest faster than bytes come


def _matrices(side: int) -> tuple[Any, Any, Any, Any]:
    """Two square matrices in float32, then as unsigned and signed bytes."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, w = (rng.random((side, side), dtype=np.float32) for _ in range(2))
    return x, w, (100 * x).astype(np.uint8), (100 * w - 50).astype(np.int8)


def _convolutions() -> Iterator[tuple[bytes, Any, float]]:
    import numpy as np

    rng = np.random.default_rng(0)
    for channels, side in _IMAGES:
        x = rng.random((1, channels, side, side), dtype=np.float32)
        w = rng.random((channels, channels, 3, 3), dtype=np.float32)
        # Only products with what is no padding count; direct kernels leave the others out.
        amount = 2.0 * channels**2 * (3 * side - 2) ** 2
        yield one_node("Conv", {"x": x}, {"w": w}, pads=[1, 1, 1, 1]), x, amount


def _session(model: bytes, inputs: Mapping[str, Any]) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()  # the cheapest way to call
    for name, array in inputs.items():
        # As a value of onnxruntime's own, float16 is bound as any other type.
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def _compiled(model: bytes, x: Any, hint: str) -> Callable[[], object]:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": 1,
    }
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)


def one_node(
    operator: str,
    inputs: Mapping[str, Any],
    constants: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> bytes:
    """A model of one operator with the output ``y``; its operands in the order given."""
    from onnx import helper

    names = [*inputs, *(constants or {})]
    node = helper.make_node(operator, names, ["y"], **attributes)
    return _serialized([node], inputs, constants or {}, integer=operator == "MatMulInteger")


def _quantized(x: Any, w: Any) -> bytes:
    """A product of ``x``, quantized to unsigned bytes, with the signed bytes ``w``."""
    import numpy as np
    from onnx import helper

    constants = {
        "w": w,
        "s": np.array(0.01, np.float32),
        "u": np.array(0, np.uint8),
        "i": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "u"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "u"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "i"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return _serialized(nodes, {"x": x}, constants)


def _serialized(
    nodes: list[Any], inputs: Mapping[str, Any], constants: Mapping[str, Any], integer: bool = False
) -> bytes:
    import numpy as np
    from onnx import helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype
    out = kind(np.dtype("int32") if integer else inputs["x"].dtype)
    graph = helper.make_graph(
        nodes,
        "peak",
        [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
