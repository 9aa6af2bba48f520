"""A model on disk, as every pass takes and gives it: ONNX, its signature and its digest."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from optimize.errors import InputError
from optimize.models.nodes import inner_graphs
from optimize.models.runtimes import Format

FILE_NAME = "model.onnx"
Dim = int | str | None


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: as in the graph.
        dtype: numpy's name of the element type, ``str`` for strings.
        shape: a number, a symbol or None (unknown) for each axis; None if the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name}: {self.dtype} of any rank"
        axes = "x".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype}[{axes}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Model:
    """A model in a folder of its own: an ONNX graph, or what another runtime loads.

    Attributes:
        path: of the ``.onnx`` file, whose external data lies beside it, or of the file that the
            format's runtime is given.
        signature: inputs and outputs.
        digest: SHA-256 over the file and its external data.
        size_bytes: of the same files.
        opset: version of the default operator set.
        op_counts: how often each operator occurs, subgraphs included, sorted by name; operators
            outside the default domain carry it as a prefix. Empty for other formats than ONNX.
        format: what the files hold.
        config: options that its runtime must load it with, as pairs.
        members: all files, the one to load first.
    """

    path: Path
    signature: Signature
    digest: str
    size_bytes: int
    opset: int
    op_counts: tuple[tuple[str, int], ...]
    format: Format = "onnx"
    config: tuple[tuple[str, str], ...] = ()
    members: tuple[Path, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Model:
        """Read an ONNX model's facts, without its weights.

        Raises:
            InputError: the file is missing, or is no complete ONNX model.
        """
        import onnx

        try:
            proto = onnx.load(str(path), load_external_data=False)
        except FileNotFoundError:
            raise InputError(f"{path} does not exist") from None
        except Exception as error:  # protobuf's own errors have no common public base
            raise InputError(f"{path} is no ONNX model, or is cut short") from error
        if not proto.graph.node and not proto.graph.output:
            raise InputError(f"{path} is no ONNX model: it holds no graph")
        files = [path, *(path.parent / name for name in external_files(proto))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{path} needs its external data {file.name}, which is missing")
        _check_lengths(proto, path)
        opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
        return cls(
            path=path,
            signature=_signature(proto),
            digest=file_digest(*files),
            size_bytes=sum(file.stat().st_size for file in files),
            opset=opset,
            op_counts=tuple(sorted(_op_counts(proto).items())),
            members=tuple(files),
        )

    @classmethod
    def of(cls, format: Format, members: Sequence[Path], signature: Signature) -> Model:
        """Describe a model of another format than ONNX; the first file is the one to load."""
        return cls(
            path=members[0],
            signature=signature,
            digest=file_digest(*members),
            size_bytes=sum(file.stat().st_size for file in members),
            opset=0,
            op_counts=(),
            format=format,
            members=tuple(members),
        )

    @property
    def identity(self) -> str:
        """Equal for two models exactly if their files and their options are."""
        return f"{self.digest} {sorted(self.config)}" if self.config else self.digest

    def configured(self, options: Mapping[str, str]) -> Model:
        """The same files, to be loaded with further options; these replace earlier values."""
        return replace(self, config=tuple(sorted({**dict(self.config), **options}.items())))

    @property
    def files(self) -> tuple[Path, ...]:
        """The file to load first, then all others that it needs."""
        return self.members

    def describe(self) -> dict[str, Any]:
        """All but the place, as JSON; :meth:`described` reads it back without opening a file."""
        names = [file.relative_to(self.path.parent).as_posix() for file in self.members]
        return {**asdict(self), "path": None, "members": names}

    @classmethod
    def described(cls, description: Mapping[str, Any], folder: Path) -> Model:
        """The model of a description, whose files lie in ``folder``."""
        told = dict(description)
        members = tuple(folder / name for name in told.pop("members"))
        signature = Signature(*(specs(told["signature"][side]) for side in ("inputs", "outputs")))
        pairs = {name: tuple(map(tuple, told[name])) for name in ("op_counts", "config")}
        return cls(
            **{**told, **pairs, "path": members[0], "signature": signature, "members": members}
        )

    def count(self, *operators: str) -> int:
        """How many nodes have one of these operators."""
        return sum(n for name, n in self.op_counts if name in operators)

    @property
    def quantized(self) -> bool:
        """Whether integer operators or quantize/dequantize pairs are in the graph."""
        return any(name.split("::")[-1] in _QUANTIZED for name, _ in self.op_counts)


def specs(told: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Specifications from what ``dataclasses.asdict`` made of them."""

    def shape(dims: Sequence[Dim] | None) -> tuple[Dim, ...] | None:
        return None if dims is None else tuple(dims)

    return tuple(TensorSpec(spec["name"], spec["dtype"], shape(spec["shape"])) for spec in told)


