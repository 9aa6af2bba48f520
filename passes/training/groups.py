"""Groups of channels that can only be removed together, found by Torch-Pruning, verified by trial.

A group is all that must lose the same channels: the layer that makes them, norms and residual
sums on the way, the layers that read them. One unit of each is removed from a copy, which must
still run, give outputs of the same shapes, and compute what the model computes if nothing reads
that unit.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optimize.errors import InputError, NotApplicable, first_cause, nearest
from optimize.passes.training.attention import Attention, find_attention
from optimize.passes.training.outputs import named_outputs

Shapes = dict[str, tuple[int, ...]]
_UNREAD = "Torch-Pruning cannot follow its channels"


@dataclass(frozen=True)
class Group:
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
class Work:
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


def traced(module: Any, example: tuple[Any, ...]) -> Work:
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
    return Work(module, graph, attentions)


def _forward(module: Any, inputs: tuple[Any, ...]) -> Any:
    return module(*inputs)


def _tensors(result: Any) -> list[Any]:
    return [value for value in named_outputs(result).values() if value.grad_fn is not None]


def find_groups(work: Work, importance: str, skip: Sequence[str]) -> tuple[list[Group], list[str]]:
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
            found.append(Group(root, len(scores), sets, folded))
    return found, unread


def _named(modules: Mapping[str, Any], name: str) -> Any:
    if name not in modules:
        raise InputError(f"prune: no module {name!r}; {nearest(name, modules)}")
    return modules[name]


def _head_group(work: Work, attention: Attention, scorer: Any) -> Group:
    import torch_pruning as tp

    value = attention.projections[2]
    full = list(range(value.out_features))
    scores = scorer(work.graph.get_pruning_group(value, tp.prune_linear_out_channels, full))
    heads = attention.importance(_relative(scores))
    return Group(attention.name, attention.heads, 1, heads, attention)


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


def tried(
    module: Any,
    example: tuple[Any, ...],
    groups: list[Group],
    want: Shapes,
    unread: list[str],
) -> tuple[list[Group], list[str]]:
    """Try each group by one unit on a copy, and tell which may be pruned and why others not."""
    allowed: list[Group] = []
    reasons = {_UNREAD: unread} if unread else {}
    work = traced(copy.deepcopy(module), example)
    for group in groups:
        try:
            _try(work, group, example, want)
            allowed.append(group)
        except NotApplicable as error:
            reasons.setdefault(str(error), []).append(group.root)
            work = traced(copy.deepcopy(module), example)
    reasons.update(_untouchable(work))
    return allowed, [f"kept {listed(names)}: {reason}" for reason, names in reasons.items()]


def _try(work: Work, group: Group, example: tuple[Any, ...], want: Shapes) -> None:
    """Remove one unit, and compare with the same unit unread by the layers that follow.

    Raises:
        NotApplicable: the group cannot be pruned.
    """
    if group.units < 2:
        raise NotApplicable("it has a single unit")
    unread = None if group.attention else work.unread(group.root, group.channels([0]))
    remove(work, group, [0])
    try:
        got = outputs_of(work.module, example)
    except Exception as error:
        raise NotApplicable(f"the model's code depends on it: {first_cause(error, 90)}") from error
    check_shapes(got, want)
    if unread is not None and not _close(got, outputs_of(unread, example)):
        raise NotApplicable("its channels are mixed in ways that Torch-Pruning does not see")


def _untouchable(work: Work) -> dict[str, list[str]]:
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


def remove(work: Work, group: Group, units: Sequence[int]) -> None:
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
    groups, weight = getattr(layer, "groups", 1), layer.weight.data
    if groups > 1 and groups == layer.in_channels:
        return
    if getattr(layer, "transposed", False):  # its first axis is that of all inputs
        weight[list(channels)] = 0
        return
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    for channel in channels:
        part = 0 if groups == 1 else channel // columns
        weight[part * rows : (part + 1) * rows, channel % columns if groups > 1 else channel] = 0


def outputs_of(module: Any, example: tuple[Any, ...]) -> dict[str, Any]:
    """Outputs by name, in evaluation mode."""
    import torch

    with torch.no_grad():
        return named_outputs(module.eval()(*example))


def shapes_of(outputs: Mapping[str, Any]) -> Shapes:
    """Their shapes."""
    return {name: tuple(value.shape) for name, value in outputs.items()}


def check_shapes(outputs: Mapping[str, Any], want: Shapes) -> None:
    """Raise NotApplicable where names or shapes differ."""
    if shapes_of(outputs) != want:
        raise NotApplicable("it makes an output")


def _close(got: Mapping[str, Any], want: Mapping[str, Any]) -> bool:
    """Equal up to the order of float32 sums."""
    return all(
        float((got[name] - value).abs().max()) <= 1e-3 * float(value.abs().max()) + 1e-6
        for name, value in want.items()
        if value.is_floating_point() and value.numel()
    )


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
