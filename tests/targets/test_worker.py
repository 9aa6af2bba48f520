"""Real worker processes on small models: what they answer, and how they end."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize import worker as worker_file
from optimize.errors import WorkerEnded, WorkerError
from optimize.models.data import Dataset
from optimize.profiling.measure import Contender, Limits, collect_outputs, open_worker
from optimize.targets.base import Job, Settings
from optimize.targets.inputs import read_outputs, write_inputs
from optimize.targets.local import LocalTarget, LocalWorker

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")

Array = NDArray[Any]
PATIENCE = 120.0
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
TensorType = tuple[str, int, list[int | str]]


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    weights: Mapping[str, Array] | None = None,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def dense(folder: Path) -> Path:
    """Rows of any number through two products: ``y``, their sum, and where they are positive."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((6, 6)).astype(np.float32) for name in ("w1", "w2")}
    return save(
        folder / "dense.onnx",
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w2"], ["y"]),
            helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0),
            helper.make_node("Relu", ["y"], ["positive"]),
            helper.make_node("NonZero", ["positive"], ["where"]),
        ],
        [("x", FLOAT, ["n", 6])],
        [("y", FLOAT, ["n", 6]), ("total", FLOAT, []), ("where", INT64, [2, "k"])],
        weights,
    )


def logarithm(folder: Path) -> Path:
    """A function that is NaN of negative and infinite of zero numbers."""
    return save(
        folder / "log.onnx",
        [helper.make_node("Log", ["x"], ["y"])],
        [("x", FLOAT, ["n"])],
        [("y", FLOAT, ["n"])],
    )


def ragged(count: int = 5, most: int = 7) -> dict[str, list[Array]]:
    rng = np.random.default_rng(1)
    rows = [1 + i * (most - 1) // max(1, count - 1) for i in range(count)]
    return {"x": [rng.standard_normal((n, 6)).astype(np.float32) for n in rows]}


def job(tmp_path: Path, model: Path, inputs: Mapping[str, Sequence[Array]], **options: Any) -> Job:
    number = len(list(tmp_path.glob("inputs-*")))
    folder = write_inputs(Dataset("test", inputs), tmp_path / f"inputs-{number}")
    scratch = tmp_path / f"scratch-{number}"
    scratch.mkdir()
    return Job(model, folder, scratch, **options)


def state(pid: int) -> str | None:
    """The state of a process: Z for one that has ended; None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def children(parent: int | None = None) -> set[int]:
    """Processes that this one, or another, has started and not yet waited for."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(fields[1]) == (parent or os.getpid()):
                found.add(int(entry.name))
    return found


def wait_until(happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Started(NamedTuple):
    worker: LocalWorker
    ready: dict[str, Any]
    pid: int

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.worker.call(command, PATIENCE, **arguments)

    def outputs(self, count: int) -> dict[str, list[Array]]:
        reply = self.call("outputs", order=list(range(count)))
        return {e["name"]: read_outputs(e, self.worker.fetch(e["file"])) for e in reply["outputs"]}

    def time(self, order: list[int]) -> NDArray[np.int64]:
        return decoded(self.call("time", order=order, lead_ns=0)["samples"])


Start = Callable[[Job], Started]


def decoded(text: str) -> NDArray[np.int64]:
    return np.frombuffer(base64.b64decode(text), np.int64)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start workers that are closed, however the test ends."""
    workers: list[LocalWorker] = []

    def run(what: Job) -> Started:
        before = children()
        worker, ready = LocalTarget().start(what, PATIENCE)
        workers.append(worker)
        (pid,) = children() - before
        return Started(worker, ready, pid)

    yield run
    for worker in workers:
        worker.close()


def service(tmp_path: Path, body: str) -> str:
    """A user's file with ``pre`` and ``post``; returns its path."""
    path = tmp_path / "service.py"
    path.write_text(f"import os, sys, time\nimport numpy as np\n\n{body}\n")
    return str(path)


# What a worker answers


def test_outputs_are_onnxruntimes_own(tmp_path: Path, start: Start) -> None:
    model, inputs = dense(tmp_path), ragged()
    found = start(job(tmp_path, model, inputs)).outputs(5)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    assert list(found) == ["y", "total", "where"]
    for index, x in enumerate(inputs["x"]):
        for name, expected in zip(found, session.run(None, {"x": x}), strict=True):
            got = found[name][index]
            assert got.shape == np.shape(expected), name
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_ready_tells_what_loading_took(tmp_path: Path, start: Start) -> None:
    ready = start(job(tmp_path, dense(tmp_path), ragged())).ready
    assert ready["load_ns"] > 0
    assert ready["first_call_ns"] > 0
    assert ready["runtime_version"] == onnxruntime.__version__
    assert ready["outputs"] == ["y", "total", "where"]
    assert ready["peak_bytes"] >= ready["rss_bytes"] > 1_000_000


def test_samples_do_not_count_as_memory_of_the_model(tmp_path: Path, start: Start) -> None:
    # 64 samples of 2 MB, of which a service holds one at a time.
    model = save(
        tmp_path / "mean.onnx",
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1])],
        [("x", FLOAT, ["n", 500_000])],
        [("y", FLOAT, ["n", 1])],
    )
    arrays = [np.full((1, 500_000), i, np.float32) for i in range(64)]
    worker = start(job(tmp_path, model, {"x": arrays}))
    before = worker.ready["peak_bytes"]
    assert [float(y[0, 0]) for y in worker.outputs(64)["y"]] == list(range(64))
    assert worker.call("time", order=list(range(64)), lead_ns=0)["peak_bytes"] - before < 32e6


