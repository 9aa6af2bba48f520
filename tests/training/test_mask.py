"""Masks: the smallest weights are zero, shapes stay, and the note says what that is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.errors import InputError, NotApplicable
from optimize.passes.training.mask import mask_module

torch = pytest.importorskip("torch")
nn = torch.nn


def weights(module: Any) -> list[Any]:
    kinds = (nn.Conv2d, nn.Linear)
    return [m.weight.detach().numpy() for m in module.modules() if isinstance(m, kinds)]


@settings(max_examples=20, deadline=None)
@given(ratio=st.floats(0, 0.99), seed=st.integers(0, 99))
def test_the_smallest_of_each_layer_go(ratio: float, seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 7))
    masked, _ = mask_module(net, ratio=ratio)
    for before, after in zip(weights(net), weights(masked), strict=True):
        gone = after == 0
        assert gone.sum() == int(ratio * before.size)
        assert np.array_equal(after[~gone], before[~gone])
        assert np.abs(before[gone]).max(initial=0) <= np.abs(before[~gone]).min()


def test_two_of_every_four_inputs_go() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 3), nn.Linear(3, 3))
    masked, notes = mask_module(net, "2:4")
    before, after = weights(net), weights(masked)
    for old, new in zip(before[:2], after[:2], strict=True):
        groups = new.reshape(-1, 4)
        assert ((groups != 0).sum(1) == 2).all()
        kept = np.where(new != 0, np.abs(old), np.inf).reshape(-1, 4).min(1)
        gone = np.where(new == 0, np.abs(old), 0).reshape(-1, 4).max(1)
        assert (gone <= kept).all()
    assert np.array_equal(before[2], after[2])  # three inputs are no four
    assert any("gain nothing" in note for note in notes)


def test_fours_lie_along_the_inputs_of_a_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ConvTranspose2d(4, 6, 3))
    masked, _ = mask_module(net, "2:4")
    for layer, axis in ((masked[0], 1), (masked[1], 0)):
        rows = np.moveaxis(layer.weight.detach().numpy(), axis, -1)
        assert ((rows.reshape(*rows.shape[:-1], -1, 4) != 0).sum(-1) == 2).all()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_of_equal_weights_only_the_share_goes(scope: str) -> None:
    net = nn.Linear(8, 8)
    nn.init.ones_(net.weight)
    masked, _ = mask_module(net, ratio=0.25, scope=scope)
    assert int((masked.weight == 0).sum()) == 16


def test_global_ranking_and_ratio_zero(fashion: Any) -> None:
    masked, notes = mask_module(fashion, ratio=0.5, scope="global")
    shares = [float((w == 0).mean()) for w in weights(masked)]
    total = sum(w.size for w in weights(masked))
    assert sum((w == 0).sum() for w in weights(masked)) == pytest.approx(total / 2, abs=1)
    assert max(shares) - min(shares) > 0.1
    assert "(50%)" in notes[0]
    equal, _ = mask_module(fashion, ratio=0.0, scope="global")
    assert all(np.array_equal(a, b) for a, b in zip(weights(equal), weights(fashion), strict=True))


def test_bad_input() -> None:
    with pytest.raises(InputError, match="below 1"):
        mask_module(nn.Linear(4, 4), ratio=1.0)
    with pytest.raises(NotApplicable, match="no weight"):
        mask_module(nn.ReLU())
