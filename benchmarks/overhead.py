"""What measuring costs: our timed call against a bare onnxruntime loop, in turns.

Targets: the p50 within max(5 us, 1%) of the bare loop's call, at most 0.3 us a call for the
stamps, at most 4 us for the whole call path of a model of one node. LoadGen's SingleStream is
timed beside them if ``mlcommons-loadgen`` is installed.

    python benchmarks/overhead.py [--rounds 40]
"""

from __future__ import annotations

import argparse
import base64
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from optimize.models.data import Dataset
from optimize.targets.base import Job
from optimize.targets.inputs import write_inputs
from optimize.targets.local import describe
from optimize.worker import Worker

CALLS = 400


def main() -> None:
    """Time a one-node model and a larger one, and print measured beside target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        for width, what in ((4, "one node"), (768, "matrix product")):
            compare(Path(name) / str(width), width, what, rounds)
    stamps = min(stamp_cost() for _ in range(20))
    verdict(f"two stamps and a store: {stamps:.3f} us a call", stamps <= 0.3, "0.3 us")


def compare(folder: Path, width: int, what: str, rounds: int) -> None:
    """Interleave our worker's timed calls with a bare loop and LoadGen on the same model."""
    folder.mkdir()
    x = np.zeros((1, width), np.float32)
    inputs = write_inputs(Dataset("bench", {"x": [x] * 8}), folder / "inputs")
    worker = Worker(describe(Job(model(folder, width), inputs, folder)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    ours, bare, theirs = [], [], []
    for _ in range(rounds):
        reply = worker.time([i % 8 for i in range(CALLS)], 0)
        ours.append(np.median(np.frombuffer(base64.b64decode(reply["samples"]), np.int64)) / 1e3)
        bare.append(bare_loop(session, names, x))
        theirs.append(loadgen_loop(session, names, x))
    mine, plain = float(np.median(ours)), float(np.median(bare))
    gap = mine - plain
    allowed = max(5.0, 0.01 * plain)
    print(f"{what}: timed call p50 {mine:.2f} us, bare loop {plain:.2f} us a call")
    verdict(f"  difference {gap:+.2f} us", abs(gap) <= allowed, f"{allowed:.2f} us")
    if width == 4:
        verdict(f"  call path {mine:.2f} us", mine <= 4.0, "4 us")
    if None not in theirs:
        print(f"  LoadGen SingleStream p50 {np.median(np.array(theirs, float)):.2f} us")


def bare_loop(session: Any, names: list[str], x: Any) -> float:
    """Microseconds a call, by two stamps around all calls."""
    run, feed = session.run, {"x": x}
    start = time.perf_counter_ns()
    for _ in range(CALLS):
        run(names, feed)
    return (time.perf_counter_ns() - start) / CALLS / 1e3


def loadgen_loop(session: Any, names: list[str], x: Any) -> float | None:
    """Median microseconds of LoadGen's SingleStream; None if it is not installed."""
    try:
        import mlperf_loadgen as loadgen
    except ImportError:
        return None
    samples: list[float] = []
    feed = {"x": x}

    def issue(queries: Any) -> None:
        start = time.perf_counter_ns()
        session.run(names, feed)
        responses = [loadgen.QuerySampleResponse(q.id, 0, 0) for q in queries]
        loadgen.QuerySamplesComplete(responses)
        samples.append((time.perf_counter_ns() - start) / 1e3)

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = settings.max_query_count = CALLS
    settings.min_duration_ms = 0
    with tempfile.TemporaryDirectory() as folder:
        log = loadgen.LogSettings()
        output = loadgen.LogOutputSettings()
        output.outdir = folder
        log.log_output = output
        sut = loadgen.ConstructSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(8, 8, lambda _: None, lambda _: None)
        loadgen.StartTestWithLogSettings(sut, library, settings, log)
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    return float(np.median(samples))


def stamp_cost() -> float:
    """Microseconds that the two stamps and the store of a sample add to a call."""
    clock, samples = time.perf_counter_ns, np.zeros(CALLS, np.int64)
    begun = clock()
    for i in range(CALLS):
        start = clock()
        samples[i] = clock() - start
    with_stamps = clock() - begun
    begun = clock()
    for _ in range(CALLS):
        pass
    return (with_stamps - (clock() - begun)) / CALLS / 1e3


def model(folder: Path, width: int) -> Path:
    """One matrix product of a row with a square matrix."""
    weight = np.eye(width, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = folder / "model.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def verdict(text: str, met: bool, target: str) -> None:
    """Print a figure beside its target."""
    print(f"{text:50} target {target:9} {'yes' if met else 'NO'}")


if __name__ == "__main__":
    main()
