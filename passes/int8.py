"""Quantization to 8 bits and less."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from optimize.errors import InputError, NotApplicable
from optimize.models.attention import has_attention
from optimize.models.data import Dataset
from optimize.models.model import FILE_NAME, Model
from optimize.models.runtimes import Format
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import brought, load_proto, needs_side_file, save_proto, silent
from optimize.passes.quantizers import static
from optimize.passes.quantizers.layers import REQUANTIZER
from optimize.passes.quantizers.ranges import Method, suitable
from optimize.passes.session import left_out

Mode = Literal["dynamic", "static", "weights"]
Engine = Literal["onnxruntime", "neural-compressor", "nncf"]
_CONV = ("Conv", "ConvTranspose")
# Computed in float whatever surrounds them: pairs around them would only cost time and accuracy.
_NORMALIZATIONS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization"}
_RECURRENT = ("LSTM", "GRU")
_OVERFLOWING = "weights in 8 bits: some of this device's products overflow"
# Integer dot products that do not overflow their 16-bit intermediates.
_DOT_PRODUCT = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve"}
_RANKING = "layers.json"


@dataclass(frozen=True)
class Int8(Pass):
    """Integer weights, and with ``dynamic`` and ``static`` integer arithmetic.

    ``dynamic`` takes the range of each activation at run time, ``static`` from calibration data,
    ``weights`` leaves activations in float. ``ops=auto`` is matrix products alone for transformers
    in ``static``, whose other operators lose more than they gain; all operators for other models;
    and all but convolutions in ``dynamic``, whose integer convolutions are several times slower.
    ``keep=N`` leaves the N layers in float that give back most accuracy for their time.
    ``recover=distill`` first trains the module for ``recovery`` batches with the rounding that
    static quantization will do, to give the float source's outputs: for what loses too much.
    With ``engine=nncf``, ``drop`` asks for NNCF's accuracy control: it puts operators back to float
    until the outputs' cosine to the source's falls by no more than that on the calibration samples,
    which takes minutes.
    """

    name: ClassVar[str] = "int8"
    version: ClassVar[int] = 5
    summary: ClassVar[str] = "INT8 quantization: dynamic, static (QDQ) or weight-only (8 or 4 bits)"
    needs: ClassVar[str] = (
        "mode=static: real data to calibrate on; recover=distill: a torch module; "
        "engine=nncf: the extra tailfit[nncf]; "
        "engine=neural-compressor: tailfit[neural-compressor] and a torch module"
    )

    mode: Mode = field(default="dynamic", metadata={"always": True})
    engine: Engine = "onnxruntime"
    calibration: Method = "minmax"
    per: Literal["channel", "tensor"] = "channel"
    ops: Literal["auto", "all", "matmul", "conv"] = "auto"
    symmetric: bool = False
    keep: int = 0
    bits: Literal[8, 4] = 8
    algorithm: Literal["rtn", "hqq"] = "rtn"
    samples: int = 128
    recover: Literal["none", "distill"] = "none"
    recovery: int = 300
    drop: float = 0.0

    def __post_init__(self) -> None:
        """Reject options that the mode or the engine does not have."""
        if self.mode != "static" and (self.calibration != "minmax" or self.samples != 128):
            raise InputError(f"int8: mode={self.mode} takes no calibration")
        if self.mode != "weights" and self.bits != 8:
            raise InputError(f"int8: bits={self.bits} needs mode=weights")
        if self.mode != "weights" and self.algorithm != "rtn":
            raise InputError(f"int8: algorithm={self.algorithm} needs mode=weights")
        if self.mode == "weights" and (self.ops != "auto" or self.per != "channel" or self.keep):
            raise InputError("int8: mode=weights takes bits and algorithm only")
        if self.mode != "static" and self.symmetric:
            raise InputError("int8: symmetric needs mode=static")
        if self.algorithm == "hqq" and self.bits != 4:
            raise InputError("int8: algorithm=hqq needs bits=4")
        if self.samples < 1 or self.keep < 0:
            raise InputError("int8: samples must be at least 1, keep at least 0")
        if self.recovery < 1:
            raise InputError(f"int8: recovery={self.recovery} is not at least 1")
        if self.recover == "distill" and (self.mode != "static" or self.per != "channel"):
            raise InputError("int8: recover=distill needs mode=static and per=channel")
        self._check_engine()

    def _check_engine(self) -> None:
        if self.drop and self.engine != "nncf":
            raise InputError("int8: drop needs engine=nncf, whose accuracy control it asks for")
        if not 0 <= self.drop < 1:
            raise InputError(f"int8: drop={self.drop} is no share from 0 to below 1")
        if self.engine == "onnxruntime":
            return
        plain = replace(self, engine="onnxruntime", drop=0.0)
        if plain != Int8("static", samples=self.samples):
            own = ", samples and drop" if self.engine == "nncf" else " and samples"
            raise InputError(f"int8: engine={self.engine} takes mode=static{own} only")

    @property
    def needs_calibration(self) -> bool:
        """Only static ranges come from data."""
        return self.mode == "static"

    @property
    def tailored(self) -> bool:
        """The other engines make each runtime's own format."""
        return self.engine != "onnxruntime"

    @property
    def takes(self) -> tuple[Format, ...]:  # type: ignore[override]  # it depends on the engine
        """neural-compressor and training work on torch modules alone."""
        trains = self.engine == "neural-compressor" or self.recover == "distill"
        return ("torch",) if trains else ("onnx",)

    def apply(self, model: Model, context: Context) -> PassResult:
        """Quantize in the chosen mode."""
        if model.quantized:
            raise NotApplicable("the model is already quantized")
        if self.engine == "nncf":
            from optimize.passes.quantizers import nncf_engine

            calibration = self._calibration(context)
            scheme = nncf_engine.Scheme(has_attention(model), _overflows(context), self.drop)
            return nncf_engine.quantize(model, calibration, context, scheme)
        if self.engine == "neural-compressor":
            from optimize.passes.quantizers import neural_compressor_engine

            made = neural_compressor_engine.quantize(model, self._calibration(context), context)
            if not _overflows(context):
                return made
            return replace(made, notes=(*made.notes, _OVERFLOWING))  # the library knows no 7 bits
        if self.mode == "weights":
            return self._weights(model, context)
        notes: tuple[str, ...] = ()
        learnt: tuple[str, ...] = ()
        cut_short = False
        if self.recover == "distill":
            model, learnt, cut_short = self._recovered(model, context)
        types = self._operators(model)
        with silent():
            if self.mode == "dynamic":
                notes = self._dynamic(model, context, types)
            else:
                notes = self._static(model, context, types)
        result = Model.read(context.folder / FILE_NAME)
        if not result.quantized:
            kinds = ", ".join(types)
            raise NotApplicable(f"none of the model's {kinds} could be quantized{_hint(model)}")
        notes = (*learnt, _coverage(model, result, types), *notes)
        if self.keep and self.mode == "static":
            result = left_out(replace(result, config=model.config), REQUANTIZER)
        return PassResult(result, True, notes, cut_short=cut_short)

    def _recovered(self, model: Model, context: Context) -> tuple[Model, tuple[str, ...], bool]:
        """Train a copy of the module with INT8's rounding, and export it in float.

        The last part tells whether the training was cut short.
        """
        from optimize.models.export import export_program
        from optimize.models.program import load_program, save_program
        from optimize.passes.training.batches import Batches
        from optimize.passes.training.checkpoint import checkpoint_folder, is_unfinished
        from optimize.passes.training.options import DistillOptions
        from optimize.passes.training.qat import recover_quantized

        if context.teacher is None or context.lessons is None:
            raise NotApplicable("there is no torch module to learn from")
        student, teacher = load_program(model.path), load_program(context.teacher.path)
        options = DistillOptions(
            steps=self.recovery, lr=5e-4, evaluations=4, patience=0, seed=context.seed
        )
        parts = str(self), model.digest, context.teacher.digest
        with checkpoint_folder(context, *parts) as checkpoints:
            trained, notes = recover_quantized(
                student.module,
                teacher.module,
                Batches(context.lessons, seed=context.seed),
                options,
                lambda now: context.progress(str(now)),
                checkpoints,
                context.deadline,
                _overflows(context),
            )
            cut_short = is_unfinished(checkpoints)
        folder = context.folder / "recovered"
        folder.mkdir()
        with silent():
            saved = save_program(student.with_module(trained), folder, model.signature)
            return export_program(saved, folder).model, notes, cut_short

    def _calibration(self, context: Context) -> Dataset:
        if context.calibration is None:
            raise NotApplicable("static quantization needs calibration data")
        return context.calibration.first(self.samples)

    def _operators(self, model: Model) -> list[str]:
        """List the operator types to quantize that the model has."""
        from onnxruntime.quantization import registry

        known = (
            set(registry.QDQRegistry) | set(registry.QLinearOpsRegistry)
            if self.mode == "static"
            else {*registry.IntegerOpsRegistry, "Gemm"}
        )
        known -= _NORMALIZATIONS
        wanted = known
        if self.ops == "matmul" or (
            self.ops == "auto" and self.mode == "static" and has_attention(model)
        ):
            wanted = known & set(static.MATMUL)
        elif self.ops == "conv":
            wanted = known & set(_CONV)
        elif self.ops == "auto" and self.mode == "dynamic":
            wanted = known - set(_CONV)
        heavy = model.count(*(wanted & {*static.MATMUL, *_CONV, *_RECURRENT, "Attention"}))
        heavy += model.count("com.microsoft::Attention") if "Attention" in wanted else 0
        if not heavy:
            what = {"matmul": "MatMul or Gemm", "conv": "convolution"}.get(self.ops, "operator")
            raise NotApplicable(f"the model has no {what} that {self.mode} quantization speeds up")
        names = {name.split("::")[-1] for name, _ in model.op_counts}
        return sorted(wanted & names)

    def _dynamic(self, model: Model, context: Context, types: list[str]) -> tuple[str, ...]:
        if "Gemm" in types:  # onnxruntime makes MatMul and Add of it first
            types = [*types, "MatMul"]
        if not self.keep:
            own = brought(model, context)
            self._dynamic_without(own, context, types, (), context.folder / FILE_NAME)
            return ()
        import onnx
        from onnxruntime.quantization.onnx_model import ONNXModel

        named = context.folder / "named.onnx"
        proto = load_proto(model)
        ONNXModel(proto).replace_gemm_with_matmul()
        static.name_nodes(proto)
        onnx.save(proto, str(named))
        source = Model.read(named)
        scratch = context.folder / "without.onnx"

        def without(nodes: Sequence[str]) -> Any:
            self._dynamic_without(source, context, types, nodes, scratch)
            return onnx.load(str(scratch))

        layers = [n.name for n in proto.graph.node if n.op_type in types]
        kept = self._kept(model, context, named, layers, without, context.samples)
        self._dynamic_without(source, context, types, kept, context.folder / FILE_NAME)
        return (_kept_note(kept),)

    def _dynamic_without(
        self, model: Model, context: Context, types: list[str], nodes: Sequence[str], path: Path
    ) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(model.path),
            str(path),
            op_types_to_quantize=types,
            per_channel=self.per == "channel",
            reduce_range=_overflows(context),
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(nodes),
            use_external_data_format=needs_side_file(model),
            extra_options={"MatMulConstBOnly": True},
        )

    def _static(self, model: Model, context: Context, types: list[str]) -> tuple[str, ...]:
        import onnx

        calibration = suitable(self._calibration(context), self.calibration)
        reduced = _overflows(context)
        per_channel = self.per == "channel"
        scheme = static.Scheme(tuple(types), per_channel, reduced, self.symmetric, self.calibration)
        path = context.folder / FILE_NAME
        prepared = static.quantize(model, calibration, scheme, context, path)
        notes = [f"calibrated on {len(calibration)} samples"]
        if reduced:
            notes.append("weights in 7 bits: this device's products would overflow")
        if self.keep:
            from optimize.passes.quantizers import layers

            full, reference = onnx.load(str(path)), onnx.load(str(prepared))
            names = layers.quantized_layers(full, reference)
            kept = self._kept(
                model, context, prepared, names,
                lambda nodes: layers.restore(full, reference, nodes) if nodes else full,
                calibration,
            )  # fmt: skip
            save_proto(layers.restore(full, reference, kept), context)
            notes.append(_kept_note(kept))
        return tuple(notes)

    def _kept(
        self,
        model: Model,
        context: Context,
        reference: Path,
        layers: Sequence[str],
        without: Callable[[Sequence[str]], Any],
        samples: Dataset,
    ) -> list[str]:
        """The layers to leave in float; their ranking is kept for chains that keep another number.

        Raises:
            NotApplicable: there are not that many layers.
        """
        from optimize.passes.quantizers.ranking import MOST_LAYERS, rank

        if self.keep >= len(layers):
            raise NotApplicable(f"keep={self.keep} leaves none of {len(layers)} layers in INT8")
        most = max(self.keep, MOST_LAYERS)
        options = (asdict(self) | {"keep": most}).values()
        parts = [model.digest[:16], samples.digest[:16], *map(str, options), _RANKING]
        file = context.folder.parent / "-".join(parts)
        if not file.is_file():
            ranked = rank(reference, without, layers, samples, most)
            fresh = context.folder / _RANKING
            fresh.write_text(json.dumps([asdict(layer) for layer in ranked]))
            fresh.replace(file)
        ranking = json.loads(file.read_text())
        return [layer["node"] for layer in ranking[: self.keep]]

    def _weights(self, model: Model, context: Context) -> PassResult:
        import onnx
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

        config = nbits.HQQWeightOnlyQuantConfig(bits=4) if self.algorithm == "hqq" else None
        with silent():
            quantizer = nbits.MatMulNBitsQuantizer(
                onnx.load(str(model.path)),
                bits=self.bits,
                block_size=128,
                is_symmetric=True,
                algo_config=config,
            )
            quantizer.process()
        path = context.folder / FILE_NAME
        quantizer.model.save_model_to_file(str(path), needs_side_file(model))
        result = Model.read(path)
        packed = result.count("com.microsoft::MatMulNBits")
        if not packed:
            raise NotApplicable(f"the model has no MatMul with constant weights{_hint(model)}")
        left = result.count("MatMul")
        return PassResult(result, True, (f"{packed} MatMul in {self.bits} bits, {left} in float",))


def _overflows(context: Context) -> bool:
    """Whether products of unsigned and signed bytes are summed in pairs of 16 bits here."""
    return not context.isa & _DOT_PRODUCT


def _kept_note(kept: Sequence[str]) -> str:
    return f"in float, by accuracy recovered per microsecond: {', '.join(kept)}"


def _hint(model: Model) -> str:
    if any(spec.dtype == "float16" for spec in model.signature.inputs):
        return "; products in float16 stay as they are"
    if not model.count("Constant"):
        return ""
    return "; weights in Constant nodes are not seen: put fold before it"


def _coverage(before: Model, after: Model, types: list[str]) -> str:
    total = before.count(*types)
    pairs = after.count("QuantizeLinear", "DynamicQuantizeLinear")
    return f"{', '.join(types)} quantized ({total} nodes; {pairs} activations)"