def test_commands_are_answered_one_after_the_other(tmp_path: Path, start: Start) -> None:
    """One process serves all commands; a long order and its answer exceed what a pipe holds."""
    worker = start(job(tmp_path, dense(tmp_path), ragged()))
    assert len(worker.outputs(2)["y"]) == 2
    order = [i % 5 for i in range(30_000)]
    assert worker.time(order).shape == (30_000,)
    reply = worker.call("time", order=[4, 0, 4], lead_ns=1_000_000)
    samples = decoded(reply["samples"])
    assert samples.shape == (3,)
    assert (samples > 0).all()
    assert samples.sum() <= reply["elapsed_ns"]
    assert reply["parts"] == {}
    assert all(canary > 0 for canary in reply["canary_ns"])
    assert all(isinstance(total, int) for total in reply["counters"].values())
    warm = worker.call("warmup", calls=3, most=12, seconds=0.0)
    assert 3 <= warm["calls"] <= 12
    assert warm["p50_ns"] > 0
    assert isinstance(warm["steady"], bool)
    assert len(worker.outputs(5)["y"]) == 5


def test_operators_are_named_with_their_nodes(tmp_path: Path, start: Start) -> None:
    what = job(tmp_path, dense(tmp_path), ragged())
    worker = start(what)
    before = set(what.scratch.iterdir())
    rows = worker.call("operators", calls=3)["operators"]
    found = {row["op"]: row for row in rows}
    assert found["MatMul"]["nodes"] == 2
    assert found["ReduceSum"]["nodes"] == 1
    assert all(row["ns"] >= 0 for row in rows)
    assert [row["ns"] for row in rows] == sorted((row["ns"] for row in rows), reverse=True)
    assert {p for row in rows for p in row["providers"]} == {"CPUExecutionProvider"}
    assert set(what.scratch.iterdir()) == before  # the profile's file is not left behind


def test_no_second_session_lives_while_operators_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = {"now": 0, "most": 0}

    class Counted(worker_file.OnnxRuntime):
        def __init__(self, *arguments: Any) -> None:
            alive["now"] += 1
            alive["most"] = max(alive.values())
            super().__init__(*arguments)

        def __del__(self) -> None:
            alive["now"] -= 1

    monkeypatch.setitem(worker_file.RUNTIMES, "onnxruntime", Counted)
    what = job(tmp_path, dense(tmp_path), ragged())
    worker = worker_file.Worker(
        {
            "version": worker_file.VERSION, "runtime": "onnxruntime", "model": str(what.model),
            "provider": "CPUExecutionProvider", "threads": 1, "cpus": None, "config": {},
            "inputs": str(what.inputs), "scratch": str(what.scratch),
        }
    )  # fmt: skip
    before = worker.outputs([0, 1, 2])["outputs"]
    assert {row["op"] for row in worker.operators(2)["operators"]} >= {"MatMul", "Relu"}
    assert alive == {"now": 0, "most": 1}
    assert worker.outputs([0, 1, 2])["outputs"] == before  # loaded again by itself
    assert alive == {"now": 1, "most": 1}


