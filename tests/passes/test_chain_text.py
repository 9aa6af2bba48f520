"""Chains as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimize.errors import InputError
from optimize.passes import registry
from optimize.passes.chain import Chain, options
from optimize.passes.fold import Fold
from optimize.passes.fp16 import Fp16
from optimize.passes.fuse import Fuse
from optimize.passes.int8 import Int8

passes = st.one_of(
    st.just(Fold()),
    st.builds(Fuse, st.sampled_from(["auto", "onnxruntime", "onnxscript", "onnxruntime-tools"])),
    st.builds(Fp16, st.sampled_from(["auto", "none", "Softmax", "Softmax+Pow"])),
    st.builds(
        Int8,
        mode=st.just("static"),
        calibration=st.sampled_from(["minmax", "entropy", "percentile"]),
        per=st.sampled_from(["channel", "tensor"]),
        ops=st.sampled_from(["auto", "all", "matmul", "conv"]),
        samples=st.integers(1, 500),
    ),
    st.builds(Int8, mode=st.just("weights"), bits=st.sampled_from([4, 8])),
)
chains = st.lists(passes, min_size=1, max_size=5).map(lambda steps: Chain(tuple(steps)))


@given(chains)
def test_text_round_trips(chain: Chain) -> None:
    assert Chain.parse(str(chain)) == chain
    assert str(Chain.parse(str(chain))) == str(chain)


def test_text_is_canonical() -> None:
    spaced = Chain.parse(" fold , fuse{engine=auto}, int8{ per=channel, mode=static } ")
    assert str(spaced) == "fold,fuse,int8{mode=static}"
    assert str(Chain.parse("int8")) == "int8{mode=dynamic}"
    assert str(Chain.parse("source")) == "source" == str(Chain())


def test_prefixes_are_shared() -> None:
    assert [str(c) for c in Chain.parse("fold,fuse,fp16").prefixes()] == [
        "fold", "fold,fuse", "fold,fuse,fp16",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        ("fold,", "comma"),
        ("fold,,fuse", "cannot be read"),
        ("fold fuse", "cannot be read"),
        ("int8{mode=static", "cannot be read"),
        ("fould", "did you mean fold"),
        ("int8{mod=static}", "did you mean mode"),
        ("int8{mode=statik}", "did you mean static"),
        ("int8{mode=static,mode=static}", "twice"),
        ("int8{samples=x}", "whole number"),
        ("int8{mode}", "option=value"),
        ("int8{mode=dynamic,calibration=entropy}", "takes no calibration"),
        ("int8{mode=static,bits=4}", "needs mode=weights"),
        ("fold{x=1}", "no option 'x'"),
        ("fp16{keep=a-b}", "form"),
    ],
)
def test_bad_chains_say_what_would_be_right(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        Chain.parse(text)


def test_every_built_in_has_typed_options_with_defaults() -> None:
    for name in registry.pass_names():
        cls = registry.load_pass(name)
        assert cls.name == name
        assert cls.summary
        for option in options(cls):
            assert option.default != "MISSING"


def test_a_plug_in_must_not_take_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint("fold", "mine:Fold", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(InputError, match="taken"):
        registry.load_pass("fold")


def test_a_plug_in_is_a_pass_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint("again", "optimize.passes.fold:Fold", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    assert registry.load_pass("again") is Fold
    assert "again" in registry.pass_names()
