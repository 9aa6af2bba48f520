"""Run the onnx package's own backend tests through ``--chain fold,fuse``.

For every model: the whole pipeline, then the artefact that it chose on the test's inputs, against
the test's expected outputs with the test's tolerances. Prints a line for each that is not equal,
and the counts. ``python benchmarks/backend_models.py [--first 200] [--only NAME]``
"""

from __future__ import annotations

import argparse
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from optimize import InputError, optimize

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@dataclass(frozen=True)
class Case:
    """A model with one set of inputs and expected outputs."""

    name: str
    model: Any
    inputs: dict[str, Any]
    expected: list[Any]
    rtol: float
    atol: float


def main() -> None:
    """Run all cases and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=200, help="node tests, in order of name")
    parser.add_argument("--only", default="", help="only names that contain this")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for case in cases(arguments.first):
        if arguments.only not in case.name:
            continue
        start = time.perf_counter()
        outcome, detail = check(case)
        counts[outcome] += 1
        if outcome != "equal":
            print(
                f"{outcome:9} {case.name} ({time.perf_counter() - start:.1f} s): {detail}",
                flush=True,
            )
    print(dict(counts))


def cases(first: int) -> Iterator[Case]:
    """The first node tests by name, then all stored ones."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = sorted(collect_testcases(None), key=lambda case: case.name)[:first]
    for node in nodes:
        inputs, outputs = node.data_sets[0]
        named = dict(zip((i.name for i in node.model.graph.input), inputs, strict=False))
        yield Case(node.name, node.model, named, list(outputs), node.rtol, node.atol)
    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        for folder in sorted((DATA / kind).iterdir()):
            yield stored(folder)
    for path in sorted((DATA / "light").glob("*.onnx")):
        yield light(path)


def stored(folder: Path) -> Case:
    """A test that lies in a folder: model.onnx and protobuf tensors."""
    model = onnx.load(folder / "model.onnx")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    data = folder / "test_data_set_0"
    read = [_read(data / f"input_{i}.pb", value) for i, value in enumerate(inputs)]
    wanted = [_read(data / f"output_{i}.pb", v) for i, v in enumerate(model.graph.output)]
    named = dict(zip((value.name for value in inputs), read, strict=True))
    return Case(folder.name, model, named, wanted, 1e-3, 1e-5)


def light(path: Path) -> Case:
    """A network without weights of its own; inputs as onnx's runner makes them."""
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    named = {}
    for value in model.graph.input:
        if value.name not in weights:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            named[value.name] = (np.arange(count).reshape(shape) / count).astype(np.float32)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    return Case(path.stem, model, named, [numpy_helper.to_array(tensor)], 1e-3, 1e-5)


def check(case: Case) -> tuple[str, str]:
    """Run the pipeline on one case and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "case.onnx"
        onnx.save(case.model, model)
        arrays = {k: v for k, v in case.inputs.items() if isinstance(v, np.ndarray)}
        data = None
        if arrays and len(arrays) == len(case.inputs):
            data = folder / "data"
            data.mkdir()
            np.savez(data / "0.npz", **{k: _text(v) for k, v in arrays.items()})
        try:
            result = optimize(
                model,
                "p99=100s",
                data=data,
                metric="cosine",
                chains=["fold,fuse"],
                threads=1,
                time_limit_s=60,
                out=folder / "out",
            )
        except InputError as error:
            return "refused", str(error)[:250]
        except Exception:  # noqa: BLE001  that is what is looked for
            return "CRASHED", traceback.format_exc()[-1500:]
        rows = "; ".join(f"{v.chain} {v.status}: {v.reason}" for v in result.report.variants)
        if result.model is None:
            return "none kept", rows[:400]
        if any(v.status == "failed" for v in result.report.variants):
            return "failed", rows[:400]
        return compare(case, result.model)


def compare(case: Case, model: Path) -> tuple[str, str]:
    """Run the artefact on the case's inputs and compare with what the test expects."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    feed = {k: v for k, v in case.inputs.items() if k in names}
    got = session.run(None, feed)
    try:
        for mine, theirs in zip(got, case.expected, strict=True):
            _equal(mine, theirs, case)
    except AssertionError as error:
        own = onnxruntime.InferenceSession(case.model.SerializeToString())
        source = own.run(None, case.inputs)
        try:
            for mine, theirs in zip(got, source, strict=True):
                _equal(mine, theirs, case)
        except AssertionError:
            return "DIFFERENT", " ".join(str(error).split())[:250]
        return "as source", "onnxruntime itself differs from the expected output"
    return "equal", ""


def _equal(mine: Any, theirs: Any, case: Case) -> None:
    if isinstance(theirs, list):
        for a, b in zip(mine, theirs, strict=True):
            _equal(a, b, case)
        return
    if theirs is None or mine is None:
        assert mine is theirs
        return
    a, b = np.asarray(mine), np.asarray(theirs)
    if b.dtype.kind in "OUS":
        np.testing.assert_array_equal(a.astype(str), b.astype(str))
        return
    np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), case.rtol, case.atol)


def _text(array: Any) -> Any:
    return array.astype(str) if array.dtype.kind == "O" else array


def _read(path: Path, value: Any) -> Any:
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(path.read_bytes())
        return numpy_helper.to_list(sequence)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)


if __name__ == "__main__":
    main()