def test_nan_outputs_are_counted_and_infinite_ones_are_not(tmp_path: Path, start: Start) -> None:
    inputs = {"x": [np.array(v, np.float32) for v in ([1, 2], [-1, 2, -3], [0, 1])]}
    worker = start(job(tmp_path, logarithm(tmp_path), inputs))
    (entry,) = worker.call("outputs", order=[0, 1, 2])["outputs"]
    assert entry["nans"] == 2
    values = read_outputs(entry, worker.worker.fetch(entry["file"]))
    assert np.isnan(values[1]).tolist() == [True, False, True]
    assert values[2][0] == -np.inf
    assert worker.call("outputs", order=[0])["outputs"][0]["nans"] == 0


def test_nan_in_a_timed_call_is_told_once_for_each_sample(tmp_path: Path, start: Start) -> None:
    inputs = {"x": [np.array(v, np.float32) for v in ([1, 2], [-1, 2])]}
    worker = start(job(tmp_path, logarithm(tmp_path), inputs))
    assert worker.call("time", order=[0, 0], lead_ns=0)["nans"] == []
    assert worker.call("time", order=[0, 1, 1], lead_ns=0)["nans"] == ["y"]


def test_a_contender_whose_outputs_are_nan_is_refused(tmp_path: Path) -> None:
    inputs = {"x": [np.array([-1, 2], np.float32)]}
    contender = Contender("log", job(tmp_path, logarithm(tmp_path), inputs))
    try:
        open_worker(LocalTarget(), contender, Limits())
        with pytest.raises(WorkerError, match="output y holds 1 NaN"):
            collect_outputs(contender, 1, Limits())
    finally:
        contender.close()


def test_inputs_of_all_kinds_arrive_as_they_were(tmp_path: Path, start: Start) -> None:
    kinds = {"i": INT64, "b": TensorProto.BOOL, "h": TensorProto.FLOAT16, "u": TensorProto.UINT8}
    model = save(
        tmp_path / "echo.onnx",
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        [(name, kind, ["n"]) for name, kind in kinds.items()],
        [(f"{name}_out", kind, ["n"]) for name, kind in kinds.items()],
    )
    inputs: dict[str, list[Array]] = {
        "i": [np.array([2**62, -5]), np.array([7])],
        "b": [np.array([True]), np.array([False, True])],
        "h": [np.array([0.5], np.float16), np.array([], np.float16)],
        "u": [np.array([255, 0], np.uint8), np.array([3], np.uint8)],
    }
    found = start(job(tmp_path, model, inputs)).outputs(2)
    for name, arrays in inputs.items():
        for got, expected in zip(found[f"{name}_out"], arrays, strict=True):
            assert got.dtype == expected.dtype
            assert np.array_equal(got, expected)


def test_texts_can_be_compared(tmp_path: Path, start: Start) -> None:
    model = save(
        tmp_path / "text.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", STRING, ["n"])],
        [("y", STRING, ["n"])],
    )
    inputs = {"x": [np.array(["one", "two"]), np.array(["a much longer text"]), np.array(["one"])]}
    first, second, third = start(job(tmp_path, model, inputs)).outputs(3)["y"]
    assert first.shape == (2,)
    assert first[0] == third[0]
    assert len({int(first[0]), int(first[1]), int(second[0])}) == 3


def test_threads_and_session_options_are_taken(tmp_path: Path, start: Start) -> None:
    config = (("session.intra_op.allow_spinning", "0"),)
    settings = Settings(threads=2, config=config)
    worker = start(job(tmp_path, dense(tmp_path), ragged(), settings=settings))
    assert len(worker.outputs(5)["y"]) == 5


# What users put around a call


