"""Chains: which texts mean the same, which options go together, and plug-ins of others."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.errors import InputError
from optimize.models.model import Model
from optimize.passes import registry
from optimize.passes.base import Context, Pass, PassResult
from optimize.passes.chain import Chain, options
from optimize.passes.int8 import Int8

# Every option of every built-in pass with some values, its default first.
OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "fold": {},
    "fuse": {"engine": ("auto", "onnxruntime", "onnxscript", "onnxruntime-tools")},
    "fp16": {"keep": ("auto", "none", "Softmax+Pow")},
    "int8": {
        "mode": ("dynamic", "static", "weights"),
        "calibration": ("minmax", "entropy", "percentile"),
        "per": ("channel", "tensor"),
        "ops": ("auto", "all", "matmul", "conv"),
        "bits": ("8", "4"),
        "samples": ("128", "1", "64"),
    },
}


def goes_together(chosen: dict[str, str]) -> bool:
    """What the documentation of int8 allows, written down anew."""
    mode = chosen.get("mode", "dynamic")
    default = {name: values[0] for name, values in OPTIONS["int8"].items()}
    differs = {name for name, value in chosen.items() if value != default[name]}
    if mode != "static" and differs & {"calibration", "samples"}:
        return False
    if mode != "weights" and "bits" in differs:
        return False
    return mode != "weights" or not differs & {"ops", "per"}


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    name = draw(st.sampled_from(list(OPTIONS)))
    chosen = {
        option: draw(st.sampled_from(values))
        for option, values in OPTIONS[name].items()
        if draw(st.booleans())
    }
    return name, chosen


valid_steps = steps().filter(lambda step: step[0] != "int8" or goes_together(step[1]))


@st.composite
def written(draw: st.DrawFn, name: str, chosen: dict[str, str]) -> str:
    """One of the many ways to write a step: order, spaces, defaults spelt out or not."""

    def gap() -> str:
        return draw(st.sampled_from(["", " ", "  "]))

    shuffled = draw(st.permutations(list(chosen.items())))
    body = ",".join(f"{gap()}{key}{gap()}={gap()}{value}{gap()}" for key, value in shuffled)
    braces = f"{gap()}{{{body}}}" if body or draw(st.booleans()) else ""
    return f"{gap()}{name}{braces}{gap()}"


def meaning(step: tuple[str, dict[str, str]]) -> tuple[str, dict[str, str]]:
    name, chosen = step
    return name, {option: chosen.get(option, v[0]) for option, v in OPTIONS[name].items()}


@settings(max_examples=50, deadline=None)
@given(st.data(), st.lists(valid_steps, min_size=1, max_size=4))
def test_order_spaces_and_spelt_out_defaults_mean_nothing(
    data: st.DataObject, chain: list[tuple[str, dict[str, str]]]
) -> None:
    first, second = (
        ",".join(data.draw(written(name, chosen)) for name, chosen in chain) for _ in range(2)
    )
    one, other = Chain.parse(first), Chain.parse(second)
    assert one == other
    assert str(one) == str(other)
    assert Chain.parse(str(one)) == one
    assert not re.search(r"\s", str(one))
    for step, (name, wanted) in zip(one.passes, map(meaning, chain), strict=True):
        assert step.name == name
        assert {option: str(getattr(step, option)) for option in wanted} == wanted


@settings(deadline=None)
@given(st.lists(valid_steps, min_size=1, max_size=3), st.lists(valid_steps, min_size=1, max_size=3))
def test_chains_are_equal_exactly_if_their_texts_are(
    one: list[tuple[str, dict[str, str]]], other: list[tuple[str, dict[str, str]]]
) -> None:
    parsed = []
    for chain in (one, other):
        text = ",".join(f"{n}{{{','.join(f'{k}={v}' for k, v in c.items())}}}" for n, c in chain)
        parsed.append(Chain.parse(text))
    same = list(map(meaning, one)) == list(map(meaning, other))
    assert (parsed[0] == parsed[1]) is same
    assert (str(parsed[0]) == str(parsed[1])) is same
    assert not same or hash(parsed[0]) == hash(parsed[1])


@settings(deadline=None)
@given(st.one_of(st.text(max_size=30), st.from_regex(r"[a-z0-9{}=, ]{1,30}", fullmatch=True)))
def test_any_text_is_a_chain_or_one_sentence(text: str) -> None:
    try:
        chain = Chain.parse(text)
    except InputError as error:
        assert str(error)
        return
    assert Chain.parse(str(chain)) == chain


def test_int8_takes_exactly_the_options_that_its_mode_has() -> None:
    names = list(OPTIONS["int8"])
    for values in itertools.product(*OPTIONS["int8"].values()):
        chosen = dict(zip(names, values, strict=True))
        text = f"int8{{{','.join(f'{k}={v}' for k, v in chosen.items())}}}"
        if goes_together(chosen):
            assert Chain.parse(text).passes, text
        else:
            with pytest.raises(InputError, match="int8"):
                Chain.parse(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" source ", "source"),
        ("int8", "int8{mode=dynamic}"),  # the mode is always told
        ("int8{bits=8,mode=weights}", "int8{mode=weights}"),
        ("int8{samples=64,mode=static}", "int8{mode=static,samples=64}"),
        ("fold , fuse{engine=auto}", "fold,fuse"),
    ],
)
def test_the_text_that_reports_show(text: str, canonical: str) -> None:
    assert str(Chain.parse(text)) == canonical


@pytest.mark.parametrize("samples", ["0", "-3"])
def test_int8_calibrates_on_one_sample_at_least(samples: str) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Chain.parse(f"int8{{mode=static,samples={samples}}}")


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("source", False),
        ("fold,fuse,fp16", False),
        ("int8", False),
        ("int8{mode=weights,bits=4}", False),
        ("fold,int8{mode=static}", True),
        ("int8{mode=static},fold", True),
    ],
)
def test_only_static_quantization_needs_calibration(text: str, needs: bool) -> None:
    assert Chain.parse(text).needs_calibration is needs


def test_the_source_has_no_prefixes_and_a_chain_ends_with_itself() -> None:
    assert list(Chain.parse("source").prefixes()) == []
    chain = Chain.parse("fold,int8{mode=static}")
    assert [str(prefix) for prefix in chain.prefixes()] == ["fold", "fold,int8{mode=static}"]
    assert list(chain.prefixes())[-1] == chain


KNOWN = "known: fold, fuse, session, equalize, smooth, fp16, bf16, shapes, int8, student, distill, prune"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flod", ("flod", "did you mean fold?", KNOWN)),
        ("int", ("did you mean int8?",)),
        ("zzz", ("zzz", KNOWN)),
        ("int8{bit=4}", ("bit", "did you mean bits?")),
        ("int8{mode=weigths}", ("did you mean weights?", "dynamic, static, weights")),
        ("int8{mode=weights,bits=5}", ("bits=5", "8, 4")),
        ("fuse{engine=onnxruntim}", ("did you mean onnxruntime?", "onnxscript")),
        ("int8{mode=static,samples=many}", ("samples=many", "whole number")),
        ("int8{mode=static,samples=1.5}", ("samples=1.5", "whole number")),
        ("fold;fuse", ("fold;fuse", "separated by commas")),
        ("int8{{mode=static}}", ("NAME{option=value,...}",)),
        ("int8{mode=static}}", ("}",)),
        (",fold", (",fold",)),
    ],
)
def test_a_bad_chain_names_the_place_and_what_is_nearest(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as raised:
        Chain.parse(text)
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_options_are_described_by_type_and_default() -> None:
    described = {option.name: (option.type, option.default) for option in options(Int8)}
    assert described["mode"] == ("dynamic|static|weights", "dynamic")
    assert described["bits"] == ("8|4", "8")
    assert described["samples"] == ("whole number", "128")


# Passes of other packages


@dataclass(frozen=True)
class Prune(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "sparsify"
    summary: ClassVar[str] = "zeros"

    share: float = 0.5
    rounds: int = 1
    gently: bool = False
    rule: Literal["weight", "gradient"] = "weight"
    scope: str = "all"

    def apply(self, model: Model, context: Context) -> PassResult:
        return PassResult(model, False)


@dataclass(frozen=True)
class Distil(Pass):
    """A pass with an option that has no default."""

    name: ClassVar[str] = "distil"
    summary: ClassVar[str] = "a smaller one"

    layers: int

    def apply(self, model: Model, context: Context) -> PassResult:
        return PassResult(model, False)


class Entry(EntryPoint):
    """An installed plug-in, without an installation."""

    def load(self) -> Any:
        return {"sparsify": Prune, "distil": Distil, "none": dict, "broken": None}[
            self.name
        ] or 1 / 0


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    entries = [Entry(name, f"theirs:{name}", registry.GROUP) for name in names]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)


def test_a_plug_in_is_written_like_any_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = registry.pass_names()
    install(monkeypatch, "sparsify")
    assert registry.pass_names() == [*built_in, "sparsify"]
    text = "fold,sparsify{share=0.25,rounds=3,gently=true,rule=gradient,scope=last}"
    chain = Chain.parse(text)
    assert chain.passes[1] == Prune(0.25, 3, True, "gradient", "last")
    assert str(chain) == text
    assert str(Chain.parse("sparsify{gently=false,share=.5}")) == "sparsify"


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(-5, 5), st.booleans())
def test_numbers_and_truths_of_plug_ins_round_trip(share: float, rounds: int, gently: bool) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch, "sparsify")
        chain = Chain((Prune(share, rounds, gently),))
        assert Chain.parse(str(chain)) == chain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparsify{gently=yes}", "neither true nor false"),
        ("sparsify{share=half}", "is no number"),
        ("sparsify{rule=size}", "weight, gradient"),
        ("distil", "needs layers"),
        ("sparsfiy", "did you mean sparsify"),
    ],
)
def test_bad_options_of_plug_ins(monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    install(monkeypatch, "sparsify", "distil")
    with pytest.raises(InputError, match=words):
        Chain.parse(text)


def test_options_of_plug_ins_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "sparsify", "distil")
    described = {o.name: (o.type, o.default) for o in options(registry.load_pass("sparsify"))}
    assert described["gently"] == ("true|false", "false")
    assert described["share"] == ("number", "0.5")
    assert described["scope"] == ("text", "all")
    required = options(registry.load_pass("distil"))
    assert "object" not in required[0].default.lower()  # no address of dataclasses' own marker
    assert "missing" not in required[0].default.lower()


def test_a_pass_with_a_required_option_is_written_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "distil")
    chain = Chain.parse("distil{layers=3}")
    assert chain.passes == (Distil(3),)
    assert str(chain) == "distil{layers=3}"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("int8",), "int8"),
        (("sparsify", "sparsify"), "sparsify"),
    ],
)
def test_two_passes_of_one_name_are_refused(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], words: str
) -> None:
    install(monkeypatch, *names)
    with pytest.raises(InputError, match=f"theirs:{words}.*taken"):
        registry.pass_names()


@pytest.mark.parametrize(
    ("name", "words"), [("none", "no subclass"), ("broken", "cannot be imported")]
)
def test_a_broken_plug_in_is_named_when_it_is_used(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    install(monkeypatch, name)
    assert Chain.parse("fold")  # others are none the worse for it
    with pytest.raises(InputError, match=f"theirs:{name}.*{words}"):
        Chain.parse(name)
