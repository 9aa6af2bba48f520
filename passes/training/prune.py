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

from optimize.errors import InputError, NotApplicable, first_cause
from optimize.passes.training.attention import Attention, find_attention
from optimize.passes.training.batches import Batches
from optimize.passes.training.outputs import named_outputs
from optimize.passes.training.sensitivity import accumulate_gradients

Scope = Literal["layer", "global"]
Importance = Literal["magnitude", "taylor"]
_Shapes = dict[str, tuple[int, ...]]
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
        skip: names of modules whose own channels stay.

    Raises:
        InputError: an option is out of range, or Torch-Pruning is not installed.
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
        groups = list(_groups(_work(scored, example), importance, skip))
    want = _shapes(scored, example)
    allowed, notes = _tried(module, example, groups, want)
    share = ratio if heads is None else heads
    plan = _plan(allowed, ratio, share, scope, multiple)
    if not any(plan.values()):
        raise NotApplicable(_nothing(allowed, multiple, notes))
    work = _work(copy.deepcopy(module), example)
    for group in allowed:
        _remove(work, group, plan[group.root])
    _check_outputs(work.module, example, want)
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


def _groups(work: _Work, importance: Importance, skip: Sequence[str]) -> Iterator[_Group]:
    import torch
    import torch_pruning as tp

    scorer: Any = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }[importance]()
    modules = dict(work.module.named_modules())
    names = {part: name for name, part in modules.items()}
    ignored = [modules[name] for name in skip if name in modules]
    for attention in work.attentions.values():
        ignored += attention.projections
        if attention.output is not None and attention.module not in ignored:
            value = attention.projections[2]
            full = list(range(value.out_features))
            scores = scorer(work.graph.get_pruning_group(value, tp.prune_linear_out_channels, full))
            heads = attention.importance(_relative(scores))
            yield _Group(attention.name, attention.heads, 1, heads, attention)
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)
    for group in work.graph.get_all_groups(ignored_layers=ignored, root_module_types=kinds):
        root = group[0].dep.target.module
        scores = scorer(group)
        if scores is None or not len(scores) or root not in names:
            continue
        sets = _sets(work.graph, group)
        if len(scores) % sets == 0:
            folded = _relative(scores).reshape(sets, -1).mean(0)
            yield _Group(names[root], len(scores), sets, folded)


def _relative(scores: Any) -> Any:
    """Scores relative to their mean, so that groups of different scales can be ranked together."""
    return (scores / scores.mean().clamp_min(1e-12)).detach().cpu()


def _sets(graph: Any, group: Any) -> int:
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
    module: Any, example: tuple[Any, ...], groups: list[_Group], want: _Shapes
) -> tuple[list[_Group], list[str]]:
    """Try each group by one unit on a copy, and tell which may be pruned and why others not."""
    allowed: list[_Group] = []
    reasons: dict[str, list[str]] = {}
    work = _work(copy.deepcopy(module), example)
    for group in groups:
        if group.units < 2:
            reasons.setdefault("it has a single unit", []).append(group.root)
            continue
        try:
            _remove(work, group, [0])
            _check_outputs(work.module, example, want)
            allowed.append(group)
        except NotApplicable as error:
            reasons.setdefault(str(error), []).append(group.root)
            work = _work(copy.deepcopy(module), example)
    reasons.update(_untouchable(work))
    return allowed, [f"kept {_listed(names)}: {reason}" for reason, names in reasons.items()]


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
    root = work.module.get_submodule(group.root)
    try:
        pruner = work.graph.get_pruner_of_module(root)
        pruned = work.graph.get_pruning_group(
            root, pruner.prune_out_channels, group.channels(units)
        )
        pruned.prune()
    except Exception as error:
        raise NotApplicable(f"Torch-Pruning cannot: {first_cause(error, 120)}") from error


def _check_outputs(pruned: Any, example: tuple[Any, ...], want: _Shapes) -> None:
    """Run the pruned module and compare the outputs' names and shapes.

    Raises:
        NotApplicable: they differ, or it does not run.
    """
    try:
        got = _shapes(pruned, example)
    except Exception as error:
        raise NotApplicable(f"the model's code depends on it: {first_cause(error, 90)}") from error
    if got != want:
        raise NotApplicable("it makes an output")


def _shapes(module: Any, example: tuple[Any, ...]) -> _Shapes:
    import torch

    with torch.no_grad():
        outputs = named_outputs(module.eval()(*example))
    return {name: tuple(value.shape) for name, value in outputs.items()}


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


