"""Distillation: students improve, runs repeat bit by bit, kills and deadlines lose little."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.errors import InputError, PassFailed
from optimize.models.data import Dataset
from optimize.passes.base import Context
from optimize.passes.chain import Chain
from optimize.passes.training.batches import Batches
from optimize.passes.training.checkpoint import checkpoint_folder
from optimize.passes.training.distill import distill, schedule
from optimize.passes.training.mask import mask_module
from optimize.passes.training.norms import recalibrate
from optimize.passes.training.options import DistillOptions, Progress
from optimize.passes.training.prune import prune_module
from optimize.processes.locks import lock

torch = pytest.importorskip("torch")
nn = torch.nn
Make = Callable[..., Any]
SHORT = DistillOptions(steps=60, lr=1e-2, evaluations=6)


def same(a: Any, b: Any) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


def agreement(a: Any, b: Any, batches: Batches) -> float:
    """Share of held-out samples whose largest score is the same."""
    with torch.no_grad():
        hits = [a(*v.args).argmax(1) == b(*v.args).argmax(1) for v in batches.validation()]
    return float(torch.cat(hits).float().mean())


class TestLearning:
    def test_a_pruned_network_gets_its_classes_back(
        self, fashion: Any, fashion_batches: Batches
    ) -> None:
        pruned, _ = prune_module(fashion, next(fashion_batches.validation()).args, 0.5, multiple=8)
        options = DistillOptions(steps=60, lr=3e-3, evaluations=3)
        student, notes = distill(pruned, fashion, fashion_batches, options)
        before = agreement(pruned, fashion, fashion_batches)
        after = agreement(student, fashion, fashion_batches)
        assert before < 0.5 < 0.7 < after
        assert "compared output (logits)" in notes

    def test_inputs_stay_as_they_are(self, mlp: Make, rows: Batches) -> None:
        student, teacher = mlp(4, 1), mlp(16, 0).train()
        result, _ = distill(student, teacher, rows, SHORT)
        assert same(student, mlp(4, 1))
        assert same(teacher, mlp(16, 0))
        assert result.training == student.training

    def test_an_equal_student_is_returned_at_once(self, mlp: Make, rows: Batches) -> None:
        result, _ = distill(mlp(16, 0), mlp(16, 0), rows, SHORT)
        assert same(result, mlp(16, 0))

    def test_labels_pull_where_the_teacher_is_wrong(self, mlp: Make, rows: Batches) -> None:
        def accuracy(net: Any) -> float:
            with torch.no_grad():
                hits = [net(*b.args).argmax(1) == b.labels for b in rows.validation()]
            return float(torch.cat(hits).float().mean())

        options = replace(SHORT, steps=200, alpha=1.0)
        blind, _ = distill(mlp(16, 1), mlp(16, 0), rows, replace(options, alpha=0.0))
        taught, _ = distill(mlp(16, 1), mlp(16, 0), rows, options)
        assert accuracy(taught) > 0.85 > accuracy(blind)

    def test_masked_weights_stay_zero_if_asked(self, mlp: Make, rows: Batches) -> None:
        masked, _ = mask_module(mlp(16, 0), ratio=0.5)
        kept, _ = distill(masked, mlp(16, 0), rows, replace(SHORT, keep_zeros=True))
        free, _ = distill(masked, mlp(16, 0), rows, SHORT)
        zeros = masked[0].weight == 0
        assert bool((kept[0].weight[zeros] == 0).all())
        assert not bool((free[0].weight[zeros] == 0).all())
        assert not same(kept, masked)

    def test_it_stops_early(self, mlp: Make, rows: Batches) -> None:
        options = replace(SHORT, steps=2000, evaluations=200, patience=2, lr=0.5)
        _, notes = distill(mlp(4, 1), mlp(16, 0), rows, options)
        assert any("2 looks without improvement" in note for note in notes)

    def test_the_start_is_kept_if_nothing_is_better(self, mlp: Make, rows: Batches) -> None:
        teacher = mlp(16, 0)
        near = mlp(16, 0)
        with torch.no_grad():
            near[0].weight.add_(1e-6)
        result, notes = distill(near, teacher, rows, replace(SHORT, lr=1.0, steps=6))
        assert same(result, near)
        assert any("best at step 0" in note for note in notes)


class Heads(nn.Module):
    """Outputs in a dict, a tuple or a tensor, of the same values."""

    def __init__(self, form: str, seed: int = 0, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.form = form
        self.blocks = nn.ModuleList([nn.Linear(8, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = torch.tanh(block(x))
        scores = self.head(x)
        forms = {
            "tensor": scores,
            "tuple": (scores, x, torch.arange(3)),
            "dict": {"logits": scores, "hidden": x, "none": None},
        }
        return forms[self.form]


class TestOutputs:
    @pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
    def test_forms(self, rows: Batches, form: str) -> None:
        _, notes = distill(Heads(form, 1), Heads(form, 0), rows, SHORT)
        first, last = (float(v) for v in notes[1].split("(")[0].split()[2::2])
        assert last < first / 2

    def test_chosen_outputs(self, rows: Batches) -> None:
        options = replace(SHORT, outputs=("logits",), steps=5)
        _, notes = distill(Heads("dict", 1, 4), Heads("dict", 0, 6), rows, options)
        assert notes[0] == "compared logits (logits)"

    def test_features_by_name_and_by_match(self, rows: Batches) -> None:
        teacher, student = Heads("tensor", 0), Heads("tensor", 1)
        matched = replace(SHORT, features=1.0)
        _, notes = distill(student, teacher, rows, matched)
        assert "and 2 features" in notes[0]
        named = replace(matched, layers=("blocks.0=blocks.1",))
        _, notes = distill(student, teacher, rows, named)
        assert "and 1 features" in notes[0]
        with pytest.raises(InputError, match="no module 'block'"):
            distill(student, teacher, rows, replace(matched, layers=("block",)))
        with pytest.raises(InputError, match=r"head gives .* in the student"):
            distill(student, teacher, rows, replace(matched, layers=("blocks.0=head",)))

    def test_outputs_that_cannot_be_compared(self, rows: Batches) -> None:
        with pytest.raises(InputError, match=r"no output to compare: .*output \(\d+, 3\)"):
            distill(nn.Linear(8, 4), Heads("tensor"), rows, SHORT)

    def test_one_number_for_the_whole_batch_is_left_out(
        self, mlp: Make, rows: Batches, tmp_path: Path
    ) -> None:
        class WithMean(nn.Module):
            def __init__(self, net: Any, alone: bool) -> None:
                super().__init__()
                self.net, self.alone = net, alone

            def forward(self, x: Any) -> Any:
                scores = self.net(x)
                mean = {"mean": scores.mean()}
                return mean if self.alone else {"scores": scores, **mean}

        def run(alone: bool) -> str:
            pair = (WithMean(mlp(16, seed), alone) for seed in (1, 0))
            return distill(*pair, rows, SHORT, None, tmp_path)[1][0]

        assert run(alone=False) == "compared scores (logits)"
        with pytest.raises(InputError, match="no output to compare"):
            run(alone=True)

    def test_alpha_needs_labels(self, rows: Batches) -> None:
        blind = Batches(replace(rows.data, labels=None), 32)
        with pytest.raises(InputError, match="alpha needs labels"):
            distill(Heads("tensor", 1), Heads("tensor"), blind, replace(SHORT, alpha=0.5))


class TestFailures:
    def test_a_loss_that_explodes_is_an_error(self, mlp: Make, rows: Batches) -> None:
        options = replace(SHORT, lr=1e30, clip=1e30, steps=40)
        with pytest.raises(
            PassFailed, match=r"the loss is (nan|inf) at step \d+ of 40; a lower lr"
        ):
            distill(mlp(4, 1), mlp(16, 0), rows, options)

    def test_a_teacher_of_nan(self, mlp: Make, rows: Batches) -> None:
        broken = mlp(16, 0)
        nn.init.constant_(broken[0].bias, float("nan"))
        with pytest.raises(PassFailed, match="before training"):
            distill(mlp(4, 1), broken, rows, SHORT)

    @pytest.mark.parametrize(
        "options", [{"alpha": 2.0}, {"temperature": 0.0}, {"lr": -1.0}, {"steps": -1}]
    )
    def test_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="distill:"):
            DistillOptions(**options)

    @pytest.mark.parametrize("option", ["epochs=nan", "epochs=inf", "lr=nan", "features=-1"])
    def test_options_of_the_pass(self, option: str) -> None:
        with pytest.raises(InputError, match=f"distill: {option.partition('=')[0]}"):
            Chain.parse(f"distill{{{option}}}")


class TestTime:
    def test_the_deadline_gives_the_best_so_far_and_a_later_call_goes_on(
        self, mlp: Make, rows: Batches, tmp_path: Path
    ) -> None:
        def run(folder: Path | None, deadline: float | None) -> tuple[Any, tuple[str, ...]]:
            return distill(mlp(4, 1), mlp(16, 0), rows, SHORT, None, folder, deadline)

        _, notes = run(tmp_path, time.monotonic())
        assert any("time limit at step 1 of 60" in note for note in notes)
        resumed, notes = run(tmp_path, None)
        assert "resumed at step 1" in notes
        whole, _ = run(None, None)
        assert same(resumed, whole)
        again, _ = run(tmp_path, None)  # finished: nothing is trained any more
        assert same(again, whole)

    def test_what_stopped_short_of_its_deadline_is_kept_for_a_later_run(
        self, mlp: Make, rows: Batches, tmp_path: Path
    ) -> None:
        root, hour = tmp_path / "training", time.monotonic() + 3600
        context = Context(tmp_path / "own", rows.data, rows.data, deadline=hour, checkpoints=root)
        for deadline, left in ((time.monotonic(), 1), (hour, 0)):
            with checkpoint_folder(context, "a student of its teacher") as folder:
                distill(mlp(4, 1), mlp(16, 0), rows, SHORT, None, folder, deadline)
            assert len(list(root.glob("*/distill.pt"))) == left

    def test_nobody_clears_away_what_is_being_trained(self, rows: Batches, tmp_path: Path) -> None:
        context = Context(tmp_path / "own", rows.data, rows.data, checkpoints=tmp_path / "root")
        with checkpoint_folder(context, "a student of its teacher") as folder:
            assert lock(folder) is None
        assert not folder.exists()

    def test_other_options_begin_anew(self, mlp: Make, rows: Batches, tmp_path: Path) -> None:
        distill(mlp(4, 1), mlp(16, 0), rows, SHORT, None, tmp_path, time.monotonic())
        other = replace(SHORT, lr=5e-3)
        _, notes = distill(mlp(4, 1), mlp(16, 0), rows, other, None, tmp_path)
        assert not any("resumed" in note for note in notes)

    def test_a_damaged_checkpoint_begins_anew(
        self, mlp: Make, rows: Batches, tmp_path: Path
    ) -> None:
        (tmp_path / "distill.pt").write_bytes(b"PK half a file")
        _, notes = distill(mlp(4, 1), mlp(16, 0), rows, SHORT, None, tmp_path)
        assert not any("resumed" in note for note in notes)

    def test_progress(self, mlp: Make, rows: Batches) -> None:
        seen: list[Progress] = []
        distill(mlp(4, 1), mlp(16, 0), rows, SHORT, seen.append)
        assert [p.step for p in seen] == [10, 20, 30, 40, 50, 60]
        assert seen[-1].seconds_left == 0
        assert "step 10/60, held-out loss" in str(seen[0])

    def test_a_run_killed_at_any_time_ends_as_if_it_had_not_been(self, tmp_path: Path) -> None:
        script = tmp_path / "train.py"
        script.write_text(KILLED)
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        whole, pieces = tmp_path / "whole", tmp_path / "pieces"
        command = [sys.executable, str(script)]
        subprocess.run([*command, str(whole)], env=env, check=True, capture_output=True)
        for _ in range(2):
            with subprocess.Popen([*command, str(pieces)], env=env, stdout=subprocess.PIPE) as run:
                assert run.stdout is not None
                for line in run.stdout:  # killed after its second look, wherever it is by then
                    if line.startswith(b"look 2"):
                        break
                run.send_signal(signal.SIGKILL)
            assert run.returncode == -signal.SIGKILL
        done = subprocess.run([*command, str(pieces)], env=env, check=True, capture_output=True)
        assert b"resumed at step" in done.stdout
        first, second = (torch.load(f / "end.pt", weights_only=True) for f in (whole, pieces))
        assert all(torch.equal(value, second[name]) for name, value in first.items())


KILLED = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    import numpy as np
    import torch

    from optimize.models.data import Dataset
    from optimize.passes.training.batches import Batches
    from optimize.passes.training.distill import distill
    from optimize.passes.training.options import DistillOptions

    def net(width, seed):
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(8, width), torch.nn.BatchNorm1d(width), torch.nn.Dropout(0.2)]
        return torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Linear(width, 3)).eval()

    looks = 0

    def look(progress):
        global looks
        looks += 1
        print("look", looks, flush=True)

    values = np.random.default_rng(0).standard_normal((512, 8)).astype(np.float32)
    data = Dataset("rows", {"x": [v[None] for v in values]}, None, True)
    options = DistillOptions(steps=240, evaluations=12, dropout=True, patience=0)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    result, notes = distill(net(6, 1), net(32, 0), Batches(data, 16), options, look, folder)
    print(notes)
    torch.save(result.state_dict(), folder / "end.pt")
    """
)


