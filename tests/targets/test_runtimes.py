"""Every runtime end to end on a trained network: built, served by a worker, near torch's outputs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cpu
import numpy as np
import pytest
from onnx import helper

from optimize.building.build import Builder, Sources, Variant
from optimize.errors import InputError, NotApplicable, WorkerError
from optimize.models import runtimes
from optimize.models.data import Dataset
from optimize.models.export import export, export_program
from optimize.models.model import Model
from optimize.models.program import load_program, save_program
from optimize.models.runtimes import find_runtime, runtime_names
from optimize.models.source import detect, load
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.bf16 import Bf16
from optimize.passes.chain import Chain
from optimize.passes.int8 import Int8
from optimize.passes.lower import Compile, Export
from optimize.passes.shapes import Shapes
from optimize.request import parse_chains, parse_runtimes
from optimize.results.serve import script
from optimize.targets.base import Job, Settings
from optimize.targets.inputs import read_outputs, write_inputs
from optimize.targets.local import LocalTarget

if TYPE_CHECKING:
    from conftest import Digits, GraphMaker

ISA = cpu.ISA | {"avx512_bf16"}
PATIENCE = 120.0
COUNT = 100
Cosine = Callable[[Any, Any], float]


def run_pass(step: Pass, model: Model, context: Context) -> PassResult:
    return step(model, context)


@pytest.fixture(scope="module")
def data(digits: Digits) -> Dataset:
    images = [image[None] for image in digits.image[:COUNT]]
    return Dataset("digits", {"image": images}, digits.labels[:COUNT], batch_first=True)


@pytest.fixture(scope="module")
def sources(
    digits_net: Any, digits_file: Path, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Sources:
    """The network as a user's weights with an architecture: a graph and a module."""
    import torch

    folder = tmp_path_factory.mktemp("sources")
    torch.save(digits_net.state_dict(), folder / "digits.pth")
    loaded = load(detect(folder / "digits.pth"), f"{digits_file}:build", False)
    exported = export(loaded, Dataset("digits", dict(data.inputs)), (), folder)
    return Sources(exported.model, exported.program)


