"""The space of chains, and the walk through it: nothing invalid, nothing twice, all of it seeded."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.budgets.budget import Budget
from optimize.building.plan import built_in
from optimize.errors import InputError
from optimize.models.model import Model
from optimize.passes.chain import Chain
from optimize.request import Request
from optimize.run.pipeline import run
from optimize.search.space import Space
from optimize.search.study import Outcome, Search

RUNTIMES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def model(digits_onnx: Path) -> Model:
    return Model.read(digits_onnx)


@pytest.fixture(scope="module")
def plan(model: Model) -> list[Chain]:
    return [Chain(), *built_in(model, True, RUNTIMES, everything=True)]


@pytest.fixture(scope="module")
def space(model: Model, plan: list[Chain]) -> Space:
    return Space.of(plan, model, True, RUNTIMES, (0, 2, 4))


def at_random(seed: int) -> Callable[[str, Any], Any]:
    rng = random.Random(seed)
    return lambda name, values: rng.choice(values)


@given(seed=st.integers(0, 10**6))
def test_whatever_is_chosen_is_a_chain_that_shows_its_choices(space: Space, seed: int) -> None:
    chain = space.propose(at_random(seed))
    assert Chain.parse(str(chain)) == chain
    known = space.parameters(chain)
    assert known is not None
    assert space.propose(lambda name, values: known[name]) == chain


def test_the_plan_lies_within_but_for_what_works_on_modules(
    space: Space, plan: list[Chain]
) -> None:
    outside = {str(chain) for chain in plan if space.parameters(chain) is None}
    assert outside == {
        "int8{mode=static,engine=neural-compressor}",
        "fold,int8{mode=static,engine=nncf},bf16@openvino",
        "fold,int8{mode=static,engine=nncf},bf16,shapes@openvino",
    }


@given(seed=st.integers(0, 10**6))
def test_without_data_nothing_that_needs_data_is_proposed(model: Model, seed: int) -> None:
    plan = [Chain(), *built_in(model, False)]
    chain = Space.of(plan, model, False, RUNTIMES[:1]).propose(at_random(seed))
    assert not chain.needs_calibration
    assert chain.runtime == "onnxruntime"
    assert "session" not in str(chain)


def outcome(chain: Chain) -> Outcome:
    """Integers are fast, pruning is faster and loses accuracy, symmetric ranges cost nothing."""
    text = str(chain)
    ratio = next((step.ratio for step in chain.passes if step.name == "prune"), 0.0)  # type: ignore[attr-defined]
    cost = (0.5 if "int8" in text else 1.0) * (1 - ratio)
    return Outcome(cost, -ratio / 10, {"floor": ratio - 0.35})


def walk(space: Space, plan: list[Chain], seed: int, count: int) -> list[Chain]:
    known = {str(chain): outcome(chain) for chain in plan}
    search, found = Search(space, seed, True, known), []
    for _ in range(count):
        chain = search.ask()
        assert chain is not None
        found.append(chain)
        search.tell(outcome(chain))
    return found


def test_nothing_is_proposed_twice_and_a_seed_gives_one_walk(
    space: Space, plan: list[Chain]
) -> None:
    first = walk(space, plan, 3, 25)
    texts = [str(chain) for chain in first]
    assert len({*texts, *map(str, plan)}) == 25 + len(plan)
    assert walk(space, plan, 3, 25) == first
    assert walk(space, plan, 4, 25) != first


def test_it_comes_nearer_to_the_front_than_chance_does(space: Space, plan: list[Chain]) -> None:
    def good(chains: list[Chain]) -> int:
        told = map(outcome, chains)
        return sum(o.cost < 0.5 and o.misses["floor"] <= 0 for o in told)

    found = sum(good(walk(space, plan, seed, 30)) for seed in range(3))
    chance = sum(
        good([space.propose(at_random(100 * seed + i)) for i in range(30)]) for seed in range(3)
    )
    assert found > 1.3 * chance


def test_a_used_up_space_ends_the_walk(model: Model) -> None:
    space = Space.of([Chain()], model, False, RUNTIMES[:1])
    small = Space(space.fronts, {**space.options, "int8": {"mode": ("dynamic",)}})
    search, asked = Search(small, 0, True, {"source": Outcome(1.0, 0.0)}), []
    while (chain := search.ask()) is not None:
        asked.append(str(chain))
        search.tell(Outcome(1.0, 0.0))
    assert sorted(asked) == ["fp16", "int8{mode=dynamic}"]


def test_chains_that_give_nothing_end_the_walk_too(space: Space) -> None:
    search, asked = Search(space, 0, True, {}), 0
    while search.ask() is not None and asked < 1000:
        asked += 1
        search.tell(None)
    assert 10 < asked < 1000


def test_without_an_optimizer_one_sentence_says_so(
    digits_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "optuna" else found(name, *a)
    )
    request = Request(digits_onnx, (Budget.parse("p99=1s"),), trials=2, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"install tailfit\[search\]"):
        run(request)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": -1}, "--trials -1 is negative"),
        ({"trials": 1, "runtimes": ("inductor",)}, "onnxruntime and openvino"),
        ({"tune_session": True, "runtimes": ("openvino",)}, "--tune-session tunes onnxruntime"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Request(Path("model.onnx"), (Budget.parse("p99=1s"),), **changes)
