"""Rows of variants: what they say of where their timings come from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optimize.budgets.profile import Block, Profile
from optimize.budgets.verdict import Verdict
from optimize.building.build import Variant
from optimize.judging.candidate import Candidate, row
from optimize.passes.chain import Chain
from optimize.profiling.measure import Contender
from optimize.targets.base import Job

JOB = Job(Path("m.onnx"), Path("inputs"), Path("scratch"))
MODEL: Any = SimpleNamespace(config={}, size_bytes=1, digest="d", signature=None)
TIMED = Profile(tuple(Block(np.full(16, 1_000_000)) for _ in range(5)))


@pytest.mark.parametrize(
    ("recalled", "screened", "told"),
    [
        (5, TIMED, True),
        (3, TIMED, False),  # some were timed now
        (0, TIMED, False),
        (0, Profile(()), False),  # interrupted before it was judged
        (5, Profile(()), True),
    ],
)
def test_timings_are_an_earlier_runs_only_if_none_was_added(
    recalled: int, screened: Profile, told: bool
) -> None:
    contender = Contender("source", JOB, profile=TIMED)
    candidate = Candidate(Variant(Chain(), MODEL), MODEL, contender)
    candidate.recalled, candidate.screened = recalled, screened
    assert row(candidate, Verdict("undecided", "so far"), 0.99, 10, [candidate]).recalled is told


def test_what_is_explained_is_what_is_computed() -> None:
    parts = {"pre": np.full(4, 9_000_000), "compute": np.array([1, 2, 3, 4]) * 1_000_000}
    candidate = Candidate(Variant(Chain(), MODEL), MODEL, Contender("source", JOB))
    candidate.screened = Profile((Block(sum(parts.values()), parts_ns=parts),))
    assert candidate.subject.p50_ns == 2_500_000
