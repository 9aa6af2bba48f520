"""The built-in plans: which chains are worth trying on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

from optimize.budgets.budget import PERCENTILES
from optimize.errors import InputError
from optimize.models.attention import has_attention
from optimize.models.model import Model
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.passes.base import Pass
from optimize.passes.chain import Chain
from optimize.passes.distill import Distill, Student
from optimize.passes.prune import Prune

# Skip connection and layer norm in one kernel is slower than two on x86, and hides nothing.
_TRANSFORMER_SESSION = "fold,session{without=SkipLayerNormFusion}"
_TRANSFORMER = (
    _TRANSFORMER_SESSION,
    f"{_TRANSFORMER_SESSION},int8{{mode=dynamic}}",
    f"{_TRANSFORMER_SESSION},smooth,int8{{mode=dynamic}}",
    f"{_TRANSFORMER_SESSION},int8{{mode=static}}",
    f"{_TRANSFORMER_SESSION},smooth,int8{{mode=static}}",
)
_CONVOLUTIONAL = (
    "fold,fuse,int8{mode=static}",
    "fold,fuse,int8{mode=static,calibration=percentile}",
    "fold,fuse,int8{mode=static,ops=conv}",
    "fold,equalize,fuse,int8{mode=static}",
)
_PRODUCTS = ("fold,fuse,int8{mode=dynamic}", "fold,fuse,int8{mode=static}")
_WEIGHTS = ("fold,fuse,int8{mode=weights}",)
_HALF = ("fold,fuse,fp16",)

# What ``compare`` adds: strategies that are rarely the best, for those who want to know.
_MORE = ("fold,fuse,int8{mode=weights,bits=4}", "fold,fuse,int8{mode=weights,bits=4,algorithm=hqq}")
_MORE_TRANSFORMER = (
    "fold,fuse,int8{mode=dynamic}",
    f"{_TRANSFORMER_SESSION},int8{{mode=dynamic,per=tensor}}",
    f"{_TRANSFORMER_SESSION},int8{{mode=static,ops=all}}",
    f"{_TRANSFORMER_SESSION},int8{{mode=static,calibration=percentile}}",
    f"{_TRANSFORMER_SESSION},int8{{mode=static,calibration=mse}}",
    f"{_TRANSFORMER_SESSION},int8{{mode=static,symmetric=true}}",
    f"{_TRANSFORMER_SESSION},int8{{mode=static,engine=nncf}}",
    "int8{mode=static,engine=neural-compressor}",
)
_MORE_CONVOLUTIONAL = (
    "fold,fuse,int8{mode=static,per=tensor}",
    "fold,fuse,int8{mode=static,calibration=entropy}",
    "fold,fuse,int8{mode=static,calibration=mse}",
    "fold,fuse,int8{mode=static,symmetric=true}",
    "fold,int8{mode=static,engine=nncf}",
    "int8{mode=static,engine=neural-compressor}",
)
_OTHER_RUNTIMES = {
    "openvino": (
        "source@openvino",
        "bf16@openvino",
        "fold,int8{mode=static,engine=nncf}@openvino",
        "fold,int8{mode=static,engine=nncf},bf16@openvino",
        "fold,int8{mode=static,engine=nncf},bf16,shapes@openvino",
    ),
    "inductor": (
        "source@inductor",
        "int8{mode=static,engine=neural-compressor}@inductor",
    ),
}


def built_in(
    model: Model,
    calibrated: bool,
    runtimes: Sequence[str] = (DEFAULT_RUNTIME,),
    everything: bool = False,
) -> tuple[Chain, ...]:
    """The chains to try besides ``source``, cheapest and likeliest first.

    Args:
        model: the source as exported.
        calibrated: whether there is real data to calibrate on.
        runtimes: those that may serve.
        everything: whether to add the strategies that are rarely the best.
    """
    texts: list[str] = []
    if DEFAULT_RUNTIME in runtimes:
        texts += _for_onnxruntime(model, everything)
    for runtime in runtimes:
        texts += _OTHER_RUNTIMES.get(runtime, ())
    chains = [Chain.parse(text) for text in dict.fromkeys(texts)]
    return tuple(c for c in chains if calibrated or not c.needs_calibration)


def strategies(chain: Chain) -> tuple[str, ...]:
    """The names that a chain goes by: those of its passes, and the choices made in them.

    ``fold,int8{mode=static,engine=nncf}@openvino`` is fold, int8, static and nncf.
    """
    chosen = (
        value
        for step in chain.passes
        for item in fields(step)
        if isinstance(value := getattr(step, item.name), str)
        and (value != item.default or item.name == "mode")
    )
    return tuple(dict.fromkeys((*(step.name for step in chain.passes), *chosen)))


_BY_OPTION = {
    "prune": "; --prune SHARE brings pruning",
    "distill": "; --distill or --prune bring distillation",
    "student": "; --student brings another architecture",
    "mixed": "; it follows from static by itself",
}


def restricted(chains: Sequence[Chain], names: Sequence[str]) -> tuple[Chain, ...]:
    """The chains that go by one of the names.

    Raises:
        InputError: none goes by a name.
    """
    known = {name for chain in chains for name in strategies(chain)}
    for name in names:
        if name not in known:
            raise InputError(
                f"--strategies {name}: no chain of the plan for this model goes by that name; "
                f"choose from {', '.join(sorted(known))}{_BY_OPTION.get(name, '')}"
            )
    return tuple(chain for chain in chains if set(names) & set(strategies(chain)))


def trained(
    model: Model,
    module: bool,
    runtimes: Sequence[str] = (DEFAULT_RUNTIME,),
    distill: str | None = None,
    student: str | None = None,
    prune: str | None = None,
) -> tuple[Chain, ...]:
    """The chains that options for training ask for, each also quantized.

    Args:
        model: the source as exported.
        module: whether the source is a torch module, which can be trained.
        runtimes: those that may serve.
        distill: ``file.py:function`` in the built-in training's place; alone, it trains the source.
        student: ``file.py:factory`` of another architecture.
        prune: a ratio, or a latency percentile.
    """
    lesson = Distill(hook=distill) if distill else Distill()
    starts: list[tuple[Pass, ...]] = []
    if student:
        starts.append((Student(student), lesson))
    if prune and module:
        starts.append((_pruned(prune, "module"), lesson))
    elif prune:
        starts.append((_pruned(prune, "graph"),))
    if distill and not starts:
        starts.append((lesson,))
    return tuple(
        Chain((*start, *Chain.parse(end).passes), runtime)
        for start in starts
        for runtime in runtimes
        for end in _ends(model, runtime)
    )


def _pruned(text: str, on: Literal["graph", "module"]) -> Prune:
    given = f"prune{{{'to' if text in PERCENTILES else 'ratio'}={text},on={on}}}"
    (step,) = Chain.parse(given).passes
    assert isinstance(step, Prune)  # by its name
    return step


def _ends(model: Model, runtime: str) -> tuple[str, ...]:
    """What may follow on each runtime: nothing, or quantization."""
    mode = "dynamic" if has_attention(model) else "static"
    follow = {
        DEFAULT_RUNTIME: ("source", f"fold,fuse,int8{{mode={mode}}}"),
        "openvino": ("source", "fold,int8{mode=static,engine=nncf}"),
    }
    return follow.get(runtime, ("source",))


def _for_onnxruntime(model: Model, everything: bool) -> list[str]:
    texts = ["fold,fuse"]
    attends = has_attention(model)
    if attends:
        texts += _TRANSFORMER
        texts += _MORE_TRANSFORMER if everything else ()
    if model.count("Conv"):
        texts += _CONVOLUTIONAL
        texts += _MORE_CONVOLUTIONAL if everything else ()
    elif not attends:
        texts += _PRODUCTS
    if model.count("Conv") and not attends and model.count("MatMul", "Gemm", "LSTM", "GRU"):
        texts += _PRODUCTS[:1]
    if model.count("MatMul", "Gemm"):
        texts += _WEIGHTS
        texts += _MORE if everything else ()
    return [*texts, *_HALF]
