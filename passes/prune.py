"""Pruning: smaller layers, or zeros for runtimes that profit from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from optimize.errors import InputError, NotApplicable
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.runtimes import Format
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.files import load_proto, save_proto

if TYPE_CHECKING:
    from optimize.passes.pruning.graph import Shapes
    from optimize.passes.pruning.groups import Dependencies, Keep
    from optimize.passes.pruning.importance import Order

CALIBRATION_MOST = 256  # samples; more did not lower the error of refitted models
_NAMED = 6  # layers that a note names


@dataclass(frozen=True)
class Prune(Pass):
    """Remove the channels, hidden units and attention heads that matter least.

    Shapes get smaller, so every kernel gets faster. Works on the graph, without gradients:
    what the removed channels did is made up for by refitting the layers that read them, by least
    squares on calibration data.

    Attributes:
        ratio: share of the channels that go; with ``kind=mask``, of the weights.
        to: ``ratio``, or the latency percentile whose budget decides how much goes: the share of
            each layer is then found by timing candidates on the target.
        scope: the same share of every layer, or the least important channels of all layers.
        importance: of channels: ``magnitude`` of their weights, or ``activation``: what the next
            layers' outputs lose on calibration data. ``auto`` is activation, for masks magnitude:
            half of a digit classifier's channels cost 1.03% of its logits' variance by
            activation and 1.55% by magnitude, both refitted (62.7% by magnitude without a refit).
        refit: whether to refit by least squares.
        kind: ``channels``, or zeros in weights of the same shape: ``mask`` anywhere, ``2:4`` two
            of every four inputs.
        multiple: what the number of channels that stay is rounded to; 0 for what kernels like.
        on: the exported ``graph``, with a refit in place of training; or the torch ``module``, to
            be trained by ``distill`` afterwards.
        rounds: with a budget: how often to cut, recover and look again.
        recovery: with a budget and ``on=module``: batches of distillation after each round.
    """

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "remove channels, hidden units and attention heads; or mask weights"
    version: ClassVar[int] = 3
    needs: ClassVar[str] = "real data, unless importance=magnitude,refit=false or kind=mask"

    ratio: float = field(default=0.25, metadata={"always": True})
    scope: Literal["layer", "global"] = "layer"
    importance: Literal["auto", "magnitude", "activation", "taylor"] = "auto"
    refit: bool = True
    kind: Literal["channels", "mask", "2:4"] = "channels"
    multiple: int = 0
    on: Literal["graph", "module"] = "graph"
    to: Literal["ratio", "p50", "p90", "p95", "p99", "p99.9"] = "ratio"
    rounds: int = 2
    recovery: int = 200

    def __post_init__(self) -> None:
        """Reject values out of range, and options that the kind does not have."""
        if not 0 <= self.ratio < 1:
            raise InputError(f"prune: ratio={self.ratio:g} is not between 0 and 1")
        if self.multiple < 0:
            raise InputError(f"prune: multiple={self.multiple} is negative")
        if self.kind == "2:4" and self.ratio not in (0.25, 0.5):
            raise InputError(f"prune: kind=2:4 zeroes half of the weights, not {self.ratio:g}")
        if self.importance == "taylor" and self.on != "module":
            raise InputError("prune: importance=taylor needs gradients, hence on=module")
        if self.on == "module" and self.importance == "activation":
            raise InputError("prune: on=module takes importance=magnitude or taylor")
        if self.kind != "channels" and (self.importance == "activation" or self.multiple):
            raise InputError(f"prune: kind={self.kind} takes ratio and scope only")
        if self.rounds < 1 or self.recovery < 0:
            raise InputError("prune: rounds must be at least 1, recovery at least 0")
        default = type(self).ratio, type(self).scope, type(self).kind
        if self.times and (self.ratio, self.scope, self.kind) != default:
            raise InputError(f"prune: to={self.to} finds the ratios; leave ratio, scope, kind out")

    @property
    def times(self) -> bool:
        """With a budget."""
        return self.to != "ratio"

    def _always(self, field: Field[Any]) -> bool:
        return super()._always(field) and not self.times

    @property
    def tailored(self) -> bool:
        """What is timed is timed on the runtime that will serve."""
        return self.times

    @property
    def needs_calibration(self) -> bool:
        """Activations, the refit and what candidates are compared on come from data."""
        if self.times:
            return True
        if self.on == "module":
            return self.importance == "taylor"
        return self.kind == "channels" and (self.refit or self.importance != "magnitude")

    @property
    def takes(self) -> tuple[Format, ...]:  # type: ignore[override]  # it depends on ``on``
        """What it prunes."""
        return ("torch",) if self.on == "module" else ("onnx",)

    def apply(self, model: Model, context: Context) -> PassResult:
        """Prune the graph."""
        from optimize.passes.pruning.graph import plain

        if model.quantized:
            raise NotApplicable("the model is already quantized; put prune before int8")
        if self.ratio == 0:
            return PassResult(model, False, ("ratio=0: nothing to remove",))
        if self.times:
            from optimize.passes.pruning.budgeted import prune_to

            return prune_to(self, model, context)
        if self.on == "module":
            return self._module(model, context)
        proto = plain(load_proto(model))
        if self.kind == "channels":
            return self._channels(proto, context)
        return self._mask(proto, context)

    def _module(self, model: Model, context: Context) -> PassResult:
        from optimize.models.program import load_program, save_program
        from optimize.passes.pruning.select import convolution_block
        from optimize.passes.training.batches import Batches
        from optimize.passes.training.mask import mask_module
        from optimize.passes.training.prune import prune_module

        program = load_program(model.path)
        if self.kind != "channels":
            pattern: Literal["2:4", "unstructured"] = (
                "2:4" if self.kind == "2:4" else "unstructured"
            )
            pruned, notes = mask_module(program.module, pattern, self.ratio, self.scope)
        else:
            taylor = self.importance == "taylor" and context.calibration is not None
            pruned, notes = prune_module(
                program.module,
                program.example.args,
                self.ratio,
                self.scope,
                "taylor" if taylor else "magnitude",
                self.multiple or convolution_block(context.isa),
                context.seed,
                Batches(context.calibration, seed=context.seed)
                if taylor and context.calibration is not None
                else None,
            )
        made = save_program(program.with_module(pruned), context.folder, model.signature)
        return PassResult(made, True, tuple(notes))

    def _channels(self, proto: Any, context: Context) -> PassResult:
        from optimize.passes.pruning.graph import measured_shapes
        from optimize.passes.pruning.groups import dependencies

        calibration = (context.calibration or context.samples).first(CALIBRATION_MOST)
        shapes = measured_shapes(proto, calibration)
        found = dependencies(proto, shapes)
        if not found.groups:
            raise NotApplicable(nothing(proto, found))
        keep = self._kept(proto, found, calibration, context)
        return self.shrunk(proto, found, shapes, keep, context)

    def shrunk(
        self, proto: Any, found: Dependencies, shapes: Shapes, keep: Keep, context: Context
    ) -> PassResult:
        """Cut a plain graph down to the channels that stay, and refit it."""
        from optimize.passes.pruning.refit import refit
        from optimize.passes.pruning.shrink import shrink

        calibration = (context.calibration or context.samples).first(CALIBRATION_MOST)
        result = shrink(proto, found, shapes, keep)
        notes = [_summary(proto, result, found, keep), *_untouched(proto, found)]
        if self.refit:
            result, done, left_out = refit(proto, result, found, keep, calibration, context.seed)
            before, after = (
                sum(getattr(one, name) for one in done) / max(len(done), 1)
                for name in ("before", "after")
            )
            notes.append(
                f"{len(done)} layers refitted by least squares in place of training: error of "
                f"their outputs {before:.2%} -> {after:.2%} of the variance, on samples held out"
            )
            if left_out:
                notes.append(
                    "cannot be refitted (transposed, scaled, or with a computed bias): "
                    f"{_listed(left_out)}"
                )
        return PassResult(save_proto(result, context), True, tuple(notes))

    def _kept(
        self, proto: Any, found: Dependencies, calibration: Dataset, context: Context
    ) -> Keep:
        from optimize.passes.pruning.select import kept_channels, multiple_for, share_at_most

        multiples = [
            multiple_for(proto, group, self.multiple, context.isa) for group in found.groups
        ]
        share = share_at_most(self.scope, self.ratio)
        orders = self.orders(proto, found, calibration, share, context.seed)
        keep = kept_channels(found, orders, self.ratio, self.scope, multiples)
        if keep.all():
            raise NotApplicable(
                f"ratio={self.ratio:g} removes nothing where the channels that stay are rounded "
                f"to multiples of {max(multiples)}; use a larger ratio, or multiple=1"
            )
        return keep

    def orders(
        self, proto: Any, found: Dependencies, calibration: Dataset, share: float, seed: int
    ) -> Sequence[Order]:
        """In which order the channels of each group go, ``share`` of them at most."""
        from optimize.passes.pruning.importance import by_activation, by_magnitude

        if self.importance == "magnitude":
            return by_magnitude(proto, found)
        return by_activation(proto, found, calibration, self.refit, share, seed)

    def _mask(self, proto: Any, context: Context) -> PassResult:
        from optimize.passes.pruning.masks import two_of_four, unstructured

        masked = (
            two_of_four(proto)
            if self.kind == "2:4"
            else unstructured(proto, self.ratio, self.scope == "global")
        )
        if not masked.zeros:
            raise NotApplicable("the model has no weights that could be masked")
        share = masked.zeros / masked.weights
        notes = [
            f"{share:.0%} of {masked.weights:,} weights are zero; shapes stay, and onnxruntime's "
            "kernels multiply zeros like any number: not faster here, for runtimes that are"
        ]
        if masked.skipped:
            notes.append(f"inputs not divisible by 4: {_listed(masked.skipped)}")
        return PassResult(save_proto(masked.proto, context), True, tuple(notes))


def nothing(proto: Any, found: Dependencies) -> str:
    """Say why no channels of a graph can go."""
    return "; ".join(["no channels can go", *_untouched(proto, found)])


def _summary(before: Any, after: Any, found: Dependencies, keep: Keep) -> str:
    gone = int((~keep).sum())
    return (
        f"{gone:,} of {found.prunable:,} channels removed, "
        f"parameters {_parameters(before):,} -> {_parameters(after):,}"
    )


def _parameters(proto: Any) -> int:
    from math import prod

    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    return sum(prod(t.dims) for t in proto.graph.initializer if t.data_type in floats)


def _untouched(proto: Any, found: Dependencies) -> list[str]:
    """One note for every reason why layers could not be touched."""
    from optimize.passes.pruning.groups import layer_name

    reasons: dict[str, list[str]] = {}
    for layer, reason in found.untouched.items():
        reasons.setdefault(reason, []).append(layer_name(proto.graph.node[layer]))
    return [f"not touched, as {reason}: {_listed(names)}" for reason, names in reasons.items()]


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _NAMED
    return ", ".join(listed[:_NAMED]) + (f" and {more} more" if more > 0 else "")
