"""Structured pruning on Torch-Pruning's dependency graph: whole channels, heads, hidden units.

A group is all that must lose the same channels: the layer that makes them, norms and residual
sums on the way, the layers that read them. Which groups may be pruned is found by trial: one unit
is removed from a copy, and the copy must still run and give outputs of the same shapes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optimize.errors import InputError, NotApplicable, first_cause, nearest
from optimize.passes.training.attention import Attention, find_attention
from optimize.passes.training.batches import Batches
from optimize.passes.training.outputs import named_outputs
from optimize.passes.training.sensitivity import accumulate_gradients

Scope = Literal["layer", "global"]
Importance = Literal["magnitude", "taylor"]
_Shapes = dict[str, tuple[int, ...]]
_UNREAD = "Torch-Pruning cannot follow its channels"
# A global ranking may empty a layer; this share of each stays.
_KEPT_LEAST = 0.1


@dataclass(frozen=True)
class _Group:
    """Channels, or heads, that can be removed together.

    Attributes:
        root: name of the module that makes them.
        width: how many channels, or heads, there are.
        sets: equal parts that must stay equal in size, as in grouped convolutions; mostly 1.
        scores: importance of each place in a set, shape (width / sets,).
        attention: set for heads.
    """

    root: str
    width: int
    sets: int
    scores: Any
    attention: Attention | None = None

    @property
    def units(self) -> int:
        """How many can be removed one by one."""
        return self.width // self.sets

    def channels(self, units: Sequence[int]) -> list[int]:
        """The same places in every set."""
        return [part * self.units + unit for part in range(self.sets) for unit in units]


@dataclass
class _Work:
    """A copy of the model that may be cut up, and its graph."""

    module: Any
    graph: Any
    attentions: Mapping[str, Attention] = field(default_factory=dict)

    def group(self, root: str, channels: Sequence[int]) -> Any:
        """All that loses channels with these of the root's outputs."""
        layer = self.module.get_submodule(root)
        pruner = self.graph.get_pruner_of_module(layer)
        return self.graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels))

    def unread(self, root: str, channels: Sequence[int]) -> Any:
        """A copy in which no layer reads these channels: what pruning them must be equal to.

        None where a norm mixes all channels, so that there is no such equality.
        """
        import torch

        mixing = (torch.nn.LayerNorm, torch.nn.GroupNorm)
        names = {part: name for name, part in self.module.named_modules()}
        reference = copy.deepcopy(self.module)
        for dependency, indices in self.group(root, channels):
            layer = dependency.target.module
            if isinstance(layer, mixing):
                return None
            if layer in names and self.graph.is_in_channel_pruning_fn(dependency.handler):
                _forget(reference.get_submodule(names[layer]), indices)
        return reference