@pytest.fixture(scope="module")
def builder(sources: Sources, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Builder:
    folder = tmp_path_factory.mktemp("built")
    return Builder(sources, Context(folder, data.take(range(4)), data, isa=ISA), run_pass)


@pytest.fixture
def serve(data: Dataset, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Outputs of a variant from a worker process, and what the worker said about loading."""
    inputs = write_inputs(data, tmp_path / "inputs")
    workers: list[Any] = []

    def run(variant: Variant, **changes: Any) -> Any:
        assert variant.model is not None, variant.reason
        runtime = find_runtime(variant.chain.runtime)
        settings = Settings(runtime.name, runtime.provider, 1, None, variant.model.config)
        signature = variant.model.signature
        names = tuple(tuple(s.name for s in side) for side in (signature.inputs, signature.outputs))
        scratch = tmp_path / f"scratch-{len(workers)}"
        scratch.mkdir()
        job = Job(variant.model.path, inputs, scratch, replace(settings, **changes), names)  # type: ignore[arg-type]
        worker, ready = LocalTarget().start(job, PATIENCE)
        workers.append(worker)
        reply = worker.call("outputs", PATIENCE, order=list(range(COUNT)))
        (entry,) = reply["outputs"]
        assert entry["nans"] == 0
        return np.concatenate(read_outputs(entry, worker.fetch(entry["file"]))), ready, worker

    yield run
    for worker in workers:
        worker.close()


def needs(chain: str) -> None:
    """Skip where what a chain needs is not installed."""
    for word, module in (
        ("openvino", "openvino"),
        ("engine=nncf", "nncf"),
        ("neural-compressor", "neural_compressor"),
        ("neural-compressor", "torchao"),
    ):
        if word in chain:
            pytest.importorskip(module)
    if "inductor" in chain and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("AOTInductor needs a C++ compiler")


CHAINS = {
    # Cosine to torch's logits that each must reach.
    "source": 0.999999,
    "int8{mode=static}": 0.999,
    "int8{mode=static,engine=nncf}": 0.997,
    # Its weights have 8 bits, of which products overflow without such instructions.
    "int8{mode=static,engine=neural-compressor}": 0.997 if cpu.SUMS_IN_32_BITS else 0.99,
    "source@openvino": 0.999999,
    "equalize@openvino": 0.99999,
    "fold,int8{mode=static,engine=nncf}@openvino": 0.997,
    "source@inductor": 0.999999,
}


@pytest.mark.parametrize("text", CHAINS)
def test_a_served_variant_computes_what_torch_computes(
    builder: Builder,
    serve: Callable[..., Any],
    digits: Digits,
    digits_logits: Any,
    cosine: Cosine,
    text: str,
) -> None:
    needs(text)
    variant = builder.build(Chain.parse(text))
    got, ready, _ = serve(variant)
    want = digits_logits[:COUNT]
    assert got.shape == want.shape
    assert cosine(got, want) >= CHAINS[text]
    assert np.mean(got.argmax(1) == want.argmax(1)) >= 0.97
    assert ready["load_ns"] > 0
    assert variant.model is not None
    assert variant.model.format in find_runtime(variant.chain.runtime).formats


@pytest.mark.parametrize("engine", ["nncf", "neural-compressor"])
def test_other_engines_convolutions_run_in_onnxruntimes_integer_kernels(
    builder: Builder, tmp_path: Path, engine: str
) -> None:
    import onnx
    import onnxruntime

    text = f"int8{{mode=static,engine={engine}}}"
    needs(text)
    model = builder.build(Chain.parse(text)).model
    assert model is not None
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    for key, value in model.config:
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    ran = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert ran.count("QLinearConv") == 2
    assert not {"Conv", "FusedConv"} & set(ran), ran


def test_export_and_compile_happen_in_between(
    builder: Builder, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass on torch modules gets the module; one on graphs gets its export."""
    ran: list[tuple[str, str]] = []

    def execute(step: Pass, model: Model, context: Context) -> PassResult:
        ran.append((step.name, model.format))
        if isinstance(step, Compile):
            return PassResult(Model.of("inductor", (model.path,), model.signature), True)
        return run_pass(step, model, context)

    counted = Builder(sources, builder._context, execute)
    counted.build(Chain.parse("fold"))
    assert ran == [("fold", "onnx")]
    counted.build(Chain.parse("source@inductor"))
    assert ran[1:] == [("compile", "torch")]
    refused = counted.build(Chain.parse("fold@inductor"))
    assert refused.problem is None or refused.problem == "skipped"


def test_the_source_of_another_runtime_is_no_repetition(builder: Builder) -> None:
    pytest.importorskip("openvino")
    variant = builder.build(Chain.parse("source@openvino"))
    assert variant.problem is None
    assert variant.model == builder.build(Chain.parse("source")).model


def test_an_onnx_source_has_nothing_for_inductor(
    graph: GraphMaker, rows: Dataset, tmp_path: Path
) -> None:
    context = Context(tmp_path, rows.take(range(2)), rows, isa=ISA)
    builder = Builder(Sources(graph.linear()), context, run_pass)
    variant = builder.build(Chain.parse("source@inductor"))
    assert (variant.problem, variant.model) == ("skipped", None)
    assert "compiles torch modules; this chain holds an ONNX graph" in variant.reason


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("openvino", "OpenVINO is not installed; install tailfit[openvino]"),
        ("inductor", "torch's AOTInductor is not installed; install tailfit[torch]"),
    ],
)
def test_a_missing_runtime_skips_its_chains_in_a_sentence(
    graph: GraphMaker,
    rows: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sentence: str,
) -> None:
    hide(monkeypatch, find_runtime(name).package)
    builder = Builder(Sources(graph.linear()), Context(tmp_path, rows, rows), run_pass)
    variant = builder.build(Chain.parse(f"fold@{name}"))
    assert (variant.problem, variant.reason) == ("skipped", sentence)
    assert builder.build(Chain.parse("int8")).problem is None
    with pytest.raises(InputError, match=f"--runtime {name}: .* is not installed"):
        parse_runtimes(f"onnxruntime,{name}")
    assert name not in parse_runtimes("all")
    with pytest.raises(InputError, match=f"--chain fold@{name}: .* is not installed"):
        parse_chains([f"fold@{name}"])


