"""Measured latency against the lower bound: no variant may beat it, and how near do they come.

Builds variants of the workloads (see benchmarks/workloads), of the shipped network and of the onnx
package's own models, times each in its runtime, and divides the fastest call and the median by the
bound of ``optimize/feasibility/bound.py``. A ratio below 1 is marked, and ends it with exit code 1.

    python -m benchmarks.bound WORKLOADS [--threads 1 2] [--only minilm ...] [--chains CHAIN ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimize.building.build import Builder, Sources, Variant
from optimize.errors import InputError, OptimizeError, first_cause
from optimize.feasibility.bound import Bounder
from optimize.installed import versions
from optimize.models import data as samples
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.runtimes import find_runtime
from optimize.passes.base import Context
from optimize.passes.chain import Chain
from optimize.passes.files import silent
from optimize.targets.local import LocalTarget
from optimize.worker import RUNTIMES

CHAINS = (
    "source",
    "fold,fuse",
    "fold,fuse,fp16",
    "fold,fuse,int8{mode=dynamic}",
    "fold,fuse,int8{mode=static}",
    "fold,fuse,int8{mode=weights,bits=4}",
    "source@openvino",
    "bf16@openvino",
    "fold,int8{mode=static,engine=nncf}@openvino",
)
LIGHT = ("bvlc_alexnet", "densenet121", "inception_v1", "resnet50", "shufflenet", "squeezenet",
         "vgg19", "zfnet512")  # fmt: skip
NODES = ("Conv1d_pad1", "Conv2d", "Conv2d_depthwise", "Conv2d_dilated", "Conv3d", "Linear",
         "ConvTranspose2d", "ReLU", "Softmax")  # fmt: skip
LEAST_CALLS, CALLS, SECONDS = 10, 200, 0.5


@dataclass(frozen=True)
class Case:
    """A model and real inputs, or drawn ones."""

    name: str
    model: Path
    data: str | None = None


@dataclass(frozen=True)
class Line:
    """One variant with one number of threads; milliseconds."""

    case: str
    chain: str
    threads: int
    fastest: float
    median: float
    bound: float


def main() -> None:
    """Print a line for each variant, and the extremes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", type=Path)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--chains", nargs="*", default=CHAINS)
    given = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(given.workloads.resolve()):
            if given.only is None or case.name in given.only:
                for line in measure(case, given.chains, given.threads, Path(folder)):
                    lines.append(line)
                    print(_text(line), flush=True)
    ratios = sorted(line.fastest / line.bound for line in lines)
    print(
        f"{len(ratios)} ratios: {ratios[0]:.2f} to {ratios[-1]:.3g}, {np.median(ratios):.3g} amid"
    )
    sys.exit(ratios[0] < 1)


def _text(line: Line) -> str:
    fastest, median = line.fastest / line.bound, line.median / line.bound
    beaten = "  BEATEN" if fastest < 1 else ""
    return (
        f"{line.case:22} {line.chain:44} {line.threads} threads  {line.bound:9.4f} ms  "
        f"fastest {line.fastest:9.4f} = {fastest:6.2f}x  median {median:6.2f}x{beaten}"
    )


def cases(workloads: Path) -> Iterator[Case]:
    """All models: the workloads, the shipped network, and the onnx package's."""
    for name, model, data in (
        ("minilm", "minilm/model.onnx", "minilm/data128.npz"),
        ("crepe tiny", "crepe/tiny.onnx", "crepe/data.npz"),
        ("crepe full", "crepe/full.onnx", "crepe/data.npz"),
        ("mobilenet", "mobilenet/model.onnx", "mobilenet/data.npz"),
        ("digits", "digits/model.onnx", "digits/data.npz"),
        ("ocr_cls", "ocr_cls/model.onnx", "ocr_cls/data.npz"),
        ("silero", "silero/silero_vad_16k_op15.onnx", "silero/data.npz"),
    ):
        yield Case(name, workloads / model, str(workloads / data))
    yield Case("fashion", Path("fashion.onnx"), "examples/fashion/data.npz")
    import onnx

    shipped = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for name in LIGHT:
        yield Case(name, shipped / "light" / f"light_{name}.onnx")
    for name in NODES:
        yield Case(name, shipped / "pytorch-converted" / f"test_{name}" / "model.onnx")