def prune_module(
    module: Any,
    example_inputs: Sequence[Any],
    ratio: float,
    scope: Scope = "layer",
    importance: Importance = "magnitude",
    multiple: int = 16,
    seed: int = 0,
    batches: Batches | None = None,
    heads: float | None = None,
    skip: Sequence[str] = (),
) -> tuple[Any, tuple[str, ...]]:
    """Return a smaller copy of ``module``, and notes; ``module`` itself is untouched.

    Args:
        module: a ``torch.nn.Module`` that takes its inputs by position.
        example_inputs: tensors to run it on.
        ratio: share of channels, hidden units and heads to remove, 0 to below 1; 0 is exact.
        scope: ``layer`` takes the ratio of each group, ``global`` ranks all groups' channels
            (scores relative to their group's mean) and takes the ratio of the total.
        importance: ``magnitude`` is the group's L2 norm (https://arxiv.org/abs/2301.12900);
            ``taylor`` is weight times gradient on ``batches`` (https://arxiv.org/abs/1906.10771).
        multiple: kept channels are rounded to the nearest multiple, at least one. Layers that are
            not wider keep their width. onnxruntime blocks channels by 16 with AVX-512, so that the
            widths in between cost as much as the next multiple.
        seed: for the random directions that ``taylor`` takes where there are no labels.
        batches: real data, for ``taylor``.
        heads: share of attention heads; ``ratio`` if None.
        skip: names of modules that keep their channels and heads, with all inside them.

    Raises:
        InputError: an option is out of range, a name unknown, or Torch-Pruning is not installed.
        NotApplicable: nothing can be removed at this ratio; the message says why.
    """
    import torch

    _check(ratio, multiple, importance, batches, heads)
    if ratio == 0 and not heads:
        return copy.deepcopy(module), ("nothing removed at ratio 0",)
    example = tuple(example_inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scored = copy.deepcopy(module)
        if importance == "taylor" and batches is not None:
            accumulate_gradients(scored, batches)
        groups, unread = _groups(_work(scored, example), importance, skip)
    want = _shapes(_outputs(scored, example))
    allowed, notes = _tried(module, example, groups, want, unread)
    share = ratio if heads is None else heads
    plan = _plan(allowed, ratio, share, scope, multiple)
    if not any(plan.values()):
        raise NotApplicable(_nothing(allowed, multiple, notes))
    work = _work(copy.deepcopy(module), example)
    for group in allowed:
        _remove(work, group, plan[group.root])
    _check_shapes(_outputs(work.module, example), want)
    return _finished(work.module, module), (*_summary(module, work.module, allowed, plan), *notes)


def _check(
    ratio: float, multiple: int, importance: str, batches: Batches | None, heads: float | None
) -> None:
    for name, value in (("ratio", ratio), ("heads", heads or 0.0)):
        if not 0 <= value < 1:
            raise InputError(f"prune: {name}={value:g} must be at least 0 and below 1")
    if multiple < 1:
        raise InputError(f"prune: multiple={multiple} must be at least 1")
    if importance == "taylor" and batches is None:
        raise InputError("prune: importance=taylor needs data; give --data or --train")
    try:
        import torch_pruning  # noqa: F401  only to find out whether it is there
    except ImportError:
        raise InputError("prune needs Torch-Pruning; install tailfit[pruning]") from None


def _work(module: Any, example: tuple[Any, ...]) -> _Work:
    """Trace a module; its gradients are switched on for that, which export does not mind."""
    import torch
    import torch_pruning as tp

    module.eval()
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = tp.DependencyGraph().build_dependency(
                module, example, forward_fn=_forward, output_transform=_tensors, verbose=False
            )
        except Exception as error:
            raise NotApplicable(f"its graph cannot be traced: {first_cause(error)}") from error
    attentions = {attention.name: attention for attention in find_attention(module, graph)}
    return _Work(module, graph, attentions)


def _forward(module: Any, inputs: tuple[Any, ...]) -> Any:
    return module(*inputs)


def _tensors(result: Any) -> list[Any]:
    return [value for value in named_outputs(result).values() if value.grad_fn is not None]


def _groups(
    work: _Work, importance: Importance, skip: Sequence[str]
) -> tuple[list[_Group], list[str]]:
    """Score all groups; also name the layers whose group Torch-Pruning gets wrong."""
    import torch
    import torch_pruning as tp

    scorer: Any = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[importance]()
    modules = dict(work.module.named_modules())
    names = {part: name for name, part in modules.items()}
    found, unread = [], []
    ignored = [part for name in skip for part in _named(modules, name).modules()]
    for attention in work.attentions.values():
        if attention.output is not None and attention.projections[0] not in ignored:
            found.append(_head_group(work, attention, scorer))
        ignored += attention.projections
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    for group in work.graph.get_all_groups(ignored_layers=ignored, root_module_types=kinds):
        root = names[group[0].dep.target.module]
        sets = _sets(group)
        try:
            scores = scorer(group)
        except (IndexError, RuntimeError):  # indices beyond a layer's width
            scores = None
        if scores is None or not len(scores) or len(scores) % sets:
            unread.append(root)
        else:
            folded = _relative(scores).reshape(sets, -1).mean(0)
            found.append(_Group(root, len(scores), sets, folded))
    return found, unread


def _named(modules: Mapping[str, Any], name: str) -> Any:
    if name not in modules:
        raise InputError(f"prune: no module {name!r}; {nearest(name, modules)}")
    return modules[name]


def _head_group(work: _Work, attention: Attention, scorer: Any) -> _Group:
    import torch_pruning as tp

    value = attention.projections[2]
    full = list(range(value.out_features))
    scores = scorer(work.graph.get_pruning_group(value, tp.prune_linear_out_channels, full))
    heads = attention.importance(_relative(scores))
    return _Group(attention.name, attention.heads, 1, heads, attention)


def _relative(scores: Any) -> Any:
    """Scores relative to their mean, so that groups of different scales can be ranked together."""
    return (scores / scores.mean().clamp_min(1e-12)).detach().cpu()


def _sets(group: Any) -> int:
    """How many equal sets the channels of a group fall into: grouped convolutions and norms."""
    import torch

    counts = [1]
    for dependency, _ in group:
        layer = dependency.target.module
        if isinstance(layer, torch.nn.GroupNorm):
            counts.append(layer.num_groups)
        elif isinstance(layer, torch.nn.modules.conv._ConvNd) and layer.groups > 1:
            depthwise = layer.groups == layer.out_channels == layer.in_channels
            counts.append(1 if depthwise else layer.groups)
    return max(counts)


def _tried(
    module: Any,
    example: tuple[Any, ...],
    groups: list[_Group],
    want: _Shapes,
    unread: list[str],
) -> tuple[list[_Group], list[str]]:
    """Try each group by one unit on a copy, and tell which may be pruned and why others not."""
    allowed: list[_Group] = []
    reasons = {_UNREAD: unread} if unread else {}
    work = _work(copy.deepcopy(module), example)
    for group in groups:
        try:
            _try(work, group, example, want)
            allowed.append(group)
        except NotApplicable as error:
            reasons.setdefault(str(error), []).append(group.root)
            work = _work(copy.deepcopy(module), example)
    reasons.update(_untouchable(work))
    return allowed, [f"kept {_listed(names)}: {reason}" for reason, names in reasons.items()]


def _try(work: _Work, group: _Group, example: tuple[Any, ...], want: _Shapes) -> None:
    """Remove one unit, and compare with the same unit unread by the layers that follow.

    Raises:
        NotApplicable: the group cannot be pruned.
    """
    if group.units < 2:
        raise NotApplicable("it has a single unit")
    unread = None if group.attention else work.unread(group.root, group.channels([0]))
    _remove(work, group, [0])
    try:
        got = _outputs(work.module, example)
    except Exception as error:
        raise NotApplicable(f"the model's code depends on it: {first_cause(error, 90)}") from error
    _check_shapes(got, want)
    if unread is not None and not _close(got, _outputs(unread, example)):
        raise NotApplicable("its channels are mixed in ways that Torch-Pruning does not see")


def _untouchable(work: _Work) -> dict[str, list[str]]:
    import torch

    found: dict[str, list[str]] = {}
    for attention in work.attentions.values():
        if attention.output is None:
            reason = "no single layer reads its joined heads"
            found.setdefault(reason, []).append(attention.name)
    for name, part in work.module.named_modules():
        if isinstance(part, torch.nn.MultiheadAttention):
            reason = "torch's MultiheadAttention ties its heads to the width of its input"
            found.setdefault(reason, []).append(name)
        elif isinstance(part, torch.nn.RNNBase):
            found.setdefault("recurrent layers are not pruned", []).append(name)
    return found


def _remove(work: _Work, group: _Group, units: Sequence[int]) -> None:
    """Remove units of a group in place.

    Raises:
        NotApplicable: Torch-Pruning cannot.
    """
    if not units:
        return
    if group.attention is not None:
        work.attentions[group.root].remove(units)
        return
    try:
        work.group(group.root, group.channels(units)).prune()
    except Exception as error:
        raise NotApplicable(f"Torch-Pruning cannot: {first_cause(error, 120)}") from error


def _forget(layer: Any, channels: Sequence[int]) -> None:
    """Set to zero, in place, the weights by which a layer reads input channels."""
    import torch

    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    if not isinstance(layer, kinds):
        return  # norms and depthwise layers pass channels on
    groups = getattr(layer, "groups", 1)
    transposed = getattr(layer, "transposed", False)
    weight = layer.weight.data.transpose(0, 1) if transposed else layer.weight.data
    if groups > 1 and groups == layer.in_channels:
        return
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    for channel in channels:
        part = 0 if groups == 1 else channel // columns
        weight[part * rows : (part + 1) * rows, channel % columns if groups > 1 else channel] = 0


def _outputs(module: Any, example: tuple[Any, ...]) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        return named_outputs(module.eval()(*example))


def _shapes(outputs: Mapping[str, Any]) -> _Shapes:
    return {name: tuple(value.shape) for name, value in outputs.items()}


def _check_shapes(outputs: Mapping[str, Any], want: _Shapes) -> None:
    if _shapes(outputs) != want:
        raise NotApplicable("it makes an output")


def _close(got: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
    """Equal up to the order of float32 sums."""
    return all(
        float((got[name] - value).abs().max()) <= 1e-3 * float(value.abs().max()) + 1e-6
        for name, value in want.items()
        if value.is_floating_point() and value.numel()
    )


def _plan(
    groups: list[_Group], ratio: float, heads: float, scope: Scope, multiple: int
) -> dict[str, list[int]]:
    """The units to remove from each group, the least important first."""
    import torch

    shares = {group.root: ratio for group in groups}
    channels = [group for group in groups if group.attention is None]
    if scope == "global" and channels:
        shares.update(_global_shares(channels, ratio))
        rest = [group for group in groups if group.attention is not None]
        shares.update(_global_shares(rest, heads) if rest else {})
    else:
        shares.update({g.root: heads for g in groups if g.attention is not None})
    plan = {}
    for group in groups:
        step = 1 if group.attention is not None else max(1, multiple // group.sets)
        kept = rounded(group.units, shares[group.root], step)
        order = torch.argsort(group.scores, stable=True)
        plan[group.root] = sorted(order[: group.units - kept].tolist())
    return plan


def _global_shares(groups: list[_Group], ratio: float) -> dict[str, float]:
    """What share of each group lies among the lowest scores of all, every channel counted."""
    import torch

    scores = torch.cat([group.scores.repeat(group.sets) for group in groups])
    count = round(ratio * len(scores))
    if not count:
        return {group.root: 0.0 for group in groups}
    threshold = scores.sort().values[count - 1]
    below = {g.root: float((g.scores <= threshold).float().mean()) for g in groups}
    return {root: min(share, 1 - _KEPT_LEAST) for root, share in below.items()}


def rounded(width: int, ratio: float, multiple: int) -> int:
    """How many of ``width`` units to keep: the nearest multiple, at least one, never more.

    ``ratio`` is the share to remove. A width that is no more than the multiple stays.
    """
    if ratio <= 0 or width <= multiple:
        return width
    kept = multiple * int(width * (1 - ratio) / multiple + 0.5)
    return min(width, max(multiple, kept))


def _nothing(groups: list[_Group], multiple: int, notes: list[str]) -> str:
    if not groups:
        return "; ".join(["no channels, hidden units or heads can be removed", *notes])
    return (
        f"at this ratio all {len(groups)} prunable layers keep their width, rounded to multiples "
        f"of {multiple}; raise the ratio or lower multiple"
    )


def _finished(pruned: Any, module: Any) -> Any:
    """Give the copy the original's mode and frozen parameters, and drop gradients."""
    frozen = {name for name, value in module.named_parameters() if not value.requires_grad}
    for name, value in pruned.named_parameters():
        value.requires_grad_(name not in frozen and value.is_floating_point())
        value.grad = None
    return pruned.train(module.training)


def _summary(
    before: Any, after: Any, groups: list[_Group], plan: Mapping[str, list[int]]
) -> Iterator[str]:
    first, second = (sum(p.numel() for p in m.parameters()) for m in (before, after))
    yield f"parameters {first:,} -> {second:,} ({second / first:.0%})"
    for what, chosen in (
        ("channels", [g for g in groups if g.attention is None]),
        ("heads", [g for g in groups if g.attention is not None]),
    ):
        if chosen:
            total = sum(g.units * g.sets for g in chosen)
            left = total - sum(len(plan[g.root]) * g.sets for g in chosen)
            yield f"{what} {total} -> {left} in {len(chosen)} groups"
    same = [group.root for group in groups if not plan[group.root]]
    if same:
        yield f"kept {_listed(same)}: rounding leaves the width as it is"


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
