"""The hook that is shown in examples/hooks trains what it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shipped import FASHION

from optimize.passes.training.batches import Batches
from optimize.passes.training.hooks import HookContext, load_hook, run_hook
from optimize.passes.training.prune import prune_module

torch = pytest.importorskip("torch")
HOOK = f"{FASHION.parent / 'hooks' / 'trainer.py'}:train"


def loss(student: Any, teacher: Any, batches: Batches) -> float:
    with torch.no_grad():
        pairs = [(student(*b.args), teacher(*b.args)) for b in batches.validation()]
    return float(sum((a - b).square().mean() for a, b in pairs))


def test_it_wins_back_what_pruning_lost(
    fashion: Any, fashion_batches: Batches, tmp_path: Path
) -> None:
    pruned, _ = prune_module(fashion, next(fashion_batches.validation()).args, 0.5)
    said: list[str] = []
    context = HookContext(tmp_path, progress=said.append)
    trained, notes = run_hook(load_hook(HOOK), pruned, fashion, fashion_batches, context)
    before, after = (loss(net, fashion, fashion_batches) for net in (pruned, trained))
    assert after < 0.8 * before
    assert "trained by the hook train" in notes
    assert said[-1].startswith("epoch 5/5")


def test_it_stops_at_the_deadline(fashion: Any, fashion_batches: Batches, tmp_path: Path) -> None:
    pruned, _ = prune_module(fashion, next(fashion_batches.validation()).args, 0.5)
    context = HookContext(tmp_path, deadline=0.0, progress=lambda _: None)
    trained, _ = run_hook(load_hook(HOOK), pruned, fashion, fashion_batches, context)
    same = zip(trained.parameters(), pruned.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
