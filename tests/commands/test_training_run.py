"""Training and pruning through the command, on the shipped network and its real data."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from shipped import FASHION

if TYPE_CHECKING:
    from commands.conftest import Run

pytest.importorskip("torch_pruning")
ARCH = f"{FASHION / 'arch.py'}:resnet"
HOOKS = """
import torch

def raises(student, teacher, batches, context):
    raise RuntimeError("out of luck")

def no_arguments():
    return None

def nothing(student, teacher, batches, context):
    return None

def nan(student, teacher, batches, context):
    with torch.no_grad():
        next(student.parameters()).fill_(float("nan"))
    return student

def fine(student, teacher, batches, context):
    print("hooks may print")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.0001)
    context.progress(f"{len(batches.data)} samples to train on")
    return student
"""


@pytest.fixture(scope="module")
def words(fashion: Path) -> list[Any]:
    return [
        *(FASHION / "resnet.safetensors", "--arch", ARCH, "--data", fashion / "val.npz"),
        *("--calibration", fashion / "cal.npz", "--budget", "p99=10s", "--floor", "drop=0.9"),
        *("--threads", 1, "--max-samples", 1000),
    ]


def rows(text: str) -> dict[str, Any]:
    return {row["chain"]: row for row in json.loads(text)["variants"]}


def test_a_bad_hook_costs_its_own_variant(optimize: Run, words: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "hooks.py"
    file.write_text(HOOKS)
    names = ("raises", "no_arguments", "nothing", "nan", "fine")
    chains = {name: f"distill{{hook={file}:{name}}}" for name in names}
    options = [word for chain in chains.values() for word in ("--chain", chain)]
    done = optimize(*words, *options, "--json", "--out", tmp_path / "out")
    assert done.code == 0, done.stderr
    # Reports name no folder of this machine.
    found = {chain.rpartition(":")[2]: row for chain, row in rows(done.stdout).items()}
    for name, reason in (
        ("raises", "raised RuntimeError: out of luck"),
        ("no_arguments", "takes 0 positional arguments but 4 were given"),
        ("nothing", "returned a NoneType, not a torch.nn.Module"),
        ("nan", "is NaN or infinite"),
    ):
        assert found[f"{name}}}"]["status"] == "failed"
        assert reason in found[f"{name}}}"]["reason"]
    assert found["fine}"]["status"] == "kept"


def test_masks_are_explained(optimize: Run, words: list[Any], tmp_path: Path) -> None:
    chains = ("prune{ratio=0.7,kind=mask}", "prune{ratio=0.25,kind=2:4}")
    options = [word for chain in chains for word in ("--chain", chain)]
    done = optimize(*words, *options, "--json", "--out", tmp_path / "out")
    assert done.code in (0, 3), done.stderr  # 3: too disturbed to decide
    found = rows(done.stdout)
    for chain, share in zip(chains, ("70%", "50%"), strict=True):
        row = found[chain]
        assert row["size_bytes"] == pytest.approx(found["source"]["size_bytes"], rel=0.05)
        assert any("are zeros, but the kernels are dense" in text for text in row["explanation"])
        assert any(f"{share} of" in note and "multiply zeros" in note for note in row["notes"])


def test_a_killed_training_goes_on_where_it_was(
    optimize: Run, words: list[Any], cache: Path, tmp_path: Path
) -> None:
    chain = "prune{ratio=0.5,on=module},distill{epochs=400}"
    options = ["--chain", chain, "--cache", cache, "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "optimize", *map(str, (*words, *options))]
    run = subprocess.Popen(
        [*command, "--time-limit", "none"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while not list((cache / "v1" / "training").glob("*/distill.pt")):
            assert run.poll() is None
            time.sleep(0.05)
    finally:
        run.kill()
        run.wait()
    done = optimize(*words, *options, "--time-limit", "24s", "--json", "--verbose")
    assert done.code in (0, 3), done.stderr
    notes = " ".join(rows(done.stdout)[chain]["notes"])
    assert "resumed at step" in notes
    assert "stopped by the time limit at step" in notes
    # It is not finished: a run with more time goes on from here.
    assert list((cache / "v1" / "training").glob("*/distill.pt"))
    listed = optimize("cache", "ls", "--cache", cache).stdout
    assert "prune{ratio=0.5,on=module} of" in listed
    assert "distill{epochs=400} of" not in listed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--distill", "missing.py:train"), "--distill 'missing.py:train': missing.py does not"),
        (("--student", f"{FASHION / 'arch.py'}:huge"), "defines no function 'huge'"),
        (("--train", "missing.npz", "--prune", "0.5"), "missing.npz"),
        (("--prune", "p95"), "--prune p95 needs a budget on it"),
    ],
)
def test_bad_input_is_one_sentence(
    options: tuple[str, ...], sentence: str, optimize: Run, words: list[Any], tmp_path: Path
) -> None:
    done = optimize(*words, *options, "--out", tmp_path / "out")
    assert done.code == 2
    assert sentence in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("optimize: ")
    assert not (tmp_path / "out").exists()


def test_budgets_decide_how_much_goes(optimize: Run, words: list[Any], tmp_path: Path) -> None:
    """On budgets whose outcome no machine's speed can change."""
    chains = ("prune{on=module,to=p99}", "prune{to=p99}", "prune{to=p50}")
    options = [word for chain in chains for word in ("--chain", chain)]
    done = optimize(*words, *options, "--json", "--out", tmp_path / "out")
    assert done.code == 0, done.stderr
    found = rows(done.stdout)
    for chain in chains[:2]:
        assert found[chain]["status"] == "skipped"
        assert "nothing has to go" in found[chain]["reason"]
    assert "no budget on p50 is declared" in found[chains[2]]["reason"]


def test_options_add_chains_to_the_plan(
    optimize: Run, words: list[Any], fashion: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text(HOOKS)
    own = ("--distill", f"{file}:fine", "--student", ARCH, "--prune", "0.5")
    done = optimize(
        *words, *own, "--train", fashion / "cal.npz", "--time-limit", "1s", "--json",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code in (0, 1, 3), done.stderr
    for row in rows(done.stdout).values():  # of what was not built nothing is known
        assert row["status"] == "undecided" or "left no time to build it" not in row["reason"]
    chains = list(rows(done.stdout))
    assert chains[1].startswith("student{arch=")
    assert any(chain.startswith("prune{ratio=0.5,on=module},distill{hook=") for chain in chains)
    assert "fold,fuse" in chains
