"""One process that loads one model and answers commands. Needs numpy and its runtime only.

Started as ``python worker.py JOB``, it needs nothing of this project installed, so that it can be
copied to another machine. ``python worker.py --device`` prints what the machine is.

Protocol, version 2: one JSON object a line. The job is a file::

    {"version": 2, "runtime": "onnxruntime" | "openvino" | "inductor", "model": PATH,
     "provider": NAME, "threads": N, "cpus": [N, ...] or null, "config": {KEY: VALUE},
     "names": {"inputs": [NAME, ...], "outputs": [NAME, ...]}, "inputs": FOLDER,
     "scratch": FOLDER, "pre": "FILE.py:FUNCTION" or null, "post": the same}

``pre(inputs) -> inputs`` and ``post(outputs) -> anything`` take dictionaries of arrays; they run
inside of the timed call, as in the service.

The first line that the worker writes answers for loading; then each line read, {"do": NAME, ...},
is answered by one line, {"ok": true, ...} or {"ok": false, "error": SENTENCE}::

    outputs  order, part          run these samples once, write their outputs to scratch
    warmup   calls, seconds       call until steady; floors and a limit in calls
    time     order, lead_ns       time one call for each sample index in order
    operators calls               profile single operators, in a session of its own
    exit

History: 1, the first. 2, runtimes beside onnxruntime, hence names; cpus.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import json
import math
import os
import platform
import signal
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

VERSION = 2
CPU_FREQUENCY_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_ISA = (
    "sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 "
    "avx512_fp16 amx_tile amx_int8 amx_bf16 asimd asimddp asimdhp i8mm bf16 sve sve2"
).split()


def device() -> dict[str, Any]:
    """What this machine is: CPU, instruction sets, granted cores, memory, system, versions."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "isa": [flag for flag in _ISA if flag in flags],
        "cores": os.cpu_count() or 1,
        "granted_cores": granted_cores(),
        "memory_bytes": _memory(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def granted_cpus() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def granted_cores() -> int:
    """Cores that affinity and the cgroup's quota let this process use; at least 1."""
    cores = len(granted_cpus())
    quota = _cgroup_quota()
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


class _FlatArray:
    """A flat array in an ``.npy`` file."""

    def __init__(self, path: Path) -> None:
        """Read its header."""
        from numpy.lib import format as npy

        self._path = path
        with path.open("rb") as stream:
            npy.read_magic(stream)
            _, _, self._dtype = npy.read_array_header_1_0(stream)
            self._begin = stream.tell()

    def read(self, start: int, stop: int) -> Any:
        """The elements from ``start`` to ``stop``."""
        import numpy as np

        offset = self._begin + start * self._dtype.itemsize
        return np.fromfile(self._path, self._dtype, stop - start, offset=offset)


class Samples:
    """The inputs that the controller wrote: flat arrays, and the shape of each sample.

    They are read one by one: a map's pages would count as memory that the model takes.
    """

    def __init__(self, folder: Path) -> None:
        """Look up the arrays that ``samples.json`` lists."""
        import numpy as np

        index = json.loads((folder / "samples.json").read_text())
        self.count: int = index["count"]
        self._inputs = [
            (entry["name"], _FlatArray(folder / entry["file"]), entry["shapes"])
            for entry in index["inputs"]
        ]
        self._ends = [np.cumsum([0, *(math.prod(s) for s in e[2])]) for e in self._inputs]

    def feed(self, index: int) -> dict[str, Any]:
        """Sample ``index`` in fresh, touched memory, as a service holds a request."""
        feed = {}
        for (name, flat, shapes), ends in zip(self._inputs, self._ends, strict=True):
            part = flat.read(ends[index], ends[index + 1]).reshape(shapes[index])
            feed[name] = part.astype(object) if part.dtype.kind == "U" else part
        return feed


PARTS = ("pre", "input_transfer", "compute", "output_transfer", "post")
# The memory that tensors of a provider live in; the host's where it is not listed.
_MEMORY = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "ROCMExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}


GRAPH_LEVEL, THREADS = "graph_optimization_level", "intra_op_num_threads"
SPINNING = "session.intra_op.allow_spinning"
SHAPES = "input_shapes"
STEADY_CALLS = 40  # that tell whether a model is warm


def session_options(config: dict[str, str], threads: int) -> Any:
    """Onnxruntime's session options.

    The key ``graph_optimization_level`` takes ALL, EXTENDED, BASIC or DISABLE_ALL,
    ``intra_op_num_threads`` replaces ``threads``; other keys are onnxruntime's own.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in config.items():
        if key == GRAPH_LEVEL:
            levels = onnxruntime.GraphOptimizationLevel
            name = value if value == "DISABLE_ALL" else f"ENABLE_{value}"
            options.graph_optimization_level = getattr(levels, f"ORT_{name}")
        elif key == THREADS:
            options.intra_op_num_threads = int(value)
        else:
            options.add_session_config_entry(key, value)
    return options


class OnnxRuntime:
    """A model in onnxruntime."""

    def __init__(self, job: dict[str, Any], profile: str | None = None) -> None:
        """Create the session, and refuse any provider but the one asked for.

        ``profile`` is the prefix of a file for onnxruntime's own profile of operators.
        """
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        available = onnxruntime.get_available_providers()
        if job["provider"] not in available:
            raise RuntimeError(
                f"provider {job['provider']} is not installed; there are {available}"
            )
        options = session_options(job["config"], job["threads"])
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        session = onnxruntime.InferenceSession(job["model"], options, providers=[job["provider"]])
        session.disable_fallback()
        if session.get_providers()[0] != job["provider"]:
            raise RuntimeError(
                f"asked for {job['provider']}, "
                f"onnxruntime fell back to {session.get_providers()[0]}"
            )
        self.version = onnxruntime.__version__
        self.names = [output.name for output in session.get_outputs()]
        self.memory = _MEMORY.get(job["provider"])
        self._session = session
        self._to_device = onnxruntime.OrtValue.ortvalue_from_numpy
        self._run = session.run

    def run(self, feed: dict[str, Any]) -> list[Any]:
        """One inference, inputs and outputs in the host's memory."""
        outputs: list[Any] = self._run(self.names, feed)
        return outputs

    def run_marked(self, feed: dict[str, Any], marks: list[int]) -> list[Any]:
        """Do the same in three synchronized steps, the time after each appended to ``marks``."""
        clock = time.perf_counter_ns
        if self.memory is None:
            marks.append(clock())  # inputs are used where they lie
            outputs = self.run(feed)
            marks.append(clock())
            marks.append(marks[-1])  # so are outputs
            return outputs
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, self._to_device(array, self.memory, 0))
        for name in self.names:
            binding.bind_output(name, self.memory, 0)
        binding.synchronize_inputs()
        marks.append(clock())
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        marks.append(clock())
        outputs = list(binding.copy_outputs_to_cpu())
        marks.append(clock())
        return outputs

    def kernels(self, feeds: Iterator[dict[str, Any]]) -> Iterator[Kernel]:
        """Run all samples, then give the events of onnxruntime's profile."""
        for feed in feeds:
            self.run(feed)
        file = Path(self._session.end_profiling())
        events: list[dict[str, Any]] = json.loads(file.read_text())
        file.unlink()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                details = event["args"]
                node = details.get("node_index", event["name"])
                yield details["op_name"], node, event["dur"] * 1000, details.get("provider", "")


