"""``prune{to=p99}`` lands just below its budget, on a target whose latency is a known function."""

from __future__ import annotations

import itertools
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import FASHION

from optimize.errors import InputError, NotApplicable
from optimize.models import data as samples
from optimize.models.data import Dataset
from optimize.models.export import Exported, export_program, load_and_export
from optimize.models.model import Model
from optimize.models.program import load_program
from optimize.models.source import detect
from optimize.passes.base import PassResult
from optimize.passes.chain import Chain
from optimize.passes.latency import Share
from optimize.passes.pruning.search import Level, cheapest, levels

Apply = Callable[..., PassResult]
# Each width that is tried is exported, which takes torch seconds: two groups, one over an addition.
NETWORK = """
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 96, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(96, 128, 3, padding=1)
        self.back = nn.Conv2d(128, 96, 3, padding=1)
        self.head = nn.Linear(96, 10)

    def forward(self, image):
        stem = self.stem(image.float() / 255).relu()
        return self.head((stem + self.back(self.wide(stem).relu())).mean((2, 3)))

def build():
    return Network()
"""
SOURCE_NS = 1e6


def work(model: Model) -> float:
    """Multiplications by weights, each layer's with a fixed cost: neither additive nor smooth."""
    proto = onnx.shape_inference.infer_shapes(onnx.load(model.path))
    weights = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    places = {
        v.name: prod(d.dim_value or 1 for d in v.type.tensor_type.shape.dim[2:])
        for v in proto.graph.value_info
    }
    return sum(
        2e4 + prod(weights[node.input[1]]) * places.get(node.output[0], 1)
        for node in proto.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in weights
    )


@dataclass
class Formula:
    """A target that takes a millisecond for the reference, and less as there is less to do."""

    limits: Mapping[str, int]
    identity: Mapping[str, Any] = field(default_factory=dict)
    timed: int = 0

    @contextmanager
    def race(
        self, reference: Model, runtime: str, folder: Path, deadline: float | None
    ) -> Iterator[Formula]:
        self.whole = work(reference)
        yield self

    def shares(self, candidates: Sequence[Model], quantile: float) -> list[Share]:
        self.timed += len(candidates)
        return [Share(*[work(model) / self.whole] * 2) for model in candidates]

    def reference_ns(self, quantile: float) -> float:
        return SOURCE_NS


@pytest.fixture(scope="module")
def images() -> Dataset:
    with np.load(FASHION / "data.npz") as stored:
        arrays = [pixel.reshape(1, 1, 28, 28) for pixel in stored["image"][:200]]
    return Dataset("images", {"image": arrays}, None, batch_first=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, images: Dataset) -> Exported:
    pytest.importorskip("torch_pruning")
    import torch

    folder = tmp_path_factory.mktemp("exported")
    file, weights = folder / "network.py", folder / "network.pth"
    file.write_text(NETWORK)
    torch.manual_seed(0)
    torch.save(runpy.run_path(str(file))["build"]().state_dict(), weights)
    batches = samples.representative(images)
    return load_and_export(detect(weights), f"{file}:build", False, batches, (), folder)


@pytest.mark.parametrize("goal", [0.8, 0.6, 0.4])
def test_a_graph_lands_within_ten_percent_below_its_budget(
    goal: float, shipped_onnx: Model, images: Dataset, apply: Apply
) -> None:
    bench = Formula({"p99": int(goal * SOURCE_NS)})
    result = apply("prune{to=p99,refit=false}", shipped_onnx, images.take(range(60)), bench=bench)
    assert 0.9 * goal <= work(result.model) / work(shipped_onnx) <= goal
    assert f"{bench.timed} candidates timed" in result.notes[0]
    assert any(note.startswith("timed as it is, in float") for note in result.notes)


def test_a_module_lands_there_too_after_recovery(
    exported: Exported, images: Dataset, apply: Apply, tmp_path: Path
) -> None:
    assert exported.program is not None
    bench = Formula({"p99": int(0.6 * SOURCE_NS)})
    text = "prune{to=p99,on=module,rounds=1,recovery=5}"
    isa = frozenset({"avx512f"})  # by 16, hence with few widths to try
    cut = apply(text, exported.program, images, bench=bench, teacher=exported.program, isa=isa)
    made = export_program(cut.model, tmp_path).model
    assert 0.9 * 0.6 <= work(made) / work(exported.model) <= 0.6
    assert "widths: " in cut.notes[1]
    assert made.signature == exported.model.signature


