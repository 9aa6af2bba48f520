"""``prune{to=p99}``: the widths that just meet the declared budget, timed on the target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optimize.errors import NotApplicable, WorkerError
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.models.runtimes import find_runtime
from optimize.passes.base import Context, PassResult
from optimize.passes.pruning.search import Cuttable, Found, search

if TYPE_CHECKING:
    from optimize.passes.prune import Prune
    from optimize.passes.pruning.cuttable import GraphCut
    from optimize.passes.training.cuttable import ModuleCut

C = TypeVar("C", bound=Cuttable)
_GOES_MOST = 0.9  # of a group's channels


def prune_to(step: Prune, model: Model, context: Context) -> PassResult:
    """Prune as much as the budget on ``step.to`` asks for.

    Raises:
        NotApplicable: there is no such budget, or no widths meet it.
    """
    if context.bench is None or step.to not in context.bench.limits:
        raise NotApplicable(f"no budget on {step.to} is declared; add for example --budget "
                            f"{step.to}=20ms, or give prune a ratio")  # fmt: skip
    title = find_runtime(context.runtime)
    if "onnx" not in title.formats:
        raise NotApplicable(f"{title.title} compiles every candidate for minutes; give a ratio")
    return (_module if step.on == "module" else _graph)(step, model, context)


def _graph(step: Prune, model: Model, context: Context) -> PassResult:
    from optimize.passes.files import load_proto
    from optimize.passes.pruning.graph import plain

    start = _graph_start(step, plain(load_proto(model)), model, context)
    found = _searched(step, start, model, context)
    widths = found.model.now
    if widths is None:
        return PassResult(model, False, _notes(step, found, context, ()))
    keep = start.keep(widths)
    made = step.shrunk(start.proto, start.found, start.shapes, keep, context)
    notes = _notes(step, found, context, start.described(widths))
    return PassResult(made.model, True, (*notes, *made.notes), cut_short=context.late)


def _graph_start(step: Prune, proto: Any, model: Model, context: Context) -> GraphCut:
    from optimize.passes.prune import CALIBRATION_MOST, nothing
    from optimize.passes.pruning.cuttable import GraphCut
    from optimize.passes.pruning.graph import measured_shapes
    from optimize.passes.pruning.groups import dependencies
    from optimize.passes.pruning.select import multiple_for

    samples = _calibration(context).first(CALIBRATION_MOST)
    shapes = measured_shapes(proto, samples)
    found = dependencies(proto, shapes)
    if not found.groups:
        raise NotApplicable(nothing(proto, found))
    return GraphCut(
        proto,
        found,
        shapes,
        step.orders(proto, found, samples, _GOES_MOST, context.seed),
        [multiple_for(proto, group, step.multiple, context.isa) for group in found.groups],
        samples,
        context.folder,
        model.config,
    )


def _module(step: Prune, model: Model, context: Context) -> PassResult:
    from optimize.models.program import load_program, save_program

    start = _module_start(step, load_program(model.path), model, context)
    before = start.described()
    found = _searched(step, start, _exported(model, _empty(context, "reference")), context)
    if found.model is start:
        return PassResult(model, False, _notes(step, found, context, ()))
    made = save_program(found.model.program, context.folder, model.signature)
    after = found.model.described()
    widths = [
        f"{name} {width} -> {after.get(name, 1)}"
        for name, width in before.items()
        if after.get(name, 1) != width
    ]
    notes = (*_notes(step, found, context, widths), *start.found.notes)
    return PassResult(made, True, notes, cut_short=context.late)


def _module_start(step: Prune, program: Any, model: Model, context: Context) -> ModuleCut:
    from optimize.models.program import load_program
    from optimize.passes.pruning.select import convolution_block
    from optimize.passes.training.batches import Batches
    from optimize.passes.training.cuttable import ModuleCut, numbers
    from optimize.passes.training.prune import Prunable, prunable

    batches = Batches(context.lessons or _calibration(context), seed=context.seed)
    batch = next(batches.validation())
    teacher = load_program(context.teacher.path).module if context.teacher else program.module

    def prepare(module: Any) -> Prunable:
        taylor = step.importance == "taylor"
        return prunable(
            module,
            program.example.args,
            "taylor" if taylor else "magnitude",
            context.seed,
            batches if taylor else None,
        )

    found = prepare(program.module)
    if not found.groups:
        raise NotApplicable("; ".join(["nothing can be removed", *found.notes]))
    return ModuleCut(
        program=program,
        found=found,
        multiple=step.multiple or convolution_block(context.isa),
        batch=batch,
        wanted=numbers(teacher, batch),
        lower=_exported,
        prepare=prepare,
        train=_trainer(step, teacher, batches, context),
        folder=context.folder,
        signature=model.signature,
    )


def _trainer(step: Prune, teacher: Any, batches: Any, context: Context) -> Callable[[Any], Any]:
    from optimize.passes.training.distill import distill
    from optimize.passes.training.options import DistillOptions

    if not step.recovery:
        return lambda module: module
    options = DistillOptions(steps=step.recovery, evaluations=4, patience=0, seed=context.seed)

    def train(module: Any) -> Any:
        return distill(
            module,
            teacher,
            batches,
            options,
            lambda now: context.progress(str(now)),
            deadline=context.deadline,
        )[0]

    return train


def _searched(step: Prune, start: C, reference: Model, context: Context) -> Found[C]:
    from optimize.budgets.budget import PERCENTILES

    bench = context.bench
    assert bench is not None  # prune_to has checked
    folder = _empty(context, "race")
    try:
        with bench.race(reference, context.runtime, folder, context.deadline) as race:
            return search(
                start, race, PERCENTILES[step.to], bench.limits[step.to], step.rounds,
                lambda: context.late,
            )  # fmt: skip
    except WorkerError as error:
        raise NotApplicable(f"a candidate does not run on the target: {error}") from error


def _notes(
    step: Prune, found: Found[Any], context: Context, widths: list[str] | tuple[()]
) -> tuple[str, ...]:
    from optimize.budgets.budget import Budget

    assert context.bench is not None  # prune_to has checked
    limit = context.bench.limits[step.to]
    budget = Budget(step.to, limit)  # type: ignore[arg-type]  # a percentile, by its type
    asked = f"{budget} is {found.goal:.2f} of the {step.to} before"
    if not widths:
        return (f"{asked}: nothing has to go",)
    return (
        f"{asked}; reached {found.share:.2f} ({found.share / found.goal:.0%} of the budget), by "
        f"{found.timed} candidates timed on the target",
        f"widths: {', '.join(widths)}",
        "timed as it is, in float: what follows in the chain makes it faster still, so that more "
        "was removed than the whole chain needs",
    )


def _exported(model: Model, folder: Path) -> Model:
    from optimize.models.export import export_program
    from optimize.passes.files import silent

    with silent():
        return export_program(model, folder).model


def _empty(context: Context, name: str) -> Path:
    folder = context.folder / name
    folder.mkdir()
    return folder


def _calibration(context: Context) -> Dataset:
    if context.calibration is None:
        raise NotApplicable("pruning to a budget needs calibration data")
    return context.calibration