def shapes(text: str) -> dict[str, list[int]]:
    """What the key ``input_shapes`` holds: ``NAME=1x128;...`` as a shape for each input."""
    pairs = (part.rpartition("=") for part in text.split(";") if part)
    return {name: [int(dim) for dim in dims.split("x") if dim] for name, _, dims in pairs}


class OpenVino:
    """A model in OpenVINO, which reads ONNX and its own format."""

    memory = None

    def __init__(self, job: dict[str, Any], profile: str | None = None) -> None:
        """Compile the model, and refuse any device or precision but the one asked for."""
        import openvino

        core = openvino.Core()
        wanted = {
            "INFERENCE_PRECISION_HINT": "f32",  # its own default is bf16 where the CPU has that
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": job["threads"],
            "PERF_COUNT": profile is not None,
            **job["config"],
        }
        model = core.read_model(job["model"])
        if SHAPES in wanted:
            model.reshape(shapes(wanted.pop(SHAPES)))
        compiled = core.compile_model(model, job["provider"], wanted)
        devices = list(compiled.get_property("EXECUTION_DEVICES"))
        if devices != [job["provider"]]:
            raise RuntimeError(f"asked for {job['provider']}, OpenVINO took {', '.join(devices)}")
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision != wanted["INFERENCE_PRECISION_HINT"]:
            raise RuntimeError(
                f"asked for {wanted['INFERENCE_PRECISION_HINT']}, OpenVINO runs in {precision}"
            )
        self.version = openvino.__version__
        self.names = [output.get_any_name() for output in compiled.outputs]
        self._request = compiled.create_infer_request()
        self._provider = job["provider"]

    def run(self, feed: dict[str, Any]) -> list[Any]:
        """One inference; inputs are used where they lie, outputs are copied out."""
        results = self._request.infer(feed, share_inputs=True)
        return [results[index] for index in range(len(self.names))]

    def run_marked(self, feed: dict[str, Any], marks: list[int]) -> list[Any]:
        """Do the same with the times of its borders: transfers are none."""
        return _all_compute(self.run, feed, marks)

    def kernels(self, feeds: Iterator[dict[str, Any]]) -> Iterator[Kernel]:
        """Run sample after sample, each time giving OpenVINO's counters."""
        for feed in feeds:
            self.run(feed)
            for node in self._request.profiling_info:
                if node.status == node.Status.EXECUTED:
                    name = f"{node.node_type} ({node.exec_type})"
                    yield name, node.node_name, node.real_time.total_seconds() * 1e9, self._provider


