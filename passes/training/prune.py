"""Structured pruning: whole channels, attention heads and hidden units, never the outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optimize.errors import InputError, NotApplicable
from optimize.passes.training.batches import Batches
from optimize.passes.training.groups import (
    Group,
    Shapes,
    check_shapes,
    find_groups,
    listed,
    outputs_of,
    remove,
    shapes_of,
    traced,
    tried,
)
from optimize.passes.training.sensitivity import accumulate_gradients

Scope = Literal["layer", "global"]
Importance = Literal["magnitude", "taylor"]
# A global ranking may empty a layer; this share of each stays.
_KEPT_LEAST = 0.1


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
    _check(ratio, multiple, importance, batches, heads)
    if ratio == 0 and not heads:
        return copy.deepcopy(module), ("nothing removed at ratio 0",)
    found = prunable(module, example_inputs, importance, seed, batches, skip)
    share = ratio if heads is None else heads
    plan = _plan(found.groups, ratio, share, scope, multiple)
    if not any(plan.values()):
        raise NotApplicable(_nothing(found.groups, multiple, found.notes))
    pruned = without(found, plan)
    return pruned, (*_summary(module, pruned, found.groups, plan), *found.notes)


@dataclass(frozen=True, eq=False)
class Prunable:
    """A module and what may be removed from it.

    Attributes:
        module: it stays as it is.
        example: inputs by position.
        groups: what was tried and found removable.
        notes: what was not, and why.
        shapes: of the outputs, which must stay.
    """

    module: Any
    example: tuple[Any, ...]
    groups: Sequence[Group]
    notes: Sequence[str]
    shapes: Shapes


def prunable(
    module: Any,
    example_inputs: Sequence[Any],
    importance: Importance = "magnitude",
    seed: int = 0,
    batches: Batches | None = None,
    skip: Sequence[str] = (),
) -> Prunable:
    """Score a module's groups, and try each; see :func:`prune_module` for the arguments.

    Raises:
        NotApplicable: its graph cannot be traced.
    """
    import torch

    example = tuple(example_inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scored = copy.deepcopy(module)
        if importance == "taylor" and batches is not None:
            accumulate_gradients(scored, batches)
        groups, unread = find_groups(traced(scored, example), importance, skip)
    shapes = shapes_of(outputs_of(scored, example))
    allowed, notes = tried(module, example, groups, shapes, unread)
    return Prunable(module, example, allowed, notes, shapes)


def without(found: Prunable, plan: Mapping[str, Sequence[int]]) -> Any:
    """A smaller copy of the module.

    Args:
        found: the module.
        plan: units to remove, by the groups' roots.

    Raises:
        NotApplicable: Torch-Pruning cannot remove them together.
    """
    work = traced(copy.deepcopy(found.module), found.example)
    for group in found.groups:
        remove(work, group, plan[group.root])
    check_shapes(outputs_of(work.module, found.example), found.shapes)
    return _finished(work.module, found.module)


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


def _plan(
    groups: Sequence[Group], ratio: float, heads: float, scope: Scope, multiple: int
) -> dict[str, list[int]]:
    """The units to remove from each group, the least important first."""
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
        kept = rounded(group.units, shares[group.root], step_of(group, multiple))
        plan[group.root] = least_important(group, group.units - kept)
    return plan


def least_important(group: Group, count: int) -> list[int]:
    """The ``count`` units of a group that matter least, in ascending order."""
    import torch

    return sorted(torch.argsort(group.scores, stable=True)[:count].tolist())


def _global_shares(groups: Sequence[Group], ratio: float) -> dict[str, float]:
    """What share of each group lies among the lowest scores of all, every channel counted."""
    import torch

    scores = torch.cat([group.scores.repeat(group.sets) for group in groups])
    count = round(ratio * len(scores))
    if not count:
        return {group.root: 0.0 for group in groups}
    threshold = scores.sort().values[count - 1]
    below = {g.root: float((g.scores <= threshold).float().mean()) for g in groups}
    return {root: min(share, 1 - _KEPT_LEAST) for root, share in below.items()}


def step_of(group: Group, multiple: int) -> int:
    """How many units of a group go at once; heads go one by one."""
    return 1 if group.attention is not None else max(1, multiple // group.sets)


def rounded(width: int, ratio: float, multiple: int) -> int:
    """How many of ``width`` units to keep: the nearest multiple, at least one, never more.

    ``ratio`` is the share to remove. A width that is no more than the multiple stays.
    """
    if ratio <= 0 or width <= multiple:
        return width
    kept = multiple * int(width * (1 - ratio) / multiple + 0.5)
    return min(width, max(multiple, kept))


def _nothing(groups: Sequence[Group], multiple: int, notes: Sequence[str]) -> str:
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
    before: Any, after: Any, groups: Sequence[Group], plan: Mapping[str, list[int]]
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
        yield f"kept {listed(same)}: rounding leaves the width as it is"
