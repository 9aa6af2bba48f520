"""What chains may be proposed beyond the plan: a space made of the passes' own options.

The space is defined while it is walked: each choice decides which further ones there are. An
option is a choice exactly where the pass accepts all of its values beside those chosen so far, so
that what a pass refuses is never proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from optimize.errors import InputError
from optimize.models.attention import has_attention
from optimize.models.model import Model
from optimize.models.runtimes import DEFAULT_RUNTIME
from optimize.passes.base import Pass
from optimize.passes.chain import SOURCE, Chain
from optimize.passes.registry import load_pass

Choose = Callable[[str, Sequence[Any]], Any]
NONE = "none"
# What makes a model smaller at the end of a chain, by the runtime that has kernels for it.
_COMPRESSIONS = {DEFAULT_RUNTIME: (NONE, "int8", "fp16"), "openvino": (NONE, "int8", "bf16")}
RUNTIMES = tuple(_COMPRESSIONS)
# Options that are searched, in the order in which they are chosen.
_SEARCHED = {
    "prune": ("ratio", "scope"),
    "smooth": ("alpha",),
    "int8": (
        "mode", "engine", "calibration", "per", "ops", "symmetric", "keep", "bits", "algorithm",
    ),
    "fp16": (),
    "bf16": (),
    "session": ("threads", "level", "spinning"),
}  # fmt: skip
# Values of options whose type does not list them.
_VALUES: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("prune", "ratio"): (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    ("smooth", "alpha"): ("auto", "0.3", "0.5", "0.7"),
    ("int8", "keep"): (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
}
_MATMUL = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Space:
    """All chains that may be proposed.

    Attributes:
        fronts: by runtime, what chains begin with before anything is lost, as texts.
        options: by pass, the values of each option that is searched.
        prunable, smoothable: whether the model has layers for it, and there are data.
        threads: numbers to serve with, 0 for what is given; empty if the session stays as it is.
    """

    fronts: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Mapping[str, tuple[Any, ...]]]
    prunable: bool = False
    smoothable: bool = False
    threads: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        chains: Iterable[Chain],
        model: Model,
        calibrated: bool,
        runtimes: Sequence[str],
        threads: tuple[int, ...] = (),
    ) -> Space:
        """The space around a plan.

        Args:
            chains: what was built of the plan.
            model: the source as exported.
            calibrated: whether there is real data to calibrate on.
            runtimes: those that may serve.
            threads: see the class.
        """
        plan = list(chains)
        fronts = {
            runtime: tuple(
                dict.fromkeys([SOURCE, *(_front(c) for c in plan if c.runtime == runtime)])
            )
            for runtime in runtimes
            if runtime in _COMPRESSIONS
        }
        options = {name: _values(load_pass(name), names) for name, names in _SEARCHED.items()}
        options["int8"] = _suitable(options["int8"], plan, model, calibrated)
        options["session"] = {**options["session"], "threads": threads or (0,)}
        return cls(
            fronts,
            options,
            prunable=calibrated and (model.count("Conv") > 0 or has_attention(model)),
            smoothable=calibrated and model.count(*_MATMUL) > 0,
            threads=threads,
        )

    def propose(self, choose: Choose) -> Chain:
        """Make a chain; ``choose(name, values)`` picks one of several values."""

        def pick(name: str, values: Sequence[Any]) -> Any:
            return choose(name, values) if len(values) > 1 else values[0]

        runtime = pick("runtime", tuple(self.fronts))
        front = Chain.parse(pick(f"front@{runtime}", self.fronts[runtime])).passes
        pruned: tuple[Pass, ...] = ()
        if self.prunable and pick("prune", (False, True)):
            pruned = (self._pass("prune", pick),)
        # Fused operators hide channels that could go: they are removed before.
        first = 1 if front and front[0].name == "fold" else 0
        passes = [*front[:first], *pruned, *front[first:]]
        compression = pick(f"compression@{runtime}", _COMPRESSIONS[runtime])
        if compression == "int8" and self.smoothable and pick("smooth", (False, True)):
            passes.append(self._pass("smooth", pick))
        if compression != NONE:
            passes.append(self._pass(compression, pick))
        if self.threads and runtime == DEFAULT_RUNTIME:
            # Integers need the highest level, see optimize.search.tune.
            fixed = {"level": "ALL"} if compression == "int8" else {}
            session = self._pass("session", pick, fixed)
            passes += [session] if session != type(session)() else []
        return Chain(tuple(passes), runtime)

    def parameters(self, chain: Chain) -> dict[str, Any] | None:
        """The choices that make a chain; None if it lies outside."""
        known, taken = _choices(chain), dict[str, Any]()

        def choose(name: str, values: Sequence[Any]) -> Any:
            taken[name] = known.get(name)
            if taken[name] not in values:
                raise _Outside
            return taken[name]

        try:
            return taken if self.propose(choose) == chain else None
        except _Outside:
            return None

    def _pass(self, name: str, choose: Choose, fixed: Mapping[str, Any] | None = None) -> Pass:
        cls, given = load_pass(name), dict(fixed or {})
        for option, values in self.options[name].items():
            if option not in given and all(_accepts(cls, {**given, option: v}) for v in values):
                given[option] = choose(f"{name}.{option}", values)
        return cls(**given)


class _Outside(Exception):
    """A chain is none of the space."""


def _front(chain: Chain) -> str:
    """What a chain begins with, before its searched passes."""
    kept: list[Pass] = []
    for step in chain.passes:
        if step.name in _SEARCHED and not _fixed_session(step):
            continue
        kept.append(step)
    return str(Chain(tuple(kept)))


def _fixed_session(step: Pass) -> bool:
    """Whether it leaves optimizers out, which belongs to the graph and is not searched."""
    return step.name == "session" and getattr(step, "without", NONE) != NONE


def _choices(chain: Chain) -> dict[str, Any]:
    """All choices that a chain shows, as if it were made by :meth:`Space.propose`."""
    searched = [s for s in chain.passes if s.name in _SEARCHED and not _fixed_session(s)]
    names = {step.name for step in searched}
    compression = next((n for n in names if n in ("int8", "fp16", "bf16")), NONE)
    choices: dict[str, Any] = {
        "runtime": chain.runtime,
        f"front@{chain.runtime}": _front(chain),
        f"compression@{chain.runtime}": compression,
        "prune": "prune" in names,
        "smooth": "smooth" in names,
    }
    for step in [load_pass("session")(), *searched]:
        choices |= {f"{step.name}.{f.name}": getattr(step, f.name) for f in fields(step)}
    return choices


def _values(cls: type[Pass], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The values of options: as their types list them, or as stated above."""
    hints = get_type_hints(cls)
    found = {}
    for name in names:
        hint = hints[name]
        listed = get_args(hint) if get_origin(hint) is Literal else ()
        listed = (False, True) if hint is bool else listed
        found[name] = _VALUES.get((cls.name, name), listed)
    return found


def _suitable(
    int8: Mapping[str, tuple[Any, ...]], plan: Iterable[Chain], model: Model, calibrated: bool
) -> dict[str, tuple[Any, ...]]:
    """Leave out what the model has no layers or no data for, and engines that were not seen."""
    engines = {getattr(step, "engine", "") for chain in plan for step in chain.passes}
    lacking = set() if calibrated else {"static"}
    lacking |= set() if model.count(*_MATMUL) else {"weights", "matmul"}
    lacking |= set() if model.count("Conv") else {"conv"}
    # neural-compressor works on modules, which no other pass of these chains does.
    lacking |= {"neural-compressor"} | (set() if "nncf" in engines else {"nncf"})
    return {name: tuple(v for v in values if v not in lacking) for name, values in int8.items()}


def _accepts(cls: type[Pass], given: Mapping[str, Any]) -> bool:
    try:
        cls(**given)
    except InputError:
        return False
    return True
