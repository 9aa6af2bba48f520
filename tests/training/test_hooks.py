"""A user's training and a user's student: used if they fit, and named in words if they do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimize.errors import InputError, PassFailed
from optimize.passes.training.batches import Batches
from optimize.passes.training.hooks import HookContext, build_student, load_hook, run_hook

torch = pytest.importorskip("torch")
nn = torch.nn
Make = Callable[..., Any]


@pytest.fixture
def context(tmp_path: Path) -> HookContext:
    return HookContext(tmp_path)


def test_a_hook_from_a_file_trains_the_student(
    mlp: Make, rows: Batches, context: HookContext, tmp_path: Path
) -> None:
    file = tmp_path / "own_training.py"
    file.write_text(
        "import torch\n"
        "def train(student, teacher, batches, context):\n"
        "    torch.manual_seed(context.seed)\n"
        "    rate = torch.optim.Adam(student.parameters(), 1e-2)\n"
        "    for epoch in range(5):\n"
        "        for batch in batches.training(epoch):\n"
        "            loss = (student(*batch.args) - teacher(*batch.args)).square().mean()\n"
        "            rate.zero_grad()\n"
        "            loss.backward()\n"
        "            rate.step()\n"
        "    return student\n"
    )
    student, teacher = mlp(16, 1), mlp(16, 0)
    result, notes = run_hook(load_hook(f"{file}:train"), student, teacher, rows, context)
    x = next(rows.validation()).inputs["x"]
    with torch.no_grad():
        before, after = ((net(x) - teacher(x)).square().mean() for net in (student, result))
    assert after < before / 4
    assert notes == ("trained by the hook train",)
    assert torch.equal(student[0].weight, mlp(16, 1)[0].weight)  # the hook had a copy


def test_a_student_is_drawn_by_the_seed(mlp: Make, rows: Batches, tmp_path: Path) -> None:
    file = tmp_path / "students.py"
    file.write_text("import torch\ndef small():\n    return torch.nn.Linear(8, 3)\n")
    torch.manual_seed(7)
    first, again, other = (
        build_student(f"{file}:small", mlp(), replace(rows, seed=seed)).weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def raising(student: Any, teacher: Any, batches: Batches, context: HookContext) -> Any:
    raise RuntimeError("out of patience")


def leaving(student: Any, teacher: Any, batches: Batches, context: HookContext) -> Any:
    raise SystemExit(1)


def forgetting(student: Any, teacher: Any, batches: Batches, context: HookContext) -> Any:
    return None


def widening(student: Any, teacher: Any, batches: Batches, context: HookContext) -> Any:
    return nn.Linear(8, 4)


def shrinking(student: Any, teacher: Any, batches: Batches, context: HookContext) -> Any:
    return nn.Linear(7, 3)


def diverging(student: Any, teacher: Any, batches: Batches, context: HookContext) -> Any:
    nn.init.constant_(student[0].bias, float("nan"))
    return student


def meddling(student: Any, teacher: Any, batches: Batches, context: HookContext) -> Any:
    with torch.no_grad():
        teacher[0].weight.mul_(2)
    return student


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (raising, "raised RuntimeError: out of patience"),
        (leaving, "raised SystemExit"),
        (forgetting, "a NoneType, not a torch.nn.Module"),
        (widening, r"other outputs: output float32\[32, 4\]; the source gives .*\[32, 3\]"),
        (shrinking, "does not run on the teacher's inputs"),
        (diverging, "output output is NaN or infinite"),
        (meddling, "changed the teacher's weights"),
    ],
)
def test_what_does_not_fit_fails_in_words(
    hook: Any, reason: str, mlp: Make, rows: Batches, context: HookContext
) -> None:
    with pytest.raises(PassFailed, match=reason):
        run_hook(hook, mlp(16, 1), mlp(16, 0), rows, context)


def test_a_student_factory(mlp: Make, rows: Batches, tmp_path: Path) -> None:
    file = tmp_path / "own_students.py"
    file.write_text(
        "import torch\n"
        "def small():\n    return torch.nn.Linear(8, 3)\n"
        "def wrong():\n    return torch.nn.Linear(8, 2)\n"
        "def broken():\n    raise ValueError('no weights here')\n"
    )
    assert build_student(f"{file}:small", mlp(), rows).out_features == 3
    with pytest.raises(PassFailed, match="other outputs"):
        build_student(f"{file}:wrong", mlp(), rows)
    with pytest.raises(PassFailed, match="no weights here"):
        build_student(f"{file}:broken", mlp(), rows)
    with pytest.raises(InputError, match="defines no function 'absent'"):
        build_student(f"{file}:absent", mlp(), rows)