@pytest.mark.parametrize(
    ("engine", "module", "sentence"),
    [
        ("nncf", "nncf", "NNCF is not installed; install tailfit[nncf]"),
        (
            "neural-compressor",
            "neural_compressor",
            "neural-compressor is not installed; install tailfit[neural-compressor]",
        ),
    ],
)
def test_a_missing_engine_skips_in_a_sentence(
    sources: Sources,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: Any,
    module: str,
    sentence: str,
) -> None:
    hide(monkeypatch, module)
    model = sources.program if engine == "neural-compressor" else sources.graph
    assert model is not None
    with pytest.raises(NotApplicable) as caught:
        Int8("static", engine)(model, Context(tmp_path, data, data, isa=ISA))
    assert str(caught.value) == sentence


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package be neither found nor imported."""
    import sys

    found = importlib.util.find_spec
    monkeypatch.setattr(
        runtimes.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == package else found(name, *rest),
    )
    for name in [m for m in sys.modules if m == package or m.startswith(f"{package}.")]:
        if package != "torch":
            monkeypatch.delitem(sys.modules, name)
    if package != "torch":
        monkeypatch.setitem(sys.modules, package, None)


def test_openvino_refuses_a_precision_that_it_does_not_deliver(
    builder: Builder, serve: Callable[..., Any]
) -> None:
    pytest.importorskip("openvino")
    variant = builder.build(Chain.parse("source@openvino"))
    with pytest.raises(WorkerError, match=r"."):
        serve(variant, config=(("INFERENCE_PRECISION_HINT", "f64"),))


def test_openvino_runs_in_float32_unless_asked(
    builder: Builder, serve: Callable[..., Any], digits_logits: Any
) -> None:
    """Its own default on CPUs with bfloat16 would be bfloat16, which is off by one in a hundred."""
    pytest.importorskip("openvino")
    got, _, _ = serve(builder.build(Chain.parse("source@openvino")))
    want = digits_logits[:COUNT]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_bf16_on_openvino_is_bf16_or_refused(
    builder: Builder, serve: Callable[..., Any], digits_logits: Any, cosine: Cosine
) -> None:
    pytest.importorskip("openvino")
    variant = builder.build(Chain.parse("bf16@openvino"))
    assert variant.model is not None
    assert variant.model.config == (("INFERENCE_PRECISION_HINT", "bf16"),)
    want = digits_logits[:COUNT]
    if not set(LocalTarget().device().isa) & {"avx512_bf16", "amx_bf16", "bf16"}:
        with pytest.raises(WorkerError, match="asked for bf16, OpenVINO runs in f32"):
            serve(variant)
        return
    got, _, _ = serve(variant)
    off = np.abs(got - want).max() / np.abs(want).max()
    assert 1e-4 < off < 0.05  # eight bits of precision, no more and no less


def test_bf16_says_where_it_does_not_apply(sources: Sources, data: Dataset, tmp_path: Path) -> None:
    context = Context(tmp_path, data, isa=ISA)
    with pytest.raises(NotApplicable, match="ONNX Runtime has no bfloat16 kernels"):
        Bf16()(sources.graph, context)
    with pytest.raises(NotApplicable, match="this CPU has no bfloat16 instructions"):
        Bf16()(sources.graph, replace(context, runtime="openvino", isa=frozenset({"avx2"})))


def test_fixed_shapes_give_the_same_outputs_and_take_no_other_shape(
    builder: Builder, serve: Callable[..., Any], digits_logits: Any, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    variant = builder.build(Chain.parse("shapes@openvino"))
    got, _, _ = serve(variant)
    want = digits_logits[:COUNT]
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    (spec,) = variant.model.signature.inputs
    assert variant.model.config == (("input_shapes", f"{spec.name}=1x1x8x8"),)
    # The script beside the model loads it so too, and runs.
    text = script(variant.model, "openvino", "CPU", 1, "model.onnx", 4)
    shutil.copy(variant.model.path, tmp_path / "model.onnx")
    (tmp_path / "serve.py").write_text(text)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "serve.py")], capture_output=True, text=True, check=True
    )
    assert "(1,10)" in done.stdout.replace(" ", "").replace("[", "(").replace("]", ")")
    model = openvino.Core().read_model(str(variant.model.path))
    assert model.inputs[0].partial_shape.is_dynamic  # the file itself takes any


def test_shapes_that_differ_or_are_fixed_are_left_alone(
    sources: Sources, data: Dataset, graph: GraphMaker, tmp_path: Path
) -> None:
    context = Context(tmp_path, data, runtime="openvino", isa=ISA)
    (name,) = data.inputs
    longer = replace(data, inputs={name: [*data.inputs[name], np.zeros((2, 1, 8, 8), np.float32)]})
    with pytest.raises(NotApplicable, match="comes in 2 shapes"):
        Shapes()(sources.graph, replace(context, samples=longer))
    fixed = graph([helper.make_node("Relu", ["x"], ["y"])], {"x": ("float32", (4, 3))},
                  {"y": ("float32", (4, 3))})  # fmt: skip
    with pytest.raises(NotApplicable, match="fixed already"):
        Shapes()(fixed, context)


def test_another_runtime_is_not_given_onnxruntimes_session(builder: Builder) -> None:
    pytest.importorskip("openvino")
    variant = builder.build(Chain.parse("session{level=BASIC}@openvino"))
    assert variant.problem == "skipped"
    assert "makes nothing that OpenVINO could run" in variant.reason


def test_a_worker_stays_on_its_cores(builder: Builder, serve: Callable[..., Any]) -> None:
    core = max(os.sched_getaffinity(0))
    _, _, worker = serve(builder.build(Chain.parse("source")), cpus=(core,))
    threads = Path(f"/proc/{worker._process.pid}/task")
    for thread in threads.iterdir():
        assert os.sched_getaffinity(int(thread.name)) == {core}


def test_session_options_reach_the_session(
    builder: Builder, serve: Callable[..., Any], tmp_path: Path
) -> None:
    """At the basic level onnxruntime leaves the ReLUs unfused, which its profile shows."""
    ran = {}
    for text in ("source", "session{level=BASIC}"):
        _, _, worker = serve(builder.build(Chain.parse(text)))
        rows = worker.call("operators", PATIENCE, calls=2)["operators"]
        ran[text] = {row["op"] for row in rows}
    assert "Relu" in ran["session{level=BASIC}"]
    assert "Relu" not in ran["source"]


def test_an_unknown_session_option_of_openvino_is_an_error(
    builder: Builder, serve: Callable[..., Any]
) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(WorkerError):
        serve(builder.build(Chain.parse("source@openvino")), config=(("NO_SUCH_KEY", "1"),))


def test_operators_of_openvino_have_names_and_times(
    builder: Builder, serve: Callable[..., Any]
) -> None:
    pytest.importorskip("openvino")
    _, _, worker = serve(builder.build(Chain.parse("source@openvino")))
    rows = worker.call("operators", PATIENCE, calls=4)["operators"]
    assert any("Convolution" in row["op"] for row in rows)
    assert all(row["ns"] >= 0 and set(row["providers"]) <= {"CPU"} for row in rows)


def test_session_passes_add_up(graph: GraphMaker, tmp_path: Path, rows: Dataset) -> None:
    context = Context(tmp_path, rows, rows)
    model = graph.linear()
    for text in ("session{without=A}", "session{without=B+A}", "session{level=BASIC}"):
        (step,) = Chain.parse(text).passes
        model = step(model, context).model
    assert dict(model.config) == {
        "optimization.disable_specified_optimizers": "A;B",
        "graph_optimization_level": "BASIC",
    }
    (idle,) = Chain.parse("session").passes
    with pytest.raises(NotApplicable, match="without options changes nothing"):
        idle(model, context)


@pytest.mark.parametrize("without", ["A;B", "A+", "+A", "A B"])
def test_names_of_optimizers_are_checked(without: str) -> None:
    with pytest.raises(InputError, match="is not of the form"):
        Chain.parse(f"session{{without={without}}}")


def test_later_passes_keep_session_options(
    graph: GraphMaker, tmp_path: Path, rows: Dataset
) -> None:
    builder = Builder(Sources(graph.linear()), Context(tmp_path, rows, rows, isa=ISA), run_pass)
    for text in ("int8", "int8{mode=static}", "int8{mode=static,keep=1}", "smooth{alpha=0.5}"):
        variant = builder.build(Chain.parse(f"session{{without=MatMulAddFusion}},{text}"))
        assert variant.model is not None
        kept = dict(variant.model.config)["optimization.disable_specified_optimizers"]
        assert kept.split(";")[0] == "MatMulAddFusion"


def test_identity_is_files_and_options(graph: GraphMaker) -> None:
    model = graph.linear()
    basic = model.configured({"graph_optimization_level": "BASIC"})
    assert model.identity == model.digest
    assert basic.digest == model.digest
    assert basic.identity != model.identity
    assert basic.configured({"a": "1"}).identity == (
        model.configured({"a": "1"}).configured({"graph_optimization_level": "BASIC"}).identity
    )
    assert basic.configured({"graph_optimization_level": "ALL"}).identity != basic.identity
    assert Model.read(model.path).identity == model.identity


def test_a_model_of_another_format_is_all_its_files(graph: GraphMaker, tmp_path: Path) -> None:
    first, second = tmp_path / "model.xml", tmp_path / "model.bin"
    first.write_bytes(b"graph")
    second.write_bytes(b"weights")
    signature = graph.linear().signature
    model = Model.of("openvino", (first, second), signature)
    assert (model.path, model.files) == (first, (first, second))
    assert model.size_bytes == len(b"graph") + len(b"weights")
    assert (model.signature, model.count("MatMul"), model.quantized) == (signature, 0, False)
    second.write_bytes(b"heights")
    assert Model.of("openvino", (first, second), signature).digest != model.digest


def test_a_program_comes_back_and_exports_again(
    sources: Sources, digits: Digits, digits_logits: Any, tmp_path: Path
) -> None:
    import onnxruntime
    import torch

    assert sources.program is not None
    program = load_program(sources.program.path)
    with torch.no_grad():
        got = program.module(torch.from_numpy(digits.image)).numpy()
    np.testing.assert_allclose(got, digits_logits, atol=1e-4)
    torch.manual_seed(0)
    changed = program.module
    with torch.no_grad():
        changed.head.bias += 1
        want = changed(torch.from_numpy(digits.image)).numpy()
    again = save_program(program.with_module(changed), tmp_path, sources.program.signature)
    assert again.digest != sources.program.digest
    (tmp_path / "onnx").mkdir()
    exported = export_program(again, tmp_path / "onnx")
    assert exported.model.signature.inputs == sources.graph.signature.inputs
    session = onnxruntime.InferenceSession(
        str(exported.model.path), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    np.testing.assert_allclose(session.run(None, {name: digits.image})[0], want, atol=1e-4)


def test_the_export_pass_gives_the_source_again(
    sources: Sources,
    data: Dataset,
    tmp_path: Path,
    digits: Digits,
    digits_logits: Any,
    outputs: Any,
) -> None:
    assert sources.program is not None
    result = Export()(sources.program, Context(tmp_path, data))
    name = result.model.signature.inputs[0].name
    got = outputs(result.model, {name: digits.image})
    np.testing.assert_allclose(got, digits_logits, atol=1e-4)
    assert any(note.startswith("by torch.onnx.export") for note in result.notes)


def test_compile_is_for_torch_modules_and_inductor(
    sources: Sources, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sources.program is not None
    with pytest.raises(NotApplicable, match="makes nothing that ONNX Runtime could run"):
        Compile()(sources.program, Context(tmp_path, data))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotApplicable, match="needs a C\\+\\+ compiler, and there is none"):
        Compile()(sources.program, Context(tmp_path, data, runtime="inductor"))


@pytest.mark.parametrize("always", [False, True])
def test_a_miscompiled_package_is_never_served(
    sources: Sources,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    always: bool,
) -> None:
    """Torch's frozen quantized convolutions gave other numbers: it is told by the outputs."""
    import torch
    from torch import _inductor

    tried: list[bool] = []
    program: list[Any] = []

    def compile_it(exported: Any, package_path: str, inductor_configs: dict[str, bool]) -> None:
        tried.append(inductor_configs["freezing"])
        program[:] = [exported.module()]
        Path(package_path).write_bytes(b"package")

    def load_it(path: str) -> Any:
        wrong = always or tried[-1]
        return lambda *args: torch.relu(program[0](*args)) if wrong else program[0](*args)

    monkeypatch.setattr(_inductor, "aoti_compile_and_package", compile_it)
    monkeypatch.setattr(_inductor, "aoti_load_package", load_it)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert sources.program is not None
    context = Context(tmp_path, data, runtime="inductor")
    if always:
        with pytest.raises(NotApplicable, match="into something with other outputs"):
            Compile()(sources.program, context)
    else:
        result = Compile()(sources.program, context)
        assert result.model.format == "inductor"
        assert result.model.signature == sources.program.signature
    assert tried == [True, False]