_QUANTIZED = frozenset(
    (
        "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul QGemm "
        "ConvInteger MatMulInteger DynamicQuantizeMatMul MatMulIntegerToFloat QAttention "
        "MatMulNBits DynamicQuantizeLSTM"
    ).split()
)


def file_digest(*files: Path) -> str:
    """SHA-256 over the contents of ``files``, in order, as hexadecimal text."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file in a second place that is only read, without a second copy where that goes."""
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def external_files(proto: Any) -> list[str]:
    """Names of the files that hold external tensors of an ``onnx.ModelProto``, sorted.

    Raises:
        InputError: a tensor points outside the model's folder.
    """
    names = {
        entry.value
        for tensor in _stored(proto)
        if tensor.data_location == 1  # TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"external data {name!r} lies outside the model's folder")
    return sorted(names)


def _check_lengths(proto: Any, path: Path) -> None:
    """Refuse external data that ends before the tensors which lie in it."""
    for tensor in _stored(proto):
        place = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.data_location == 1 and "location" in place:
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            if end > (path.parent / place["location"]).stat().st_size:
                raise InputError(f"{path.parent / place['location']} is cut short")


def _stored(proto: Any) -> Iterable[Any]:
    """Every tensor of a model that may lie in another file, those of its functions included."""
    for whole in (proto.graph, *proto.functions):
        for graph in graphs(whole):
            yield from tensors(graph)
            sparse = [*getattr(graph, "sparse_initializer", ())]
            for node in graph.node:
                for attribute in node.attribute:
                    yield from attribute.tensors
                    sparse += attribute.sparse_tensors
                    sparse += (
                        [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
                    )
            for one in sparse:
                yield from (one.values, one.indices)


def graphs(graph: Any) -> Iterable[Any]:
    """``graph`` and all graphs nested in its nodes (If, Loop, Scan), outermost first."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs(inner)


def tensors(graph: Any) -> Iterable[Any]:
    """Weights of one graph or function: its initializers, and the values of its Constant nodes."""
    yield from getattr(graph, "initializer", ())  # functions have none
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _op_counts(proto: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for graph in [*graphs(proto.graph), *proto.functions]:
        for node in graph.node:
            domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}::"
            counts[domain + node.op_type] = counts.get(domain + node.op_type, 0) + 1
    return counts


def _signature(proto: Any) -> Signature:
    weights = {tensor.name for tensor in proto.graph.initializer}
    return Signature(
        tuple(_spec(value) for value in proto.graph.input if value.name not in weights),
        tuple(_spec(value) for value in proto.graph.output),
    )


def _spec(value: Any) -> TensorSpec:
    from onnx import helper

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(value.name, (kind or "unknown").removesuffix("_type"), None)
    tensor = value.type.tensor_type
    dtype = "str" if tensor.elem_type == 8 else "unknown"
    if tensor.elem_type not in (0, 8):
        dtype = str(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    if not tensor.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    dims: list[Dim] = []
    for dim in tensor.shape.dim:
        which = dim.WhichOneof("value")
        value_or_symbol: Dim = None if which is None else getattr(dim, which)
        # Some exporters write -1 for an axis that may vary.
        negative = isinstance(value_or_symbol, int) and value_or_symbol < 0
        dims.append(None if negative else value_or_symbol)
    return TensorSpec(value.name, dtype, tuple(dims))
