"""Chains share what they begin with: each prefix is built once, and fails for all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Lock
from typing import TYPE_CHECKING, Any

import pytest

from optimize.building.build import Builder, Sources
from optimize.errors import NotApplicable, PassFailed
from optimize.models.data import Dataset
from optimize.models.model import Model
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain

if TYPE_CHECKING:
    from conftest import GraphMaker


class Counting:
    """Runs passes in this process, counts them, and lets one of them fail."""

    def __init__(self, broken: dict[str, Exception] | None = None) -> None:
        self.ran: Counter[str] = Counter()
        self.folders: list[Path] = []
        self._broken = broken or {}

    def __call__(self, step: Pass, model: Model, context: Context) -> PassResult:
        self.ran[str(step)] += 1
        self.folders.append(context.folder)
        if str(step) in self._broken:
            raise self._broken[str(step)]
        return step(model, context)


Build = Callable[..., Any]


@pytest.fixture
def source(graph: GraphMaker) -> Model:
    """Constants to fold, matrix products to quantize, nothing to fuse."""
    return graph.linear(constants=True)


@pytest.fixture
def build(source: Model, rows: Dataset, tmp_path: Path) -> Build:
    """Build chains one after the other with one builder."""

    def run(execute: Counting, *texts: str) -> list[Any]:
        (tmp_path / "built").mkdir()
        context = Context(
            tmp_path / "built", rows.take(range(4)), rows, isa=frozenset({"avx512_vnni"})
        )
        builder = Builder(Sources(source), context, execute)
        return [builder.build(Chain.parse(text)) for text in texts]

    return run


def test_the_empty_chain_is_the_source(build: Build, source: Model) -> None:
    execute = Counting()
    (variant,) = build(execute, "source")
    assert variant.model == source
    assert variant.problem is None
    assert not execute.ran


def test_every_prefix_is_built_once(build: Build) -> None:
    execute = Counting()
    variants = build(
        execute, "fold", "fold,int8", "fold,fp16", "fold,int8{mode=weights}", "fold,int8"
    )
    assert execute.ran == {"fold": 1, "int8{mode=dynamic}": 1, "fp16": 1, "int8{mode=weights}": 1}
    assert [variant.problem for variant in variants] == [None] * 5
    assert variants[1].model == variants[4].model
    assert len({variant.model.digest for variant in variants}) == 4


def test_each_result_has_a_folder_of_its_own(build: Build) -> None:
    execute = Counting()
    variants = build(execute, "fold,int8", "fold,fp16")
    assert len(set(execute.folders)) == 3
    assert all(variant.model.path.is_file() for variant in variants)


def test_shared_seconds_are_counted_once(build: Build) -> None:
    first, second, third = build(Counting(), "fold,fp16", "fold,int8", "fold,int8")
    assert first.seconds > 0
    assert second.seconds > 0
    assert third.seconds == 0


def test_notes_say_which_pass_they_come_from(build: Build) -> None:
    (variant,) = build(Counting(), "fold,int8")
    assert any(note.startswith("fold: ") for note in variant.notes)
    assert any(note.startswith("int8: MatMul quantized") for note in variant.notes)
    assert "fold: outputs equal" in variant.notes


def test_a_failing_pass_fails_all_that_share_it_and_no_other(build: Build) -> None:
    execute = Counting({"fold": PassFailed("fold raised KeyError: 'x'")})
    variants = build(execute, "fold", "fold,int8", "fold,fp16", "fp16")
    assert [variant.problem for variant in variants] == ["failed"] * 3 + [None]
    assert {variant.reason for variant in variants[:3]} == {"fold raised KeyError: 'x'"}
    assert execute.ran == {"fold": 1, "fp16": 1}
    assert variants[0].model is None
    assert variants[3].model is not None


def test_a_failure_at_the_end_leaves_the_prefix_usable(build: Build) -> None:
    execute = Counting({"fp16": PassFailed("fp16 raised MemoryError")})
    failed, kept = build(execute, "fold,fp16", "fold,int8")
    assert (failed.problem, failed.model) == ("failed", None)
    assert kept.problem is None
    assert execute.ran["fold"] == 1


def test_a_pass_that_does_not_apply_skips(build: Build) -> None:
    execute = Counting({"fp16": NotApplicable("there is no float32")})
    (skipped,) = build(execute, "fold,fp16")
    assert (skipped.problem, skipped.reason) == ("skipped", "there is no float32")
    assert any(note.startswith("fold: ") for note in skipped.notes)


def test_a_real_reason_reaches_the_row(build: Build) -> None:
    (twice,) = build(Counting(), "fold,int8,int8{mode=static}")
    assert twice.problem == "skipped"
    assert "already quantized" in twice.reason


def test_a_chain_that_changes_nothing_is_not_measured_twice(build: Build) -> None:
    fuse_after_fold, twice = build(Counting(), "fold,fuse", "fold,fold")
    assert fuse_after_fold.model is not None  # fold did change it
    assert twice.model is not None
    assert "fuse: no fusion matched" in fuse_after_fold.notes


def test_the_same_model_as_the_source_is_skipped(
    graph: GraphMaker, rows: Dataset, tmp_path: Path
) -> None:
    builder = Builder(Sources(graph.linear()), Context(tmp_path, rows.take(range(2))), Counting())
    variant = builder.build(Chain.parse("fold,fuse"))
    assert (variant.problem, variant.model) == ("skipped", None)
    assert variant.reason.startswith("the same model as source")
    assert "nothing to fold" in variant.reason


def test_the_source_file_is_not_touched(build: Build, source: Model) -> None:
    build(Counting(), "fold,fuse,fp16", "fold,int8", "fold,int8{mode=static}")
    assert Model.read(source.path) == source
    assert list(source.path.parent.iterdir()) == [source.path]


class Together(Counting):
    """Runs passes one at a time, but shows that two were wanted at once."""

    def __init__(self) -> None:
        super().__init__()
        self._barrier = Barrier(2, timeout=60)
        self._one = Lock()

    def __call__(self, step: Pass, model: Model, context: Context) -> PassResult:
        if step.name == "int8":
            self._barrier.wait()  # breaks unless two chains are built side by side
        with self._one:
            return super().__call__(step, model, context)


def test_chains_are_built_side_by_side_and_what_they_share_once(
    source: Model, rows: Dataset, tmp_path: Path
) -> None:
    execute = Together()
    context = Context(tmp_path, rows.take(range(4)), rows, isa=frozenset({"avx512_vnni"}))
    builder = Builder(Sources(source), context, execute)
    texts = ["fold,int8{mode=dynamic}", "fold,int8{mode=static}"]
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(builder.build, map(Chain.parse, texts)))
    assert [str(variant.chain) for variant in built] == texts
    assert all(variant.model is not None for variant in built)
    assert execute.ran == {"fold": 1, "int8{mode=dynamic}": 1, "int8{mode=static}": 1}


def test_a_broken_pass_breaks_every_chain_that_waits_for_it(
    source: Model, rows: Dataset, tmp_path: Path
) -> None:
    execute = Counting({"fold": RuntimeError("no such pass")})
    builder = Builder(Sources(source), Context(tmp_path, rows, rows), execute)
    for text in ("fold", "fold,fuse"):
        with pytest.raises(RuntimeError, match="no such pass"):
            builder.build(Chain.parse(text))
    assert execute.ran == {"fold": 1}
