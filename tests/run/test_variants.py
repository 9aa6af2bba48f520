"""In which order the chains of a plan are built."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from optimize.passes.chain import Chain
from optimize.processes.child import Children
from optimize.run.variants import _slow_first


def test_what_calibrates_is_begun_first_if_others_are_built_beside_it() -> None:
    chains = [Chain(), *map(Chain.parse, ("fold", "int8{mode=static}", "fold,int8{mode=static}"))]
    state: Any = SimpleNamespace(children=Children(2))
    assert _slow_first(state, chains) == [chains[2], chains[0], chains[1], chains[3]]
    state.children = Children(1)
    assert _slow_first(state, chains) == chains
