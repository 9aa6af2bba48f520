"""A project folder in which the documentation's commands run, and a check of a whole page.

What differs from a user's shell:

- latency budgets are a thousand times larger, so that no verdict depends on how fast or how quiet
  the machine is, and fewer calls are timed;
- ``pip`` installs into the project, without network; ``xdg-open`` stands for the browser.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import REPOSITORY, Step, missing, steps_of
from shipped import FASHION

SAMPLES = 400  # of the example's 3,000 images
SHIM = """\
#!{python}
import re, sys

LARGER = dict(us="ms", ms="s", s="000s")
MODELLESS = ("verify", "report", "doctor", "passes", "cache", "init", "--help", "--version")

def larger(budget):
    return re.sub(r"^(p[0-9.]+=[0-9.]+)([um]?s)$", lambda m: m[1] + LARGER[m[2]], budget)

words = [larger(word) for word in sys.argv[1:]]
if words[0] == "doctor":
    words += ["--seconds", "1"]
elif words[0] not in MODELLESS:
    words += ["--max-samples", "300"]
    # Few calls show as much as the pages tell of.
    words += ["--tolerance", "300%"] if words[0] == "check" else ["--confidence", "0.6"]
sys.argv = ["optimize", *words]
from optimize.cli import main

main()
"""


@dataclass(frozen=True)
class Project:
    """A folder with what the pages' commands need.

    Attributes:
        folder: where they run.
        tools: goes before the PATH.
        done: exit codes and outputs by command; one that several pages show is run once.
    """

    folder: Path
    tools: Path
    done: dict[str, tuple[int, str]] = field(default_factory=dict)

    def run(self, step: Step, before: int = 0) -> tuple[int, str]:
        """Exit code and output of a command, after one that exited with ``before``."""
        if step.command == "echo $?":
            return 0, str(before)
        words = " ".join(step.command.replace("\\\n", " ").split())
        if words not in self.done:
            self.done[words] = self._run(_in_shell(step, self.folder))
        return self.done[words]

    def _run(self, command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return done.returncode, done.stdout

    def _environment(self) -> dict[str, str]:
        packages = self.folder / "site-packages"
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(self.tools), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(packages)]),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "COLUMNS": "200",
            "PIP_TARGET": str(packages),
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one the other way round: not isolated
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository's examples, with fewer images; ``optimize`` and other tools on the PATH."""
    pytest.importorskip("torch")
    folder, tools = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("tools")
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    with np.load(FASHION / "data.npz") as stored:
        few = {name: array[:SAMPLES] for name, array in stored.items()}
    np.savez(folder / "examples" / "fashion" / "data.npz", **few)
    _tool(tools / "optimize", SHIM.format(python=sys.executable))
    _tool(tools / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    _tool(tools / "pip", f'#!/bin/sh\nexec {sys.executable} -m pip -q "$@"\n')
    _tool(tools / "xdg-open", f'#!/bin/sh\necho "$1" >> {folder}/opened\n')
    return Project(folder, tools)


def _tool(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def own_files(
    project: Project, digits_file: Path, digits_net: Any, all_digits: Any, linear_onnx: Path
) -> None:
    """Small files under the names that README.md gives to a user's own."""
    import torch

    (project.folder / "net.py").write_text(digits_file.read_text())
    image, labels = all_digits
    np.savez(project.folder / "val.npz", image=image[1400:1560], labels=labels[1400:1560])
    np.savez(project.folder / "train.npz", image=image[:192], labels=labels[:192])
    for name in ("model.onnx", "a.onnx", "b.onnx"):
        shutil.copy(linear_onnx, project.folder / name)
    traced: Any = torch.jit.trace(digits_net, torch.zeros(1, 1, 8, 8))  # type: ignore[no-untyped-call]
    traced.save(str(project.folder / "model.pt"))
    torch.save(digits_net.state_dict(), project.folder / "net.pth")
    _bert(project.folder)


@pytest.fixture(scope="module")
def linear_onnx(all_digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits that is one matrix product, fitted by least squares."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    image, labels = all_digits
    flat = image[:1400].reshape(1400, -1)
    weights = np.linalg.lstsq(flat, np.eye(10)[labels[:1400]], rcond=None)[0].astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights, "weights")],
    )
    path = tmp_path_factory.mktemp("linear") / "model.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def _bert(folder: Path) -> None:
    """A tiny Hugging Face model, texts of three lengths, and a metric of its outputs."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder / "bert")
    (folder / "glosses").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        ids = rng.integers(0, 50, 4 + number % 3)
        mask, kinds = np.ones_like(ids), np.zeros_like(ids)
        np.savez(
            folder / "glosses" / f"{number:02}.npz",
            input_ids=ids, attention_mask=mask, token_type_ids=kinds, labels=number % 2,
        )  # fmt: skip
    (folder / "probe.py").write_text("def accuracy(outputs, labels):\n    return 0.5\n")


CheckPage = Callable[[str], None]


@pytest.fixture
def check_page(project: Project) -> CheckPage:
    """Run a page's commands in order; each must exit with 0, unless ``echo $?`` asks for its code."""

    def check(page: str) -> None:
        steps = [step for step in steps_of(page) if not step.marked]
        code = 0
        for number, step in enumerate(steps):
            code, output = project.run(step, code)
            asked = steps[number + 1 :] and steps[number + 1].command == "echo $?"
            assert code == 0 or asked, f"{step.command}\nexited with {code}: {output}"
            lost = missing(step.shown, output)
            assert not lost, f"{step.command}\nis shown with {lost}\nbut printed {output}"
            if step.command == "echo $?":
                assert [output] == list(step.shown)

    return check


def _in_shell(step: Step, folder: Path) -> str:
    if step.interpreter == "bash":
        return step.command
    (folder / "block.py").write_text(step.command)
    return "python block.py"