def test_runtimes_are_read_from_text() -> None:
    assert parse_runtimes("onnxruntime") == ("onnxruntime",)
    assert parse_runtimes(" onnxruntime , onnxruntime") == ("onnxruntime",)
    installed = tuple(
        name for name in runtime_names() if importlib.util.find_spec(find_runtime(name).package)
    )
    assert parse_runtimes("all") == installed
    assert installed[0] == "onnxruntime"
    for text in ("openvin", "", "onnxruntime,", "tensorrt"):
        with pytest.raises(InputError, match="there is no runtime"):
            parse_runtimes(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("source@openvino", "source@openvino"),
        ("fold , fuse @ openvino", "fold,fuse@openvino"),
        ("fold@onnxruntime", "fold"),
        ("int8@inductor", "int8{mode=dynamic}@inductor"),
    ],
)
def test_a_chain_names_its_runtime(text: str, canonical: str) -> None:
    chain = Chain.parse(text)
    assert str(chain) == canonical
    assert Chain.parse(canonical) == chain
    assert {prefix.runtime for prefix in chain.prefixes()} <= {chain.runtime}
    assert chain.on("openvino").passes == chain.passes
    assert str(chain.on("onnxruntime")) == canonical.partition("@")[0]


@pytest.mark.parametrize("text", ["fold@", "fold@tensorrt", "@openvino", "fold@openvino@inductor"])
def test_a_chain_with_a_wrong_runtime_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="there is no runtime|a chain is empty"):
        Chain.parse(text)