def test_pre_and_post_are_part_of_every_call(tmp_path: Path, start: Start) -> None:
    file = service(
        tmp_path,
        "def pre(inputs):\n"
        "    time.sleep(0.003)\n"
        "    return {'x': inputs['raw'].astype(np.float32) / 10}\n\n"
        "def post(outputs):\n"
        "    assert set(outputs) == {'y', 'total', 'where'}\n"
        "    time.sleep(0.005)\n"
        "    return float(outputs['total'])\n",
    )
    raw = [np.arange(6 * n, dtype=np.int64).reshape(n, 6) for n in (1, 3)]
    what = job(tmp_path, dense(tmp_path), {"raw": raw}, pre=f"{file}:pre", post=f"{file}:post")
    worker = start(what)
    session = onnxruntime.InferenceSession(str(what.model), providers=["CPUExecutionProvider"])
    for got, given in zip(worker.outputs(2)["y"], raw, strict=True):
        expected = session.run(["y"], {"x": given.astype(np.float32) / 10})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    reply = worker.call("time", order=[0, 1, 1, 0], lead_ns=0)
    samples = decoded(reply["samples"])
    parts = {name: decoded(text) for name, text in reply["parts"].items()}
    assert set(parts) == {"pre", "input_transfer", "compute", "output_transfer", "post"}
    assert (parts["pre"] >= 3_000_000).all()  # a sleep is never shorter than asked for
    assert (parts["post"] >= 5_000_000).all()
    assert (parts["compute"] > 0).all()
    assert all((part >= 0).all() for part in parts.values())
    assert (sum(parts.values()) <= samples).all()


def test_a_pre_may_take_its_input_apart(tmp_path: Path, start: Start) -> None:
    """Each call is a request of its own, as a service would hold it."""
    file = service(
        tmp_path,
        "def pre(inputs):\n"
        "    raw = inputs.pop('raw')\n"
        "    raw *= 2\n"
        "    inputs['x'] = raw\n"
        "    return inputs\n",
    )
    given = ragged()["x"]
    worker = start(job(tmp_path, dense(tmp_path), {"raw": given}, pre=f"{file}:pre"))
    assert worker.time([0, 0, 1]).shape == (3,)
    assert worker.call("warmup", calls=3, most=12, seconds=0.0)["calls"] >= 3
    session = onnxruntime.InferenceSession(str(dense(tmp_path)), providers=["CPUExecutionProvider"])
    for _ in range(2):
        got = worker.outputs(1)["y"][0]
        expected = session.run(["y"], {"x": 2 * given[0]})[0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_temporary_files_of_a_worker_are_in_its_scratch_folder(
    tmp_path: Path, start: Start
) -> None:
    """It is killed, so that runtimes do not remove what they unpacked."""
    file = service(
        tmp_path,
        "import tempfile\n\n"
        "def pre(inputs):\n"
        "    tempfile.mkstemp(prefix='left-')\n"
        "    return inputs\n",
    )
    what = job(tmp_path, dense(tmp_path), ragged(), pre=f"{file}:pre")
    start(what)
    assert list(what.scratch.glob("left-*"))


def test_what_users_print_does_not_disturb_the_answers(tmp_path: Path, start: Start) -> None:
    file = service(
        tmp_path,
        "print('loading', flush=True)\n\n"
        "def post(outputs):\n"
        "    print('{\"ok\": false}', 'x' * 100_000, flush=True)\n"
        "    os.write(1, b'raw noise\\n')\n",
    )
    worker = start(job(tmp_path, dense(tmp_path), ragged(), post=f"{file}:post"))
    assert worker.time([0, 1]).shape == (2,)


def test_a_failing_call_is_told_and_the_worker_serves_on(tmp_path: Path, start: Start) -> None:
    file = service(
        tmp_path,
        "def pre(inputs):\n"
        "    if len(inputs['x']) > 3:\n"
        "        raise ValueError('no more than\\nthree rows')\n"
        "    return inputs\n",
    )
    worker = start(job(tmp_path, dense(tmp_path), ragged(), pre=f"{file}:pre"))
    with pytest.raises(WorkerError, match="ValueError: no more than three rows"):
        worker.outputs(5)
    assert len(worker.outputs(2)["y"]) == 2


# What cannot be loaded


def refused(what: Job) -> str:
    before = children()
    with pytest.raises(WorkerError) as raised:
        LocalTarget().start(what, PATIENCE)
    assert children() <= before  # nothing is left running
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    assert "nowhere.onnx" in refused(job(tmp_path, tmp_path / "nowhere.onnx", ragged()))


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    model = dense(tmp_path)
    model.write_bytes(model.read_bytes()[:60])
    assert "dense.onnx" in refused(job(tmp_path, model, ragged()))


@pytest.mark.parametrize("provider", ["WarpDriveExecutionProvider", "CUDAExecutionProvider"])
def test_a_provider_that_is_not_installed_is_named(tmp_path: Path, provider: str) -> None:
    if provider in onnxruntime.get_available_providers():
        pytest.skip("it is installed here")
    settings = Settings(provider=provider)
    said = refused(job(tmp_path, dense(tmp_path), ragged(), settings=settings))
    assert provider in said
    assert "not installed" in said
    assert "CPUExecutionProvider" in said


def test_an_unknown_runtime_is_named(tmp_path: Path) -> None:
    settings = Settings(runtime="abacus")
    assert "no runtime abacus" in refused(
        job(tmp_path, dense(tmp_path), ragged(), settings=settings)
    )


def test_inputs_that_do_not_fit_are_told(tmp_path: Path) -> None:
    model = dense(tmp_path)
    assert "x" in refused(job(tmp_path, model, {"z": ragged()["x"]}))
    doubles = [array.astype(np.float64) for array in ragged()["x"]]
    assert "double" in refused(job(tmp_path, model, {"x": doubles}))


@pytest.mark.parametrize(
    ("body", "name", "words"),
    [
        ("def other(inputs):\n    return inputs", "pre", "pre"),
        ("import no_such_module", "pre", "no_such_module"),
        ("def pre(inputs):\n    return inputs['raw']", "pre", "KeyError"),
    ],
)
def test_a_pre_that_does_not_work_is_told(tmp_path: Path, body: str, name: str, words: str) -> None:
    file = service(tmp_path, body)
    assert words in refused(job(tmp_path, dense(tmp_path), ragged(), pre=f"{file}:{name}"))


# How a worker ends


def test_a_killed_worker_is_told_by_its_signal(tmp_path: Path, start: Start) -> None:
    worker = start(job(tmp_path, dense(tmp_path), ragged()))
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        worker.outputs(1)
    with pytest.raises(WorkerError, match="SIGKILL"):
        worker.outputs(1)  # however often it is asked


def test_a_worker_killed_while_it_is_waited_for_is_told_at_once(
    tmp_path: Path, start: Start
) -> None:
    worker = start(job(tmp_path, dense(tmp_path), ragged()))
    os.kill(worker.pid, signal.SIGSTOP)
    timer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL))
    timer.start()
    try:
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.outputs(1)
    finally:
        timer.join()


