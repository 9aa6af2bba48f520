"""Markdown, the plot of terminals, the repeated command, and what may not leave the machine."""

from __future__ import annotations

import io
import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_reports import EVERY, HOSTILE, hostile, many, none_kept, one
from rich.console import Console

from optimize.budgets.budget import Budget, Floor
from optimize.passes.chain import Chain
from optimize.reports.command import command, without_paths
from optimize.reports.folder import shareable
from optimize.reports.markdown import markdown
from optimize.reports.strip import DOT, LIMIT, strips
from optimize.reports.terminal import plot
from optimize.reports.words import load_words
from optimize.request import Request, parse_input
from optimize.results.report import LoadReport


@pytest.mark.parametrize("name", EVERY)
def test_markdown_is_short_enough_for_a_comment(name: str) -> None:
    text = markdown(EVERY[name]())
    assert text.startswith("### ")
    assert len(text) < 12_000


def test_without_a_budget_nothing_is_certain_to_stay_within_one() -> None:
    view = many()
    text = markdown(replace(view, report=replace(view.report, budgets=())))
    assert "No budget was declared" in text
    assert "certainty" in markdown(view)
    assert "certainty" not in text
    assert "within" not in text.partition("| variant |")[0]


@pytest.mark.parametrize(
    ("rate", "words"),
    [(1234.5, "1,200"), (51.6, "52"), (9.96, "10.0"), (0.0421, "0.042"), (99.9, "100")],
)
def test_a_rate_is_told_with_two_digits(rate: float, words: str) -> None:
    view = many()
    load = LoadReport("p99=20ms", rate, 0.64)
    report = replace(view.report, load=load)
    assert f"up to about {words} calls/s" in load_words(report)
    assert "busy 64% of the time" in load_words(report)
    assert f"{words} calls/s" in markdown(replace(view, report=report))
    assert load_words(view.report) == ""


def test_markdown_leads_with_the_answer_and_has_a_picture() -> None:
    text = markdown(many(), "accuracy-latency.png")
    first = text.splitlines()[0]
    assert "Kept" in first
    assert "`fold,fuse,int8{mode=static}`" in first
    assert "](accuracy-latency.png)" in text
    assert "```text" not in text
    drawn = markdown(many())
    assert "](accuracy" not in drawn
    assert LIMIT in drawn.partition("```text")[2].partition("```")[0]
    assert "1.60x the budget" in markdown(none_kept())
    assert "48 more in report.json" in text


