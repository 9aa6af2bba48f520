"""Which runs a file asks for on this device, and which verdicts it asks for that none can give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.budgets.budget import Budget, Floor
from optimize.budgets.regression import Loss, parse_loss, parse_tolerance
from optimize.errors import InputError, nearest
from optimize.gate.config import Declared
from optimize.gate.devices import mismatch
from optimize.gate.names import ANY, HERE
from optimize.models.usercode import is_reference
from optimize.request import (
    Request,
    parse_chains,
    parse_cpus,
    parse_duration,
    parse_input,
    parse_runtimes,
)

if TYPE_CHECKING:
    from optimize.gate.schema import ModelSection
    from optimize.targets.base import Device


@dataclass(frozen=True)
class Case:
    """One model with the budgets of one target.

    Attributes:
        name: of the model.
        target: whose budgets are judged; None for those of every device.
        line: where the model is declared.
        budgets: as they are declared.
        elsewhere: why they cannot be judged on this device; None if they can.
    """

    name: str
    target: str | None
    line: int
    budgets: tuple[str, ...]
    elsewhere: str | None = None

    @property
    def label(self) -> str:
        """What rows, test cases and folders are called."""
        return self.name if self.target is None else f"{self.name}@{self.target}"


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the file; None keeps what the file says.

    Attributes:
        options: options of the models by name.
        cache: the folder kept between runs; None for none.
        out: the folder that receives every result, under its label.
    """

    options: dict[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    out: Path | None = None


@dataclass(frozen=True)
class Gate:
    """How much worse than the baseline a model may be."""

    tolerance: float
    loss: Loss | None


def cases(
    declared: Declared,
    names: Sequence[str],
    targets: Sequence[str],
    overrides: Overrides,
    device: Device,
) -> list[Case]:
    """All verdicts that are asked for.

    Budgets of a target that this device is not are cases too, which nobody can judge here. Without
    ``targets`` all that the models name are asked for.

    Raises:
        InputError: there is no model or target of a name, or no budget is asked for.
    """
    models, known = declared.config.models, declared.config.targets
    for name in names:
        if name not in models:
            raise InputError(f"{declared.file} declares no model {name}; {nearest(name, models)}")
    for target in targets:
        if target not in known and target != HERE:
            choices = nearest(target, [*known, HERE])
            raise InputError(f"--target {target} is not declared in {declared.file}; {choices}")
    wrong = {name: mismatch(section, device) for name, section in known.items()}
    asked = {name for name in known if not targets or name in targets}
    if HERE in targets:
        asked |= {name for name in known if wrong[name] is None}
    found: list[Case] = []
    for name in dict.fromkeys(names) or models:
        budgets = _options(declared, name, overrides).budget or {}
        found += _of(name, declared.line("models", name), budgets, asked, wrong)
    if not found:
        wanted = ", ".join(targets)
        reasons = [f"; this is not {name}: {reason}" for name, reason in wrong.items() if reason]
        raise InputError(f"nothing to judge: no budget is for --target {wanted}{''.join(reasons)}")
    return found


def _of(
    name: str,
    line: int,
    budgets: dict[str, list[str]],
    asked: set[str],
    wrong: dict[str, str | None],
) -> list[Case]:
    everywhere = tuple(budgets.get(ANY, ()))
    bound = [target for target in budgets if target in asked]
    found = [Case(name, t, line, (*everywhere, *budgets[t])) for t in bound if wrong[t] is None]
    if everywhere and not found:
        found.append(Case(name, None, line, everywhere))
    return found + [
        Case(name, t, line, tuple(budgets[t]), wrong[t]) for t in bound if wrong[t] is not None
    ]


def request(declared: Declared, case: Case, overrides: Overrides) -> Request:
    """What a case asks the pipeline for; files are relative to the folder of the declaration.

    Raises:
        InputError: an option does not fit this machine, or another option.
    """
    said = _options(declared, case.name, overrides)
    folder = declared.file.parent

    def placed(text: str | None) -> str | None:
        return None if text is None else str(folder / text)

    metric = said.metric
    floor = Floor.parse(said.floor) if said.floor else None
    asked = Request(
        model=folder / said.source,
        budgets=tuple(map(Budget.parse, case.budgets)),
        floor=floor,
        data=placed(said.data),
        calibration=placed(said.calibration),
        metric=placed(metric) if metric and is_reference(metric) else metric,
        chains=parse_chains(said.chains or ()),
        runtimes=parse_runtimes(",".join(said.runtime)),
        objective=said.objective,
        threads=said.threads,
        cpus=parse_cpus(said.cpus) if said.cpus else None,
        batch=said.batch,
        confidence=said.confidence,
        time_limit_s=parse_duration(said.time_limit),
        inputs=tuple(map(parse_input, said.inputs)),
        arch=placed(said.arch),
        trust_pickle=said.trust_pickle,
        seed=said.seed,
        strict_floor=said.strict_floor,
        max_samples=said.max_samples,
        pre=placed(said.pre),
        post=placed(said.post),
        cache=overrides.cache,
    )
    return replace(asked, out=_out(asked, case, folder, said.out, overrides.out))


def gate(declared: Declared, case: Case, overrides: Overrides) -> Gate:
    """How much worse than its baseline the model of a case may be."""
    said = _options(declared, case.name, overrides)
    return Gate(parse_tolerance(said.tolerance), parse_loss(said.metric_tolerance))


def _out(
    asked: Request, case: Case, folder: Path, own: str | None, common: Path | None
) -> Path | None:
    if common is not None:
        return common / case.label
    chosen = folder / own if own else asked.folder
    if chosen is None or case.target is None:
        return chosen
    if chosen.name in ("", ".."):
        raise InputError(
            f"models.{case.name}: out = {json.dumps(own)} has no name that "
            f"@{case.target} could follow; name a folder of its own"
        )
    return chosen.with_name(f"{chosen.name}@{case.target}")


def _options(declared: Declared, name: str, overrides: Overrides) -> ModelSection:
    said = declared.options(name)
    return said.model_copy(update=overrides.options) if overrides.options else said