def test_a_crash_is_told_by_its_signal(tmp_path: Path, start: Start) -> None:
    file = service(
        tmp_path,
        "def post(outputs):\n    if len(outputs['y']) > 1:\n        os.kill(os.getpid(), 11)\n",
    )
    worker = start(job(tmp_path, dense(tmp_path), ragged(), post=f"{file}:post"))
    with pytest.raises(WorkerError, match="SIGSEGV"):
        worker.time([4])


def test_an_early_exit_is_told_with_its_last_words(tmp_path: Path, start: Start) -> None:
    file = service(
        tmp_path,
        "def post(outputs):\n"
        "    if len(outputs['y']) > 1:\n"
        "        print('terminate called: out of luck', file=sys.stderr, flush=True)\n"
        "        os._exit(3)\n",
    )
    worker = start(job(tmp_path, dense(tmp_path), ragged(), post=f"{file}:post"))
    with pytest.raises(WorkerError, match=r"exited with code 3.*out of luck"):
        worker.time([4])


def test_a_worker_that_does_not_answer_hangs_and_is_ended(tmp_path: Path, start: Start) -> None:
    worker = start(job(tmp_path, dense(tmp_path), ragged()))
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="hung: no answer to outputs"):
        worker.worker.call("outputs", 0.5, order=[0])
    assert wait_until(lambda: state(worker.pid) in (None, "Z"))
    worker.worker.close()
    assert state(worker.pid) is None