class Inductor:
    """A package that torch's AOTInductor has compiled."""

    memory = None

    def __init__(self, job: dict[str, Any], profile: str | None = None) -> None:
        """Load the package; ``profile`` is not offered by it."""
        import torch

        torch.set_num_threads(job["threads"])
        torch.set_num_interop_threads(1)
        self.version = torch.__version__
        self.names = job["names"]["outputs"]
        self._inputs = job["names"]["inputs"]
        self._from_numpy = torch.from_numpy
        self._leaves = torch.utils._pytree.tree_leaves
        self._run = torch._inductor.aoti_load_package(job["model"])
        self._no_grad = torch.inference_mode

    def run(self, feed: dict[str, Any]) -> list[Any]:
        """One inference."""
        with self._no_grad():
            result = self._run(*(self._from_numpy(feed[name]) for name in self._inputs))
        return [leaf.numpy() for leaf in self._leaves(result)]

    def run_marked(self, feed: dict[str, Any], marks: list[int]) -> list[Any]:
        """Do the same with the times of its borders: transfers are none."""
        return _all_compute(self.run, feed, marks)

    def kernels(self, feeds: Iterator[dict[str, Any]]) -> Iterator[Kernel]:
        """Give nothing: its kernels are one compiled function."""
        return iter(())


def _all_compute(run: Any, feed: dict[str, Any], marks: list[int]) -> list[Any]:
    marks.append(time.perf_counter_ns())
    outputs: list[Any] = run(feed)
    marks.append(time.perf_counter_ns())
    marks.append(marks[-1])
    return outputs


Kernel = tuple[str, Any, float, str]  # operator, node, nanoseconds, provider
RUNTIMES = {"onnxruntime": OnnxRuntime, "openvino": OpenVino, "inductor": Inductor}


