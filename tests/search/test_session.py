"""Threads and spinning as options of a variant: set, served, timed and shown as they are."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimize.budgets.budget import Budget, Floor
from optimize.budgets.verdict import Requirement
from optimize.errors import NotApplicable
from optimize.models.model import Model
from optimize.passes.chain import Chain
from optimize.profiling.measure import SPIN_NS, Contender, Limits, time_in_turns
from optimize.results.serve import script
from optimize.search.tune import sessions, thread_counts, tuned
from optimize.targets.base import Job, Settings
from optimize.worker import SPINNING, session_options


def configured(text: str, model: Model, apply: Any, rows: Any) -> Model:
    made: Model = apply(text, model, rows).model
    return made


def test_its_threads_and_spinning_reach_the_session(graph: Any, apply: Any, rows: Any) -> None:
    model = configured("session{threads=3,spinning=false}", graph.linear(), apply, rows)
    options = session_options(dict(model.config), 1)
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    plain = session_options({}, 2)
    assert plain.intra_op_num_threads == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("session{without=MatMulAddFusoin}", "onnxruntime has no such optimizer"),
        ("session{threads=9999}", "threads=9999 on"),
    ],
)
def test_what_would_do_nothing_or_only_harm_is_skipped(
    text: str, reason: str, graph: Any, apply: Any, rows: Any
) -> None:
    with pytest.raises(NotApplicable, match=reason):
        configured(text, graph.linear(), apply, rows)
    names = "MatMulAddFusion+ConvActivationFusion+Level1_RuleBasedTransformer"
    assert configured(f"session{{without={names}}}", graph.linear(), apply, rows).config


def test_the_script_serves_with_them(
    graph: Any, apply: Any, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = configured("session{level=BASIC,threads=2,spinning=false}", graph.linear(), apply, rows)
    (tmp_path / "model.onnx").write_bytes(model.path.read_bytes())
    text = script(model, "onnxruntime", "CPUExecutionProvider", 1, "model.onnx", 1)
    (tmp_path / "serve.py").write_text(text)
    seen: list[Any] = []
    session = onnxruntime.InferenceSession

    def watched(path: str, options: Any, **more: Any) -> Any:
        seen.append(options)
        return session(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    runpy.run_path(str(tmp_path / "serve.py"))
    assert seen[0].intra_op_num_threads == 2
    assert seen[0].get_session_config_entry(SPINNING) == "0"
    assert seen[0].graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC


class Fake:
    """A worker that notes how long it was to lead."""

    def __init__(self) -> None:
        self.leads: list[int] = []

    def call(self, command: str, timeout_s: float, **given: Any) -> dict[str, Any]:
        import base64

        self.leads.append(given["lead_ns"])
        samples = np.full(len(given["order"]), 1_000_000, np.int64)
        return {
            "samples": base64.b64encode(samples.tobytes()).decode(),
            "canary_ns": [1, 1],
            "elapsed_ns": int(samples.sum()),
            "counters": {},
        }

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("threads", "config", "lead"),
    [(1, (), 0), (2, (), SPIN_NS), (2, ((SPINNING, "0"),), 0)],
)
def test_everyone_waits_for_the_threads_of_any_other(
    threads: int, config: tuple[tuple[str, str], ...], lead: int, tmp_path: Path
) -> None:
    workers = [Fake(), Fake()]
    contenders = []
    for worker, settings in zip(
        workers, (Settings(threads=1), Settings(threads=threads, config=config)), strict=True
    ):
        job = Job(tmp_path, tmp_path, tmp_path, settings)
        contenders.append(Contender(str(id(worker)), job, [worker], call_ns=1e6))  # type: ignore[list-item]
    requirement = Requirement((Budget.parse("p50=1s"),), Floor.parse("drop=0.1"))
    rng = np.random.default_rng(0)
    time_in_turns(contenders, requirement, 4, Limits(max_samples=100), rng, lambda _: None)
    assert {lead for worker in workers for lead in worker.leads} == {lead}


@pytest.mark.parametrize(
    ("given", "most", "counts"),
    [(1, 1, ()), (2, 2, (1,)), (1, 6, (2, 4, 6)), (3, 8, (1, 2, 4, 8)), (8, 2, (1, 2))],
)
def test_threads_double_up_to_the_cores(given: int, most: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(given, most) == counts


@pytest.mark.parametrize("quantized", [False, True])
def test_each_variant_changes_one_thing_and_reads_back(quantized: bool) -> None:
    base = Chain.parse("fold,fuse")
    chains = [tuned(base, session) for session in sessions(2, 4, quantized)]
    texts = list(map(str, chains))
    assert [Chain.parse(text) for text in texts] == chains
    levels = [] if quantized else ["level=EXTENDED", "level=BASIC"]
    wanted = ["threads=1", "threads=4", *levels, "spinning=false"]
    assert texts == [f"fold,fuse,session{{{option}}}" for option in wanted]
    assert [str(s) for s in sessions(1, 1, True)] == []