class TestNorms:
    def test_statistics_are_plain_averages_over_real_batches(self) -> None:
        rng = np.random.default_rng(0)
        values = (rng.standard_normal((200, 4)) * [1, 2, 3, 4] + [5, 0, -5, 1]).astype(np.float32)
        batches = Batches(Dataset("rows", {"x": [v[None] for v in values]}, None, True), 45, 0.1)
        norm = nn.BatchNorm1d(4, momentum=0.0)
        net = nn.Sequential(norm, nn.Dropout(0.5)).train()
        assert recalibrate(net, batches.training(0))
        chunks = [b.inputs["x"].numpy().astype(np.float64) for b in batches.training(0)]
        want = np.mean([chunk.mean(0) for chunk in chunks], 0)
        spread = np.mean([chunk.var(0, ddof=1) for chunk in chunks], 0)
        np.testing.assert_allclose(norm.running_mean, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.running_var, spread, rtol=1e-4)
        assert norm.momentum == 0.0
        assert not norm.training

    def test_single_images_have_statistics(self) -> None:
        rng = np.random.default_rng(0)
        values = (3 + 2 * rng.standard_normal((50, 4, 6, 6))).astype(np.float32)
        batches = Batches(Dataset("images", {"x": [v[None] for v in values]}, None, True), 1)
        norm = nn.BatchNorm2d(4)
        assert recalibrate(norm, batches.training(0))
        seen = np.concatenate([b.inputs["x"].numpy() for b in batches.training(0)], dtype=float)
        np.testing.assert_allclose(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-4)
        spread = seen.var((2, 3), ddof=1).mean(0)
        np.testing.assert_allclose(norm.running_var, spread, rtol=1e-4)

    def test_what_never_sees_two_values_keeps_its_statistics(self, rows: Batches) -> None:
        norm = nn.BatchNorm1d(8)
        norm.running_mean.fill_(2.0)
        norm.running_var.fill_(5.0)
        assert not recalibrate(norm, replace(rows, size=1).training(0))
        assert bool((norm.running_mean == 2).all())
        assert bool((norm.running_var == 5).all())

    def test_without_norms_nothing_happens(self, mlp: Make, rows: Batches) -> None:
        assert not recalibrate(mlp(), rows.training(0))


def test_the_schedule_rises_and_falls_to_zero() -> None:
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[9] == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
