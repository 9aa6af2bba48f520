"""Run every case, hold it against its baseline, and gather what became of all of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from optimize.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_KEPT,
    InputError,
    OptimizeError,
    first_cause,
)
from optimize.gate.against import FILE, find, hold_against
from optimize.gate.cases import Case, Overrides, cases, gate, request
from optimize.gate.config import Declared
from optimize.gate.outcome import (
    Finding,
    Outcome,
    elsewhere,
    of_result,
    refused,
    with_finding,
    with_regression,
    worst,
)
from optimize.observer import Observer
from optimize.request import Request
from optimize.results import output
from optimize.results.report import Result
from optimize.run.pipeline import run
from optimize.targets.base import Target
from optimize.targets.local import LocalTarget


@dataclass(frozen=True)
class Asked:
    """What is to be checked.

    Attributes:
        names: of models; empty for all.
        targets: whose budgets count; empty for all that are declared.
        overrides: what the command line says instead of the file.
        against: the baseline's folder; None for no comparison.
        allow_new: whether a model without a baseline passes.
    """

    names: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    overrides: Overrides = field(default_factory=Overrides)
    against: Path | None = None
    allow_new: bool = False


@dataclass(frozen=True)
class Checked:
    """What became of all cases; ``left_out`` are models that no asked target concerns."""

    outcomes: tuple[Outcome, ...]
    left_out: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """The worst of all."""
        return worst([outcome.exit_code for outcome in self.outcomes])


def check(
    declared: Declared,
    asked: Asked,
    observer: Observer,
    done: Callable[[Outcome], None] = lambda _: None,
    target: Target | None = None,
) -> Checked:
    """Carry out all cases; what is wrong with one does not keep the others from being run.

    Args:
        declared: the file.
        asked: what of it.
        observer: is told how each run goes on.
        done: is called with every outcome as soon as there is one.
        target: where models run; None for this machine.

    Raises:
        InputError: what is asked for makes no sense for the file as a whole.
    """
    target = target or LocalTarget()
    planned = cases(declared, asked.names, asked.targets, asked.overrides, target.device())
    if asked.against is not None and not asked.against.is_dir():
        raise InputError(f"--against {asked.against} is no folder; name one with results in it")
    _refuse_shared_folders(declared, planned, asked)
    outcomes: list[Outcome] = []
    alone = len({case.name for case in planned}) == 1
    for case in planned:
        named = _Named(observer, case.label)
        outcome = _Checking(declared, asked, named, target, alone).of(case)
        outcomes.append(outcome)
        done(outcome)
        if outcome.exit_code == EXIT_INTERRUPTED:
            break
    judged = {case.name for case in planned}
    names = asked.names or tuple(declared.config.models)
    return Checked(tuple(outcomes), tuple(name for name in names if name not in judged))


@dataclass
class _Named:
    """Puts the name of the case before every stage."""

    inner: Observer
    label: str

    def stage(self, name: str, total: int) -> None:
        self.inner.stage(f"{self.label}: {name}", total)

    def step(self, done: float, text: str) -> None:
        self.inner.step(done, text)

    def note(self, text: str) -> None:
        self.inner.note(f"{self.label}: {text}")


@dataclass(frozen=True)
class _Checking:
    """How one case is carried out; ``alone`` if there is no other model."""

    declared: Declared
    asked: Asked
    observer: Observer
    target: Target
    alone: bool

    def of(self, case: Case) -> Outcome:
        """What becomes of a case; no error of its own leaves it."""
        if case.elsewhere is not None:
            return elsewhere(case)
        begun = time.monotonic()
        try:
            outcome = self._judged(case)
        except OptimizeError as error:
            outcome = refused(case, str(error))
        except KeyboardInterrupt:
            outcome = refused(case, "interrupted", EXIT_INTERRUPTED)
        except Exception as error:  # noqa: BLE001  one case must not hide the others' results
            self.observer.note("".join(traceback.format_exception(error)))
            outcome = refused(case, f"internal error: {first_cause(error)}", EXIT_INTERNAL)
        return replace(outcome, seconds=time.monotonic() - begun)

    def _judged(self, case: Case) -> Outcome:
        wanted = request(self.declared, case, self.asked.overrides)
        baseline = self._baseline(case, wanted)
        result = run(wanted, self.observer, self.target)
        outcome = of_result(case, result)
        if self.asked.against is None or outcome.exit_code != EXIT_KEPT:
            return outcome
        if baseline is None:
            return self._new(outcome, self.asked.against)
        return self._held(outcome, wanted, baseline, result)

    def _baseline(self, case: Case, wanted: Request) -> Path | None:
        """The baseline's folder; None if there is none.

        Raises:
            InputError: it is that of another model, or the run would overwrite it.
        """
        if self.asked.against is None:
            return None
        found = find(self.asked.against, case.label, case.name, self.alone)
        if found and wanted.folder and found.resolve() == wanted.folder.resolve():
            raise InputError(
                f"the baseline {found} is the folder that this run writes; "
                "copy it elsewhere, or write to another folder with --out"
            )
        return found

    def _new(self, outcome: Outcome, against: Path) -> Outcome:
        """A model without a baseline, which passes only if that is said."""
        if self.asked.allow_new:
            return with_finding(outcome, Finding("baseline", "passed", "new: there is none"))
        reason = (
            f"--against {against} holds no result called {outcome.case.label}; "
            "--allow-new lets models without a baseline pass"
        )
        return with_finding(outcome, Finding("baseline", "error", reason))

    def _held(self, outcome: Outcome, wanted: Request, baseline: Path, result: Result) -> Outcome:
        """Compare with the baseline; that it cannot be used is one more finding."""
        self.observer.stage("compare with the baseline", 1)
        limits = gate(self.declared, outcome.case, self.asked.overrides)
        try:
            found = hold_against(baseline, wanted, result, limits, self.target, self.observer.step)
        except OptimizeError as error:
            return with_finding(outcome, Finding("baseline", "error", str(error)))
        if result.folder is not None:
            output.add(result.folder, {FILE: found.to_json()})
        return with_regression(outcome, found)


def _refuse_shared_folders(declared: Declared, planned: Sequence[Case], asked: Asked) -> None:
    seen: dict[Path, str] = {}
    for case in planned:
        try:
            folder = request(declared, case, asked.overrides).folder
        except InputError:
            continue  # told with the case's own outcome
        if folder is None or case.elsewhere is not None:
            continue
        other = seen.setdefault(folder.resolve(), case.label)
        if other != case.label:
            raise InputError(
                f"{other} and {case.label} would both write {folder}; give one of them "
                f"another out in {declared.file}"
            )
