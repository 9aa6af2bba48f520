"""From a uniform strategy to mixed precision: which to start from, and how far to go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from optimize.building.plan import built_in
from optimize.models.attention import has_attention
from optimize.models.runtimes import runtime_names
from optimize.passes.chain import Chain
from optimize.passes.int8 import Int8
from optimize.results.latency import LatencyReport
from optimize.results.report import AccuracyReport, VariantReport
from optimize.search.mixed import MOST_BASES, MOST_KEPT, Ladder, climb, ladders, reserve

if TYPE_CHECKING:
    from conftest import GraphMaker

    from optimize.models.model import Model

Tried = list[int]


def row(chain: str, status: str, p50_ms: float | None) -> VariantReport:
    latency = None
    if p50_ms is not None:
        latency = LatencyReport(
            *(p50_ms,) * 5, None, None, 500, 500, 1, 1.0, 1.0, 40, True
        )  # fmt: skip
    accuracy = AccuracyReport("top1", 0.9, 0.8, 1.0, 100, 0.95, -0.05, -0.1, 0.0)
    return VariantReport(chain, "onnxruntime", status, "", latency, accuracy)  # type: ignore[arg-type]


def bases(rows: Sequence[VariantReport], everything: bool = False) -> list[str]:
    return [str(ladder.base) for ladder in ladders(rows, everything, 10)]


STATIC, DYNAMIC = "fold,int8{mode=static}", "fold,int8{mode=dynamic}"


def test_it_starts_from_what_is_fast_and_misses_the_floor() -> None:
    rows = [
        row("source", "kept", 10),
        row(STATIC, "inaccurate", 3),
        row(DYNAMIC, "inaccurate", 2),
        row("fold,int8{mode=static,per=tensor}", "inaccurate", 5),
    ]
    assert bases(rows) == [DYNAMIC, STATIC]
    assert len(bases(rows)) == MOST_BASES


def test_nothing_slower_than_the_best_kept_is_started_from() -> None:
    rows = [
        row("fold,fuse", "kept", 4),
        row(STATIC, "inaccurate", 5),
        row(DYNAMIC, "inaccurate", 3),
    ]
    assert bases(rows) == [DYNAMIC]
    assert bases([row(DYNAMIC, "kept", 3), row(STATIC, "inaccurate", 5)]) == []


def test_a_few_layers_are_left_in_float_where_integers_gain_little() -> None:
    source = row("source", "kept", 5)
    [ladder] = ladders([source, row(STATIC, "kept", 4.4), row(DYNAMIC, "kept", 4)], False, 10)
    assert (str(ladder.base), ladder.few) == (DYNAMIC, True)
    tried, attempt = attempts(lambda keep: row(DYNAMIC, "kept", 1))
    climb(ladder, attempt)
    assert tried == [1, 2]
    assert bases([source, row(STATIC, "kept", 2)]) == []
    assert bases([row("source", "kept", 50), row(STATIC, "kept", 44)]) == []  # too slow to look
    assert bases([source, row(STATIC, "failed", 4)]) == []
    assert ladders([source, row(STATIC, "kept", 4)], False, 33) == []  # too many to look at
    missing = [source, row(STATIC, "inaccurate", 3), row(DYNAMIC, "inaccurate", 2.5)]
    assert [ladder.few for ladder in ladders([*missing, row(STATIC, "kept", 4)], False, 10)] == [
        False, False,
    ]  # fmt: skip


def test_the_whole_frontier_starts_from_the_fastest_whether_it_holds_or_not() -> None:
    rows = [row(DYNAMIC, "kept", 3), row(STATIC, "inaccurate", 5), row("fold,fp16", "kept", 1)]
    assert bases(rows, True) == [DYNAMIC, STATIC]
    assert all(ladder.everything for ladder in ladders(rows, True, 10))


@pytest.mark.parametrize(
    "chain",
    [
        "source",
        "fold,fp16",
        "int8{mode=weights}",
        "int8{mode=static,engine=nncf}",
        "int8{mode=static,keep=2}",
        "int8,session{level=BASIC}",
        "int8{mode=static}@openvino",
    ],
)
def test_only_onnxruntimes_own_integers_can_be_mixed(chain: str) -> None:
    assert bases([row(chain, "inaccurate", 1)]) == []
    assert bases([row(chain, "inaccurate", 1)], True) == []


def test_what_was_not_timed_is_no_start() -> None:
    assert bases([row(STATIC, "inaccurate", None), row(DYNAMIC, "failed", 1)]) == []


def test_a_step_changes_the_number_alone() -> None:
    ladder = Ladder(Chain.parse("fold,smooth,int8{mode=static,ops=matmul}"))
    assert str(ladder.step(4)) == "fold,smooth,int8{mode=static,ops=matmul,keep=4}"
    assert str(ladder.base) == "fold,smooth,int8{mode=static,ops=matmul}"


def attempts(answer: Callable[[int], VariantReport | None]) -> tuple[Tried, Any]:
    tried: Tried = []

    def attempt(chain: Chain) -> VariantReport | None:
        last = chain.passes[-1]
        assert isinstance(last, Int8)
        tried.append(last.keep)
        return answer(last.keep)

    return tried, attempt


@given(enough=st.integers(1, MOST_KEPT))
def test_it_finds_a_number_that_holds_within_half_of_the_least(enough: int) -> None:
    tried, attempt = attempts(
        lambda keep: row(STATIC, "kept" if keep >= enough else "inaccurate", 1)
    )
    climb(Ladder(Chain.parse(STATIC)), attempt)
    held = [keep for keep in tried if keep >= enough]
    assert held
    assert min(held) < 2 * enough
    assert len(set(tried)) == len(tried) <= 7
    assert max(tried) <= MOST_KEPT


@pytest.mark.parametrize("everything", [False, True])
def test_it_ends_where_no_more_layers_are_left(everything: bool) -> None:
    """The pass does not apply once all layers would be in float."""
    tried, attempt = attempts(lambda keep: row(STATIC, "inaccurate", 1) if keep < 8 else None)
    climb(Ladder(Chain.parse(STATIC), everything), attempt)
    assert tried == [1, 2, 4, 8]


def test_the_whole_frontier_goes_on_after_the_floor_holds() -> None:
    tried, attempt = attempts(lambda keep: row(STATIC, "kept", 1))
    climb(Ladder(Chain.parse(STATIC), True), attempt)
    assert tried == [1, 2, 4, 8, 16, 32]


def test_a_worker_that_dies_ends_it() -> None:
    failed = VariantReport(STATIC, "onnxruntime", "failed", "the worker died")
    tried, attempt = attempts(lambda keep: failed)
    climb(Ladder(Chain.parse(STATIC)), attempt)
    assert tried == [1]


SQUARE = ("float32", (64, 64))


def attends(graph: GraphMaker, between: Sequence[str] = ()) -> Model:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b0"]),
    ]
    for number, op in enumerate(between):
        extra = {"to": 1} if op == "Cast" else {}
        nodes.append(helper.make_node(op, [f"b{number}"], [f"b{number + 1}"], **extra))
    nodes.append(helper.make_node("MatMul", [f"b{len(between)}", "x"], ["y"]))
    return graph(nodes, {"x": SQUARE}, {"y": SQUARE})


@pytest.mark.parametrize("between", [(), ("Identity",), ("Cast", "Identity", "Transpose")])
def test_attention_is_a_product_weighted_by_a_softmax(
    graph: GraphMaker, between: Sequence[str]
) -> None:
    assert has_attention(attends(graph, between))


def test_a_classifiers_softmax_is_no_attention(graph: GraphMaker) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["y"]),
    ]
    assert not has_attention(graph(nodes, {"x": SQUARE}, {"y": SQUARE}))
    assert not has_attention(attends(graph, ("Relu",)))
    assert not has_attention(graph.linear())


def test_a_plan_holds_only_the_runtimes_that_may_serve(graph: GraphMaker) -> None:
    for model in (attends(graph), graph.linear()):
        for runtimes in (
            ("onnxruntime",),
            ("openvino",),
            ("inductor", "openvino"),
            tuple(runtime_names()),
        ):
            plan = built_in(model, True, runtimes)
            assert {chain.runtime for chain in plan} == set(runtimes)
            assert not any(c.needs_calibration for c in built_in(model, False, runtimes))


def test_everything_adds_and_takes_nothing_away(graph: GraphMaker, digits_onnx: Any) -> None:
    from optimize.models.model import Model

    for model in (attends(graph), graph.linear(), Model.read(digits_onnx)):
        usual = [str(chain) for chain in built_in(model, True)]
        everything = [str(chain) for chain in built_in(model, True, everything=True)]
        assert set(usual) < set(everything)
        assert len(set(everything)) == len(everything)


def test_transformers_get_smoothing_and_convolutions_equalisation(
    graph: GraphMaker, digits_onnx: Any
) -> None:
    from optimize.models.model import Model

    transformer = " ".join(map(str, built_in(attends(graph), True)))
    convolutions = " ".join(map(str, built_in(Model.read(digits_onnx), True)))
    assert "smooth" in transformer
    assert "session{without=SkipLayerNormFusion}" in transformer
    assert "equalize" not in transformer
    assert "equalize" in convolutions
    assert "smooth" not in convolutions


def test_no_climb_makes_more_variants_than_the_error_is_shared_by() -> None:
    plan = [Chain.parse(text) for text in ("source", "fold,int8{mode=static}", "fold,fuse")]
    for last in range(40):  # the number of layers in float at which the floor begins to hold
        tried: list[Chain] = []

        def attempt(chain: Chain, last: int = last, tried: list[Chain] = tried) -> Any:
            tried.append(chain)
            keep = chain.passes[-1].keep  # type: ignore[attr-defined]
            return row(str(chain), "kept" if keep >= last else "inaccurate", None)

        for everything in (False, True):
            tried.clear()
            climb(Ladder(Chain.parse("int8{mode=static}"), everything), attempt)
            assert MOST_BASES * len(tried) <= reserve(plan)
    assert reserve([Chain.parse("fold,fuse")]) == 0
