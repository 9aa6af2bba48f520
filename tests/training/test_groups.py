"""What removing channels is held against: a layer that does not read them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 6),
        nn.Conv2d(8, 6, 3),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.ConvTranspose2d(8, 6, 3),
        nn.ConvTranspose2d(8, 12, 3, groups=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [[0], [3, 4, 7]])
def test_a_layer_that_does_not_read_channels_computes_as_if_they_were_zero(
    layer: Any, channels: list[int]
) -> None:
    from optimize.passes.training.groups import _forget

    given = torch.randn(2, 8) if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
    without = given.clone()
    without[:, channels] = 0
    with torch.no_grad():
        want = layer(without)
        _forget(layer, channels)
        torch.testing.assert_close(layer(given), want)
        torch.testing.assert_close(layer(without), want)