class Worker:
    """A loaded model and the commands on it."""

    def __init__(self, job: dict[str, Any]) -> None:
        """Load the model and make the first call."""
        if job["version"] != VERSION:
            raise RuntimeError(f"this worker speaks version {VERSION}, the job {job['version']}")
        if job["runtime"] not in RUNTIMES:
            raise RuntimeError(f"this worker has no runtime {job['runtime']}")
        if job["cpus"] is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, job["cpus"])  # before the runtime starts its threads
        self._job = job
        self._pre = _user_function(job.get("pre"))
        self._post = _user_function(job.get("post"))
        start = time.perf_counter_ns()
        self._loaded: Any = RUNTIMES[job["runtime"]](job)
        self.load_ns = time.perf_counter_ns() - start
        self._samples = Samples(Path(job["inputs"]))
        # How long the last calls for outputs took, in nanoseconds.
        self._warm: deque[int] = deque(maxlen=STEADY_CALLS)
        self._scratch = Path(job["scratch"])
        self._seen: set[int] = set()  # samples whose outputs in timed calls were looked at
        feed = self._samples.feed(0)
        start = time.perf_counter_ns()
        self._call(feed)
        self.first_call_ns = time.perf_counter_ns() - start

    @property
    def _runtime(self) -> Any:
        """The loaded model; loaded again if ``operators`` has put it away."""
        if self._loaded is None:
            self._loaded = RUNTIMES[self._job["runtime"]](self._job)
        return self._loaded

    def _call(self, feed: dict[str, Any]) -> Any:
        """One call end to end, as a service makes it."""
        if self._pre is None and self._post is None:
            return self._runtime.run(feed)
        return self._call_marked(feed, [])

    def _call_marked(self, feed: dict[str, Any], marks: list[int]) -> Any:
        """One call end to end; the times at the borders of its parts go to ``marks``."""
        clock = time.perf_counter_ns
        marks.append(clock())
        if self._pre is not None:
            feed = self._pre(dict(feed))  # it may take its input apart
        marks.append(clock())
        outputs = self._runtime.run_marked(feed, marks)
        result = outputs
        if self._post is not None:
            result = self._post(dict(zip(self._runtime.names, outputs, strict=True)))
        marks.append(clock())
        return result

    def ready(self) -> dict[str, Any]:
        """The answer for loading."""
        return {
            "load_ns": self.load_ns,
            "first_call_ns": self.first_call_ns,
            "runtime_version": self._runtime.version,
            "outputs": self._runtime.names,
            "rss_bytes": _rss(),
            "peak_bytes": _peak(),
        }

    def outputs(self, order: list[int], part: int = 0) -> dict[str, Any]:
        """Run these samples; each output goes to a raw file of its ``part``, in their order."""
        import numpy as np

        entries = [
            {"name": n, "file": f"output-{i}-{part}.bin", "dtype": None, "shapes": [], "nans": 0}
            for i, n in enumerate(self._runtime.names)
        ]
        with contextlib.ExitStack() as stack:
            sinks = [
                stack.enter_context((self._scratch / str(e["file"])).open("wb")) for e in entries
            ]
            for index in order:
                feed = self._samples.feed(index)
                begun = time.perf_counter_ns()
                values = self._runtime.run(feed if self._pre is None else self._pre(dict(feed)))
                self._warm.append(time.perf_counter_ns() - begun)
                for value, entry, sink in zip(values, entries, sinks, strict=True):
                    array = np.ascontiguousarray(_as_array(value))
                    entry["dtype"] = array.dtype.name
                    entry["shapes"].append(list(np.shape(_as_array(value))))
                    if array.dtype.kind == "f":
                        entry["nans"] += int(np.isnan(array).sum())
                    sink.write(array.tobytes())
        return {"outputs": entries, "rss_bytes": _rss(), "peak_bytes": _peak()}

    def warmup(self, calls: int, most: int, seconds: float) -> dict[str, Any]:
        """Call until steady, at least ``calls`` times and ``seconds`` long, ``most`` at most.

        Calls that gave outputs before have warmed it up, too.
        """
        durations: list[int] = []
        start = time.perf_counter()
        steady = False
        while len(durations) < most:
            feed = self._samples.feed(len(durations) % self._samples.count)
            begun = time.perf_counter_ns()
            self._call(feed)
            durations.append(time.perf_counter_ns() - begun)
            elapsed = time.perf_counter() - start
            if len(durations) >= calls and elapsed >= seconds:
                steady = _steady([*self._warm, *durations])
                # A model of a second a call cannot be asked for 40 calls just to warm up.
                if steady or elapsed > 10 * seconds + 5:
                    break
        durations.sort()
        return {"calls": len(durations), "steady": steady, "p50_ns": durations[len(durations) // 2]}

    def time(self, order: list[int], lead_ns: int) -> dict[str, Any]:
        """Time one call for each index in ``order``, after untimed calls of ``lead_ns`` or two."""
        import numpy as np

        clock, run, feed_of = time.perf_counter_ns, self._runtime.run, self._samples.feed
        plain = self._pre is None and self._post is None and self._runtime.memory is None
        samples = np.zeros(len(order), np.int64)  # zeros, so that its pages are touched now
        marks: list[list[int]] = [[] for _ in order]
        names, nans = self._runtime.names, set[str]()
        gc.collect()
        led, until = 0, clock() + lead_ns
        while led < 2 or clock() < until:
            self._call(feed_of(order[0]))
            led += 1
        begun, before, fixed_work = clock(), counters(), [canary()]
        for i, index in enumerate(order):
            feed = feed_of(index)
            start = clock()
            outputs = run(feed) if plain else self._call_marked(feed, marks[i])
            samples[i] = clock() - start
            if index not in self._seen and self._post is None:  # once each, not timed
                self._seen.add(index)
                nans |= {n for n, value in zip(names, outputs, strict=True) if _has_nan(value)}
            del outputs  # freed outside of the timed part
        fixed_work.append(canary())
        after = counters()
        if samples.min() < 0:
            raise RuntimeError("the clock went backwards during a call")
        return {
            "samples": _encoded(samples),
            "parts": {} if plain else _parts(marks),
            "nans": sorted(nans),
            "peak_bytes": _peak(),
            "canary_ns": fixed_work,
            "elapsed_ns": clock() - begun,
            "counters": {key: after[key] - before[key] for key in after.keys() & before.keys()},
        }

    def operators(self, calls: int) -> dict[str, Any]:
        """Time operators by the runtime's profiler, which costs some microseconds a node.

        Returns:
            For each operator type its nodes, nanoseconds a call and providers, slowest first.
        """
        self._loaded = None  # a large model is not held twice
        self._warm.clear()  # it will be loaded anew
        make = RUNTIMES[self._job["runtime"]]
        runtime: Any = make(self._job, str(self._scratch / "operators"))
        found: dict[str, dict[str, Any]] = {}
        for op, node, ns, provider in runtime.kernels(self._feeds(calls + 1)):
            entry = found.setdefault(op, {"ns": 0.0, "nodes": set(), "providers": set()})
            if node in entry["nodes"]:  # a node's first run touches its memory for the first time
                entry["ns"] += ns / calls
            entry["nodes"].add(node)
            entry["providers"].add(provider)
        rows = [
            {"op": n, "nodes": len(e["nodes"]), "ns": e["ns"], "providers": sorted(e["providers"])}
            for n, e in found.items()
        ]
        return {"operators": sorted(rows, key=lambda row: -row["ns"])}

    def _feeds(self, count: int) -> Iterator[dict[str, Any]]:
        for index in range(count):
            feed = self._samples.feed(index % self._samples.count)
            yield feed if self._pre is None else self._pre(dict(feed))


def main(argv: list[str]) -> int:
    """Serve a job until told to exit or the controller is gone."""
    if argv[1:] == ["--device"]:
        print(json.dumps(device()))
        return 0
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's to handle
    wire = _claim_stdout()
    try:
        worker = Worker(json.loads(Path(argv[1]).read_text()))
    except Exception as error:
        _answer(wire, {"ok": False, "error": f"{type(error).__name__}: {error}"})
        return 1
    _answer(wire, {"ok": True, **worker.ready()})
    gc.collect()
    gc.freeze()
    gc.disable()
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        if name == "exit":
            break
        try:
            _answer(wire, {"ok": True, **getattr(worker, name)(**command)})
        except Exception as error:
            _answer(wire, {"ok": False, "error": f"{type(error).__name__}: {error}"})
    return 0


def _answer(wire: BinaryIO, message: dict[str, Any]) -> None:
    wire.write(json.dumps({"version": VERSION, **message}).encode() + b"\n")
    wire.flush()


def _claim_stdout() -> BinaryIO:
    """Keep the protocol's stream for ourselves: what libraries print goes to stderr."""
    wire = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return wire


def _user_function(reference: str | None) -> Any:
    """Import ``FILE.py:FUNCTION``; the file's folder stays importable."""
    if reference is None:
        return None
    import importlib.util

    file, _, name = reference.rpartition(":")
    sys.path.insert(0, str(Path(file).parent))
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def _encoded(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _parts(marks: list[list[int]]) -> dict[str, str]:
    """Durations of the parts of every call, from the times at their borders."""
    import numpy as np

    durations = np.diff(np.array(marks, np.int64), axis=1)
    return {name: _encoded(durations[:, i].copy()) for i, name in enumerate(PARTS)}


def _die_with_parent() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _steady(durations: list[int]) -> bool:
    """Pyperf's rule on the last 40 calls: the second half is no outlier, no faster, no wilder."""
    import numpy as np

    if len(durations) < STEADY_CALLS:
        return False
    first, second = np.split(np.array(durations[-STEADY_CALLS:], float), 2)
    q1, q3 = np.quantile(second, (0.25, 0.75))
    spread = q3 - q1
    drift = (second.mean() - first.mean()) / second.mean()
    deviation = np.median(np.abs(second - np.median(second))) / np.median(second)
    quartiles = np.abs(np.quantile(first, (0.25, 0.75)) - (q1, q3)) / (q1, q3)
    return bool(
        first[0] <= q3 + 1.5 * spread
        and -0.1 <= drift <= 0.5
        and deviation <= 0.1
        and (quartiles <= 0.05).all()
    )


def _has_nan(value: Any) -> bool:
    import numpy as np

    array = np.asarray(_as_array(value))
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _as_array(value: Any) -> Any:
    """Any output as numbers: sequences end to end, maps by key, strings by their checksums."""
    import numpy as np

    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    if isinstance(value, list):
        parts = [np.ravel(_as_array(part)) for part in value]
        value = np.concatenate(parts) if parts else np.empty(0)
    array = np.asarray(0.0 if value is None else value)
    if array.dtype.kind in "OUS":
        sums = [zlib.crc32(str(text).encode()) for text in array.reshape(-1)]
        array = np.array(sums, np.int64).reshape(array.shape)
    return array


def canary() -> int:
    """Return the nanoseconds for fixed work; what they vary by is the machine's doing."""
    start = time.perf_counter_ns()
    total = 0
    for i in range(4000):
        total += i * i
    return time.perf_counter_ns() - start


def counters() -> dict[str, int]:
    """Running totals of what disturbs a measurement; what a platform lacks is left out."""
    totals: dict[str, int] = {}
    try:
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        totals["involuntary_switches"] = usage.ru_nivcsw
        totals["major_faults"] = usage.ru_majflt
    except ImportError:
        pass
    with contextlib.suppress(OSError, ValueError, IndexError):
        totals["steal_ticks"] = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    with contextlib.suppress(OSError, ValueError):
        some = Path("/proc/pressure/cpu").read_text().split("\n", 1)[0]
        totals["cpu_stall_us"] = int(some.rpartition("total=")[2])
    for path in ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"):
        with contextlib.suppress(OSError, ValueError):
            stats = dict(line.split() for line in Path(path).read_text().splitlines())
            totals["throttled"] = int(stats["nr_throttled"]) if "nr_throttled" in stats else 0
            break
    return totals


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cgroup_quota() -> float | None:
    """Cores granted by the cgroup's quota, version 2 or 1; None without one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        micros = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return micros / period_us if micros > 0 else None
    return None


def _memory() -> int | None:
    """Bytes of the machine's memory, or of what the cgroup, version 2 or 1, grants of it."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int((Path("/sys/fs/cgroup") / name).read_text()))
    return min(found, default=None)


def _peak() -> int | None:
    """Most memory that this process has held since it started, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    except (OSError, ValueError, StopIteration):
        return None


def _rss() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
