"""The base class holds passes to what they promise, and names the first cause of a failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimize.errors import NotApplicable, PassFailed
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain

if TYPE_CHECKING:
    from conftest import GraphMaker


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the last weight, and promises that outputs change by a thousandth at most."""

    name: ClassVar[str] = "scale"
    summary: ClassVar[str] = "a test"
    tolerance: ClassVar[float | None] = 1e-3

    factor: float = 1.0

    def apply(self, model: Model, context: Context) -> PassResult:
        proto = onnx.load(model.path)
        weight = proto.graph.initializer[-1]
        array = numpy_helper.to_array(weight) * np.float32(self.factor)
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))
        onnx.save(proto, context.folder / "model.onnx")
        return PassResult(Model.read(context.folder / "model.onnx"), True, ("scaled",))


@dataclass(frozen=True)
class Unbound(Scale):
    """The same without a promise."""

    tolerance: ClassVar[float | None] = None


@dataclass(frozen=True)
class Misbehaving(Pass):
    """Raises or writes what is no model."""

    name: ClassVar[str] = "misbehaving"
    summary: ClassVar[str] = "a test"
    tolerance: ClassVar[float | None] = 1e-3

    how: str = field(default="raise", metadata={"always": True})

    def apply(self, model: Model, context: Context) -> PassResult:
        if self.how == "skip":
            raise NotApplicable("there is nothing to do")
        if self.how == "raise":
            try:
                raise MemoryError("tensor of 3 GB")
            except MemoryError as error:
                raise RuntimeError("conversion was not successful") from error
        proto = onnx.load(model.path)
        if self.how == "break":
            proto.graph.node[-1].op_type = "NoSuchOperator"
        if self.how == "rename":
            proto.graph.node[-1].output[0] = proto.graph.output[0].name = "renamed"
        onnx.save(proto, context.folder / "model.onnx")
        return PassResult(Model.read(context.folder / "model.onnx"), True)


@pytest.fixture
def context(rows: Dataset, tmp_path: Path) -> Context:
    (tmp_path / "result").mkdir()
    return Context(tmp_path / "result", rows.take(range(4)))


def test_a_kept_promise_is_measured(graph: GraphMaker, context: Context) -> None:
    result = Scale(1.0005)(graph.linear(), context)
    assert result.difference is not None
    assert result.difference.relative == pytest.approx(0.0005, rel=0.05)
    assert result.notes == ("scaled",)
    assert result.seconds > 0


@pytest.mark.parametrize("factor", [1.01, 0.0, float("nan"), float("inf")])
def test_a_broken_promise_fails(factor: float, graph: GraphMaker, context: Context) -> None:
    message = r"^scale\{factor=.*\} changed the outputs by .*; it promises 0.001 at most"
    with pytest.raises(PassFailed, match=message):
        Scale(factor)(graph.linear(), context)


def test_without_a_promise_nothing_is_checked(graph: GraphMaker, context: Context) -> None:
    assert Unbound(3.0)(graph.linear(), context).difference is None


def test_what_a_pass_raises_is_reported_by_its_first_cause(
    graph: GraphMaker, context: Context
) -> None:
    with pytest.raises(PassFailed, match=r"^misbehaving\{how=raise\} raised MemoryError: tensor"):
        Misbehaving()(graph.linear(), context)


def test_not_applicable_is_no_failure(graph: GraphMaker, context: Context) -> None:
    with pytest.raises(NotApplicable, match="^there is nothing to do$"):
        Misbehaving("skip")(graph.linear(), context)


def test_a_result_that_does_not_load_fails(graph: GraphMaker, context: Context) -> None:
    with pytest.raises(PassFailed, match=r"^after misbehaving\{how=break\}, .*NoSuchOperator"):
        Misbehaving("break")(graph.linear(), context)


def test_an_output_that_changes_its_name_fails(graph: GraphMaker, context: Context) -> None:
    with pytest.raises(PassFailed, match=r"misbehaving\{how=rename\}"):
        Misbehaving("rename")(graph.linear(), context)


@pytest.mark.parametrize(
    "text", ["fold", "fuse", "fp16", "int8{mode=dynamic}", "int8{mode=static,ops=matmul}",
             "fp16{keep=Softmax+Add}", "int8{mode=weights,bits=4}", "fuse{engine=onnxscript}"],
)  # fmt: skip
def test_a_pass_prints_as_chains_are_written(text: str) -> None:
    (step,) = Chain.parse(text).passes
    assert str(step) == text