@pytest.mark.parametrize(("isa", "width"), [(("avx2",), 56), (("avx2", "avx512f"), 64)])
def test_a_modules_widths_are_those_that_the_kernels_compute_at_a_time(
    isa: tuple[str, ...], width: int, exported: Exported, images: Dataset, apply: Apply
) -> None:
    assert exported.program is not None
    cut = apply("prune{ratio=0.4,on=module}", exported.program, images, isa=frozenset(isa))
    weights = load_program(cut.model.path).module.state_dict()
    assert weights["stem.weight"].shape[0] == width  # of 96


def test_what_meets_its_budget_stays_as_it_is(
    shipped_onnx: Model, images: Dataset, apply: Apply
) -> None:
    bench = Formula({"p99": 2 * 10**6})
    result = apply("prune{to=p99}", shipped_onnx, images, bench=bench)
    assert not result.changed
    assert bench.timed == 0
    assert "nothing has to go" in result.notes[0]


def test_a_budget_out_of_reach_is_told(shipped_onnx: Model, images: Dataset, apply: Apply) -> None:
    few = images.take(range(20))
    with pytest.raises(NotApplicable, match="no widths were found that meet the budget, 0.01"):
        apply("prune{to=p99}", shipped_onnx, few, bench=Formula({"p99": 10**4}))


def test_no_budget_on_that_percentile_is_told(
    shipped_onnx: Model, images: Dataset, apply: Apply
) -> None:
    for bench in (None, Formula({"p95": 10**6})):
        with pytest.raises(NotApplicable, match="no budget on p99 is declared"):
            apply("prune{to=p99}", shipped_onnx, images, bench=bench)


def test_options_that_the_budget_decides_are_refused() -> None:
    assert str(Chain.parse("prune{to=p99,on=module}")) == "prune{on=module,to=p99}"
    for text in ("ratio=0.5", "scope=global", "kind=mask"):
        with pytest.raises(InputError, match="finds the ratios"):
            Chain.parse(f"prune{{to=p99,{text}}}")


@pytest.mark.parametrize(("width", "step"), [(64, 16), (1024, 16), (7, 1), (16, 16), (20, 16)])
def test_levels_fall_from_the_present_width(width: int, step: int) -> None:
    found = levels(width, step)
    assert found[0] == width
    assert list(found) == sorted(set(found), reverse=True)
    assert all(level % step == 0 and level > 0 for level in found[1:])
    assert len(found) <= 8


GROUP = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(GROUP, min_size=1, max_size=4), st.integers(0, 150))
def test_the_choice_is_the_cheapest_of_all(groups: list[Any], need: int) -> None:
    """Savings in whole bins, so that nothing is rounded; an exhaustive search is the oracle."""
    bins = 500
    table = [
        [Level(number, saved / bins, lost) for number, (saved, lost) in enumerate(group)]
        for group in groups
    ]
    widths = cheapest(table, need / bins, 20 / bins, ())
    assert widths is not None

    def judged(choice: Sequence[Level]) -> tuple[int, float]:
        saved = round(sum(level.saved for level in choice) * bins)
        return max(need - saved, saved - need - 20, 0), sum(level.lost for level in choice)

    best = min(judged(choice) for choice in itertools.product(*table))
    got = judged([group[width] for group, width in zip(table, widths, strict=True)])
    assert got == pytest.approx(best)


def test_choices_are_not_repeated() -> None:
    table = [[Level(2, 0.0, 0.0), Level(1, 0.1, 0.5)]]
    first = cheapest(table, 0.1, 0.01, ())
    assert first == (1,)
    second = cheapest(table, 0.1, 0.01, {(1,)})
    assert second == (2,)
    assert cheapest(table, 0.1, 0.01, {(1,), (2,)}) is None