def test_every_row_of_the_table_has_every_column() -> None:
    rows = [line for line in markdown(hostile()).splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {11}


def test_hostile_names_stay_text_in_markdown() -> None:
    text = markdown(hostile())
    outside = re.sub(r"```.*?```|(`+) .*? \1", "", text, flags=re.DOTALL)
    assert "<img" not in re.sub(r"\\<", "", outside)
    assert "</script>" not in re.sub(r"\\<", "", outside)


def test_strips_hold_the_dot_between_its_bounds() -> None:
    found = strips(many(), width=60, most=10)
    assert found is not None
    assert len(found.rows) == 11  # ten, and the source
    assert "slower ones are left out" in found.title
    assert any(row.name == "fold,fuse,int8{mode=static}" for row in found.rows)
    for row in found.rows:
        assert row.drawing.count(DOT) == 1
        assert len(row.drawing) <= 60
        assert row.drawing.index(DOT) < row.drawing.rindex(LIMIT)  # all of these are fast enough


def test_the_terminal_shows_all_names_and_figures() -> None:
    for name, made in EVERY.items():
        stream = io.StringIO()
        Console(file=stream, width=120).print(plot(made()))
        text = stream.getvalue()
        if name in ("unmeasured", "infeasible"):
            assert "Nothing was timed." in text
        elif name != "hostile":
            assert "source" in text
            assert "budget 20 ms" in text


def parsed(line: str) -> list[str]:
    return shlex.split(line)


def test_a_command_repeats_the_run_in_full() -> None:
    request = Request(
        model=Path("models/net.pt"),
        budgets=(Budget.parse("p99=20ms"), Budget.parse("size=1MB")),
        floor=Floor.parse("drop=1%"),
        data="data file.npz",
        metric="metrics/probe.py:score",
        chains=(Chain.parse("fold,int8{mode=dynamic}"), Chain.parse("fuse")),
        threads=2,
        inputs=(parse_input("x=Nx3:float32"),),
        time_limit_s=None,
        trust_pickle=True,
        out=Path("/home/somebody/secret"),
    )
    words = parsed(command(request))
    assert words[:2] == ["optimize", "models/net.pt"]
    pairs = set(pairwise(words))
    assert {
        ("--budget", "p99=20ms"), ("--budget", "size=1MB"), ("--floor", "drop=1%"),
        ("--data", "data file.npz"), ("--metric", "metrics/probe.py:score"),
        ("--chain", "fold,int8{mode=dynamic}"), ("--chain", "fuse"), ("--threads", "2"),
        ("--input", "x=Nx3:float32"), ("--time-limit", "none"),
    } <= pairs  # fmt: skip
    assert "--trust-pickle" in words
    assert "--seed" not in words  # a default
    assert "somebody" not in command(request)


def test_every_option_of_a_repeated_command_exists() -> None:
    from typer.main import get_command

    from optimize.cli import app

    request = Request(
        model=Path("a.onnx"), budgets=(Budget.parse("p99=1ms"),), floor=Floor.parse("drop=0.1"),
        data="d.npz", calibration="c.npz", metric="mae", chains=(Chain.parse("fold"),),
        runtimes=("openvino", "onnxruntime"), objective="size", threads=1, batch=1,
        confidence=0.95, time_limit_s=5.0, arch="a.py:b", trust_pickle=True, seed=3,
        strict_floor=True, max_samples=7, pre="p.py:f", post="p.py:g",
    )  # fmt: skip
    run = get_command(app).commands["run"]  # type: ignore[attr-defined]
    known = {name for parameter in run.params for name in parameter.opts}
    used = {word for word in parsed(command(request)) if word.startswith("--")}
    assert len(used) > 15
    assert used <= known


def test_models_as_they_are_are_profiled_again() -> None:
    request = Request(
        Path("/home/ann/a.onnx"), (Budget.parse("p99=1ms"),), rivals=(Path("b.onnx"),), as_is=True
    )
    assert parsed(command(request))[:4] == ["optimize", "profile", "a.onnx", "b.onnx"]


def test_a_comparison_is_repeated_as_one() -> None:
    request = Request(Path("a.onnx"), (Budget.parse("p99=1ms"),), everything=True)
    assert parsed(command(request))[:3] == ["optimize", "compare", "a.onnx"]


PART = st.text("abcXYZ019._-", min_size=1, max_size=8).filter(lambda part: set(part) - set("."))


@settings(deadline=None)
@given(st.lists(PART, min_size=2, max_size=5), st.sampled_from(["{}", "at {}: no", "({})", "'{}'"]))
def test_absolute_paths_lose_their_folders(parts: list[str], sentence: str) -> None:
    shown = without_paths(sentence.format("/" + "/".join(parts)))
    assert shown == sentence.format(parts[-1])


@pytest.mark.parametrize(
    "text",
    [
        "p50/p95/p99",
        "see https://example.org/a/b",
        "1.5 MB/s",
        "a/b/c.onnx",
        "either/or",
        "<b>x</b>",
    ],
)
def test_other_texts_are_left_alone(text: str) -> None:
    assert without_paths(text) == text


def test_a_shared_report_names_no_folder_of_this_machine() -> None:
    report = one().report
    told = replace(
        report,
        notes=("read from /home/ann/nets/a.onnx",),
        variants=(replace(report.variants[0], reason="cannot open ~/nets/b.onnx"),),
    )
    shown = shareable(told)
    assert shown.notes == ("read from a.onnx",)
    assert shown.variants[0].reason == "cannot open b.onnx"
    assert shareable(report) == report
    assert shareable(hostile().report).source.name == HOSTILE