def test_a_model_that_loads_too_long_hangs_and_leaves_no_process(tmp_path: Path) -> None:
    file = service(tmp_path, "time.sleep(600)")
    before = children()
    with pytest.raises(WorkerError, match="hung: no answer to load"):
        LocalTarget().start(
            job(tmp_path, dense(tmp_path), ragged(), pre=f"{file}:pre"), timeout_s=0.5
        )
    assert children() <= before


def test_closing_leaves_no_process(tmp_path: Path, start: Start) -> None:
    running, stopped = (start(job(tmp_path, dense(tmp_path), ragged())) for _ in range(2))
    os.kill(stopped.pid, signal.SIGSTOP)
    for worker in (running, stopped):
        assert state(worker.pid) is not None
        worker.worker.close()
        assert state(worker.pid) is None
        worker.worker.close()  # again, as clean-ups do


def test_a_worker_that_its_run_ends_is_no_failure(tmp_path: Path, start: Start) -> None:
    worker = start(job(tmp_path, dense(tmp_path), ragged()))
    ending = threading.Timer(0.3, worker.worker.close)
    ending.start()
    with pytest.raises(WorkerEnded):
        worker.call("time", order=[0] * 300_000, lead_ns=0)
    ending.join()


def test_an_interruption_is_the_controllers_to_handle(tmp_path: Path, start: Start) -> None:
    worker = start(job(tmp_path, dense(tmp_path), ragged()))
    os.kill(worker.pid, signal.SIGINT)
    assert len(worker.outputs(1)["y"]) == 1


CONTROLLER = """
import sys
from pathlib import Path
from optimize.targets.base import Job
from optimize.targets.local import LocalTarget

model, inputs, scratch = map(Path, sys.argv[1:])
worker, _ = LocalTarget().start(Job(model, inputs, scratch), 120)
print("started", flush=True)
sys.stdin.read()
"""


def test_a_worker_does_not_outlive_its_controller(tmp_path: Path) -> None:
    what = job(tmp_path, dense(tmp_path), ragged())
    command = [sys.executable, "-c", CONTROLLER, what.model, what.inputs, what.scratch]
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == "started\n"
        (pid,) = children(controller.pid)
        assert state(pid) is not None
        controller.kill()
    assert wait_until(lambda: state(pid) in (None, "Z"))


# The file on its own


def test_device_prints_json_with_the_standard_library_alone(tmp_path: Path) -> None:
    """As on another machine, to which the file was copied."""
    copy = Path(shutil.copy(worker_file.__file__, tmp_path / "worker.py"))
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(copy), "--device"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    told = json.loads(done.stdout)
    here = LocalTarget().device()
    assert told["cpu"] == here.cpu
    assert told["isa"] == list(here.isa)
    assert 1 <= told["granted_cores"] <= told["cores"]
    assert told["granted_cores"] <= len(os.sched_getaffinity(0))
    assert told["memory_bytes"] is None or told["memory_bytes"] > 2**20
    assert told["python"] == here.python


def test_the_copied_file_serves_a_job(tmp_path: Path) -> None:
    """The protocol by hand: a file for the job, one line of JSON a command."""
    copy = Path(shutil.copy(worker_file.__file__, tmp_path / "worker.py"))
    what = job(tmp_path, dense(tmp_path), ragged())
    description = {
        "version": 2,
        "runtime": "onnxruntime",
        "model": str(what.model),
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "cpus": None,
        "config": {},
        "names": {"inputs": [], "outputs": []},
        "inputs": str(what.inputs),
        "scratch": str(what.scratch),
        "pre": None,
        "post": None,
    }
    (tmp_path / "job.json").write_text(json.dumps(description))
    commands = [
        {"do": "time", "order": [0, 1], "lead_ns": 0},
        {"do": "sing"},
        {"do": "outputs", "order": [0]},
        {"do": "exit"},
    ]
    done = subprocess.run(
        [sys.executable, "-P", str(copy), str(tmp_path / "job.json")],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["ok"] for answer in answers] == [True, True, False, True]
    assert all(answer["version"] == 2 for answer in answers)
    assert "sing" in answers[2]["error"]


def test_a_job_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"version": 1}))
    done = subprocess.run(
        [sys.executable, "-P", worker_file.__file__, str(tmp_path / "job.json")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert "version 2" in answer["error"]