def _fashion(folder: Path) -> Path:
    """The shipped network as ONNX."""
    import torch
    from safetensors.torch import load_file

    from optimize.models.usercode import load_function

    net = load_function("examples/fashion/arch.py:resnet", "--arch")()
    net.load_state_dict(load_file("examples/fashion/resnet.safetensors"))
    path = folder / "fashion.onnx"
    with silent():
        torch.onnx.export(
            net.eval(), (torch.zeros((1, 1, 28, 28), dtype=torch.uint8),), str(path),
            input_names=["image"], dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    return path


def measure(
    case: Case, chains: Sequence[str], threads: Sequence[int], folder: Path
) -> Iterator[Line]:
    """Build the variants of a model that can be built, and time them."""
    try:
        model = Model.read(_fashion(folder) if case.name == "fashion" else case.model)
        inputs = _inputs(case, model)
    except (InputError, OSError) as error:
        print(f"{case.name}: {first_cause(error)}")
        return
    device = LocalTarget().device()
    context = Context(
        folder=folder, samples=inputs.take(range(1)), calibration=inputs, isa=frozenset(device.isa)
    )
    builder = Builder(Sources(model), context, lambda step, made, given: step(made, given))
    with contextlib.chdir(folder):  # quantizers leave files where they run
        built = [v for chain in chains if (v := _built(builder, chain)) is not None]
    for count in threads:
        bounder = Bounder(device, count, versions(), inputs, _store(folder))
        if bounder.judge_source(model) is None:
            print(f"{case.name}: {bounder.notes}")
            return
        for variant in built:
            assert variant.model is not None  # by _built
            bound = bounder.bound(variant.model, variant.chain)
            try:
                times = _time(variant, count, inputs)
            except Exception as error:  # noqa: BLE001  what a runtime cannot run is not compared
                print(f"{case.name} {variant.name}: {first_cause(error)[:90]}")
                continue
            if bound:
                least, median = float(times.min()), float(np.median(times))
                yield Line(case.name, variant.name, count, least, median, bound)
        bounder.close()


def _store(folder: Path) -> Any:
    from optimize.cache.store import Store

    return Store(folder / "cache")


def _inputs(case: Case, model: Model) -> Dataset:
    specs = model.signature.inputs
    if case.data is None:
        return samples.synthetic(specs, 4, 0)
    data = samples.fit(samples.read_data(case.data), specs)
    return samples.batched(data, samples.static_batch(specs) or 1).take(range(32))


def _built(builder: Builder, chain: str) -> Variant | None:
    try:
        with silent():
            variant = builder.build(Chain.parse(chain))
    except OptimizeError:
        return None
    return variant if variant.model is not None else None


def _time(variant: Variant, threads: int, inputs: Dataset) -> Any:
    """Milliseconds of single calls, in this process."""
    model = variant.model
    assert model is not None  # by the caller
    runtime = RUNTIMES[variant.chain.runtime](
        {
            "model": str(model.path),
            "config": dict(model.config),
            "threads": threads,
            "provider": find_runtime(variant.chain.runtime).provider,
            "names": {
                "inputs": [spec.name for spec in model.signature.inputs],
                "outputs": [spec.name for spec in model.signature.outputs],
            },
        }
    )
    feeds = [inputs.sample(index) for index in range(min(8, len(inputs)))]
    for feed in feeds:
        runtime.run(feed)
    times: list[int] = []
    end = time.monotonic() + SECONDS
    while len(times) < LEAST_CALLS or (len(times) < CALLS and time.monotonic() < end):
        begun = time.perf_counter_ns()
        runtime.run(feeds[len(times) % len(feeds)])
        times.append(time.perf_counter_ns() - begun)
    return np.array(times) / 1e6


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    main()
