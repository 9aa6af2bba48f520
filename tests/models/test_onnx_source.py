"""ONNX files are taken as they are: side files, old operator sets, quantized graphs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimize.errors import InputError
from optimize.models.data import Dataset
from optimize.models.export import load_and_export
from optimize.models.model import Model
from optimize.models.source import detect, load

if TYPE_CHECKING:
    from conftest import GraphMaker


def test_an_onnx_file_is_taken_as_it_is(graph: GraphMaker, rows: Dataset, tmp_path: Path) -> None:
    model = graph.linear()
    result = load_and_export(detect(model.path), None, False, rows, (), tmp_path)
    assert result.model == model
    assert result.route == "as given"
    assert str(result.difference) == "equal"


def test_external_data_belongs_to_the_model(graph: GraphMaker) -> None:
    inline, outside = graph.linear(), graph.linear(external="weights/w.bin")
    side = outside.path.parent / "weights" / "w.bin"
    assert outside.files == (outside.path, side)
    assert outside.size_bytes == outside.path.stat().st_size + side.stat().st_size
    assert outside.signature == inline.signature
    before = outside.digest
    side.write_bytes(bytes(side.stat().st_size))  # other weights, the same graph
    assert Model.read(outside.path).digest != before
    assert detect(outside.path).digest != before


def test_external_data_that_is_missing_is_named(graph: GraphMaker) -> None:
    model = graph.linear(external="w.bin")
    (model.path.parent / "w.bin").unlink()
    with pytest.raises(InputError, match=r"needs its external data w\.bin, which is missing"):
        detect(model.path)


def test_external_data_outside_of_the_folder_is_refused(graph: GraphMaker, tmp_path: Path) -> None:
    model = graph.linear(external="w.bin")
    shutil.copy(model.path.parent / "w.bin", tmp_path / "w.bin")
    proto = onnx.load(model.path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../w.bin"
    onnx.save(proto, model.path)
    with pytest.raises(InputError, match=r"lies outside the model's folder"):
        detect(model.path)


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 21])
def test_facts_of_any_operator_set(opset: int, graph: GraphMaker) -> None:
    model = graph.linear(opset=opset)
    assert model.opset == opset
    assert model.op_counts == (("MatMul", 2), ("Relu", 2))
    assert not model.quantized


def test_operators_in_branches_and_other_domains_are_counted(tmp_path: Path) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node("Relu" if positive else "Neg", ["x"], [f"b{positive}"])],
            f"branch{positive}",
            [],
            [helper.make_tensor_value_info(f"b{positive}", TensorProto.FLOAT, None)],
        )
        for positive in (True, False)
    ]
    graph = helper.make_graph(
        [
            helper.make_node("If", ["on"], ["c"], then_branch=branches[0], else_branch=branches[1]),
            helper.make_node("FastGelu", ["c"], ["y"], domain="com.microsoft"),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, "length", None]),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    model = Model.read(tmp_path / "m.onnx")
    counts = {"If": 1, "Relu": 1, "Neg": 1, "com.microsoft::FastGelu": 1}
    assert dict(model.op_counts) == counts
    assert model.count("Relu", "Neg", "Conv") == 2
    assert model.opset == 17
    x, on = model.signature.inputs
    assert (x.dtype, x.shape) == ("float32", (None, "length", None))
    assert (on.dtype, on.shape) == ("bool", ())
    assert model.signature.outputs[0].shape is None


def test_weights_listed_as_inputs_are_no_inputs(graph: GraphMaker) -> None:
    model = graph.linear()
    proto = onnx.load(model.path)
    proto.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [64, 64]))
    onnx.save(proto, model.path)
    assert [spec.name for spec in Model.read(model.path).signature.inputs] == ["x"]


def test_a_quantized_graph_is_recognised(graph: GraphMaker) -> None:
    model = graph(
        [
            helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        {"x": ("float32", ("n", 4))},
        {"y": ("float32", ("n", 4))},
        {"q": np.ones((4, 4), np.int8), "scale": np.array(0.1, np.float32)},
    )
    assert model.quantized
    assert load(detect(model.path), None, False).inputs == ("x",)


def test_weights_in_constant_nodes_with_side_files_are_found(tmp_path: Path) -> None:
    array = np.arange(512, dtype=np.float32)
    node = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(array, "w"))
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [512])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin",
        size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    assert Model.read(tmp_path / "m.onnx").files == (tmp_path / "m.onnx", tmp_path / "m.bin")


def test_data_that_does_not_fit_the_graph_is_refused(graph: GraphMaker, tmp_path: Path) -> None:
    source = detect(graph.linear().path)
    data = Dataset("val.npz", {"x": [np.zeros((1, 63), np.float32)]})
    with pytest.raises(InputError, match=r"shape \(1, 63\), the model takes x: float32\[nx64\]"):
        load_and_export(source, None, False, data, (), tmp_path)


def test_external_data_of_a_function_belongs_to_the_model(tmp_path: Path) -> None:
    value = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[2, 2], data_location=TensorProto.EXTERNAL
    )
    entry = value.external_data.add()
    entry.key, entry.value = "location", "w.bin"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function(
        "own", "Linear", ["a"], ["b"],
        [helper.make_node("Constant", [], ["c"], value=value),
         helper.make_node("MatMul", ["a", "c"], ["b"])], opsets[:1],
    )  # fmt: skip
    shape = {name: helper.make_tensor_value_info(name, 1, ["n", 2]) for name in "xy"}
    node = helper.make_node("Linear", ["x"], ["y"], domain="own")
    graph = helper.make_graph([node], "g", [shape["x"]], [shape["y"]])
    proto = helper.make_model(graph, functions=[function], opset_imports=opsets)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    digests = set()
    for weight in (1, 2):
        (tmp_path / "w.bin").write_bytes(np.full((2, 2), weight, np.float32).tobytes())
        model = Model.read(tmp_path / "model.onnx")
        digests.add(model.digest)
        assert [file.name for file in model.files] == ["model.onnx", "w.bin"]
    assert len(digests) == 2


def test_a_source_that_changes_is_noticed(graph: GraphMaker) -> None:
    model = graph.linear(external="w.bin")
    source = detect(model.path)
    source.check()
    weights = model.path.parent / "w.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert not source.unchanged
    with pytest.raises(InputError, match="changed while it was in use"):
        source.check()
    weights.unlink()
    assert not source.unchanged
