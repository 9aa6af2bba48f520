"""Operator fusion ahead of time, and which fusions matched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from optimize.errors import NotApplicable, first_cause
from optimize.models.attention import has_attention
from optimize.models.model import FILE_NAME, Model
from optimize.passes.base import Context, Pass, PassResult, changed_counts
from optimize.passes.files import keep_inputs, load_ir, needs_side_file, save_ir, silent

_ATTENTION = ("Attention", "MultiHeadAttention", "PackedAttention", "GroupQueryAttention")
# In the order in which they are tried; a family is taken if it fuses the attention.
_FAMILIES = ("bert", "vit", "gpt2", "bart")
_FUSED = "com.microsoft::"


@dataclass(frozen=True)
class Fuse(Pass):
    """Replace groups of operators by one kernel each.

    ``auto`` runs onnxruntime's transformer fusions on models with attention, then onnxscript's if
    no attention matched; other models get onnxruntime's graph fusions (convolution with batch
    norm, and so on), saved ahead of time.
    """

    name: ClassVar[str] = "fuse"
    summary: ClassVar[str] = (
        "operator fusion: conv+bn, attention, layer norm, GELU, skip connection"
    )
    version: ClassVar[int] = 2
    needs: ClassVar[str] = "engine=onnxruntime-tools: the extra tailfit[onnxruntime-tools]"
    tolerance: ClassVar[float | None] = 1e-3  # fused kernels sum in another order
    runtimes: ClassVar[tuple[str, ...]] = ("onnxruntime",)  # fused operators are its own

    engine: Literal["auto", "onnxruntime", "onnxscript", "onnxruntime-tools"] = "auto"

    def apply(self, model: Model, context: Context) -> PassResult:
        """Fuse with the chosen engine and report the fusions that matched."""
        if self.engine == "onnxruntime-tools":
            result, notes = _onnxruntime_tools(model, context)
        elif not has_attention(model) and self.engine != "onnxscript":
            result, notes = _onnxruntime_graph(model, context), []
        elif self.engine == "onnxscript":
            result, notes = _onnxscript(model, context), []
        else:
            result, notes = _transformer(model, context, self.engine == "auto")
        changes = changed_counts(model, result)
        if not changes:
            return PassResult(model, False, ("no fusion matched", *notes))
        return PassResult(result, True, (_matched(model, result, changes), *notes))


def _fused_attention(model: Model) -> int:
    return model.count(*_ATTENTION, *(_FUSED + name for name in _ATTENTION))


def _matched(before: Model, after: Model, changes: Mapping[str, int]) -> str:
    nodes = sum(n for _, n in before.op_counts), sum(n for _, n in after.op_counts)
    new = [f"{name.removeprefix(_FUSED)} x{n}" for name, n in changes.items() if n > 0]
    gone = [
        f"{name} x{-n}" for name, n in changes.items() if n < 0 and name == "BatchNormalization"
    ]
    shown = ", ".join(new + [f"{g} folded away" for g in gone]) or "operators merged"
    return f"{nodes[0]} nodes became {nodes[1]}: {shown}"


def _transformer(model: Model, context: Context, more: bool) -> tuple[Model, list[str]]:
    """Try onnxruntime's model families, best first; then onnxscript's rules where allowed."""
    best: Model | None = None
    errors = []
    for family in _FAMILIES:
        try:
            fused = _family(model, context, family)
        except Exception as error:  # noqa: BLE001  the next family may do
            errors.append(f"{family}: {first_cause(error, 120)}")
            continue
        if best is None or _fused_attention(fused) > _fused_attention(best):
            best = fused
        if _fused_attention(best) or more:
            break  # with more engines to come, only the plainest family is worth its seconds
    if more and (best is None or not _fused_attention(best)):
        try:
            scripted = _onnxscript(model, context)
            if _fused_attention(scripted) or best is None:
                return scripted, ["attention matched by onnxscript's rules only"]
        except Exception as error:  # noqa: BLE001  told below
            errors.append(f"onnxscript: {first_cause(error, 120)}")
    if best is None:
        raise NotApplicable(f"no engine could read the graph: {'; '.join(errors)}")
    return best, [] if _fused_attention(best) else ["no attention matched"]


def _family(model: Model, context: Context, family: str) -> Model:
    from onnxruntime.transformers import optimizer

    with silent():
        # Level 0: onnxruntime's own fusions first would hide the patterns from these. Heads and
        # hidden size of zero are detected from the graph.
        fused = optimizer.optimize_model(str(model.path), family, num_heads=0, opt_level=0)
    return _save_fused(fused, model, context, family)


def _onnxscript(model: Model, context: Context) -> Model:
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    with silent():
        fused, _ = optimize_for_ort(load_ir(model))
    return save_ir(fused, model, _subfolder(context, "onnxscript"))


def _onnxruntime_graph(model: Model, context: Context) -> Model:
    """Save what onnxruntime's basic level makes of the graph: plain operators for any device."""
    import onnxruntime

    path = context.folder / FILE_NAME
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    if needs_side_file(model):
        side = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(side, f"{FILE_NAME}.data")
    onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    return _without_defaults(path, model)


def _without_defaults(path: Path, before: Model) -> Model:
    """Drop inputs that are weights, or were until onnxruntime folded their values away."""
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    if len(proto.graph.input) > len(before.signature.inputs):
        keep_inputs(proto, before.signature)
        onnx.save(proto, str(path))
    return Model.read(path)


def _onnxruntime_tools(model: Model, context: Context) -> tuple[Model, list[str]]:
    try:
        from onnxruntime_tools import optimizer
    except ImportError as error:
        raise NotApplicable(
            "onnxruntime-tools is not installed or does not import here; "
            "install tailfit[onnxruntime-tools], or use fuse without an engine, its successor"
        ) from error
    try:
        with silent():
            fused = optimizer.optimize_model(
                str(model.path), "bert", num_heads=12, hidden_size=768, opt_level=0
            )
    except Exception as error:
        raise NotApplicable(
            f"onnxruntime-tools cannot read this graph ({first_cause(error, 120)}); "
            "its successor fuse{engine=onnxruntime} may"
        ) from error
    return _save_fused(fused, model, context, "onnxruntime-tools"), []


def _save_fused(fused: Any, model: Model, context: Context, name: str) -> Model:
    path = _subfolder(context, name).folder / FILE_NAME
    save: Callable[..., Any] = fused.save_model_to_file
    with silent():
        save(str(path), use_external_data_format=needs_side_file(model))
    return Model.read(path)


def _subfolder(context: Context, name: str) -> Context:
    from dataclasses import replace

    folder: Path = context.folder / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return replace(context, folder=folder)
