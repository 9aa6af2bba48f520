"""Every command that README.md and docs/*.md show is run, and what they show of its output holds.

A page's blocks run in order in one project folder: the repository's examples with 400 of their
images, and small files under the names that README.md uses. What differs from a user's shell:

- latency budgets are a thousand times larger, so that no verdict depends on how fast or how quiet
  the machine is, and fewer calls are timed;
- ``pip`` installs into the project, without network; ``xdg-open`` stands for the browser.

A line marked ``# not run by the tests: REASON`` is left out. Shown output is compared line by line
without what may differ from run to run: figures, names of chains, blanks, and ``…``. A command must
exit with 0 unless ``echo $?`` follows.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shipped import FASHION

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md")))
MARKER = re.compile(r"# not run by the tests: (\w.+)$")
FENCE = re.compile(r"^```(console|bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKED_AT_MOST = 8
SAMPLES = 400
END = "\x1e"  # written behind each command's output, with its exit code


@dataclass(frozen=True)
class Step:
    """A command of a page, and the output that the page shows of it."""

    page: str
    command: str
    shown: tuple[str, ...] = ()
    interpreter: str = "bash"

    @property
    def marked(self) -> bool:
        return MARKER.search(self.command) is not None

    @property
    def asks_for_code(self) -> bool:
        return self.command == "echo $?"


def steps_of(page: str) -> Iterator[Step]:
    """The commands of a page in order."""
    for language, body in FENCE.findall((REPOSITORY / page).read_text()):
        if language == "console":
            yield from _console(page, body)
        else:
            yield Step(page, body, interpreter="python" if language == "python" else "bash")


def _console(page: str, body: str) -> Iterator[Step]:
    step: Step | None = None
    for line in body.splitlines():
        if line.startswith("$ "):
            if step:
                yield step
            step = Step(page, line.removeprefix("$ "))
        elif step and step.command.endswith("\\"):
            step = replace(step, command=f"{step.command}\n{line}")
        else:
            assert step, f"{page}: a console block begins with {line!r}, not with a command"
            step = replace(step, shown=(*step.shown, line))
    if step:
        yield step


# What may differ between two right runs, and what stands for it.
NAMES = "source fold fuse session equalize smooth fp16 bf16 int8 student distill prune strip".split()
PASS = rf"\b(?:{'|'.join(NAMES)})\b(?:{{[^{{}}]*}})?"
VARYING = (
    (re.compile(rf"{PASS}(?:,{PASS})*(?:@\w+)?"), "CHAIN"),
    (re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?(?: ?(?:%|(?:ns|us|ms|s|kB|MB|GB|x)\b))?"), "N"),
    (re.compile(r"(?<!\S)\?(?!\S)"), "N"),
    (re.compile(r"(?:N as fast as|no faster than) the CHAIN(?: \([^)]*\))?"), "SPEED"),
    (re.compile(r"➜"), ""),
)


def stable(line: str) -> str:
    """A line without what may differ."""
    for pattern, name in VARYING:
        line = pattern.sub(name, line)
    return " ".join(line.split())


def missing(shown: tuple[str, ...], output: str) -> list[str]:
    """The shown lines that do not occur in an output."""
    lines = [stable(line) for line in output.splitlines()]
    return [
        line
        for line in shown
        if line != "…"
        and not any(
            re.fullmatch(".*".join(map(re.escape, stable(line).split("…"))), given)
            for given in lines
        )
    ]


SHIM = """\
#!{python}
import re, sys

LARGER = dict(us="ms", ms="s", s="000s")
MODELLESS = ("verify", "report", "doctor", "passes", "cache", "--help", "--version")

def larger(budget):
    return re.sub(r"^(p[0-9.]+=[0-9.]+)([um]?s)$", lambda m: m[1] + LARGER[m[2]], budget)

words = [larger(word) for word in sys.argv[1:]]
if words[0] == "doctor":
    words += ["--seconds", "1"]
elif words[0] not in MODELLESS:
    words += ["--max-samples", "600"]
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
    """

    folder: Path
    tools: Path

    def run(self, steps: list[Step]) -> list[tuple[Step, int, str]]:
        """Run commands one after the other in one shell; each with its exit code and output."""
        ends = f"code=$?; printf '{END}%s{END}' $code; (exit $code)"
        script = "".join(f"{self._written(step, i)}\n{ends}\n" for i, step in enumerate(steps))
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        parts = done.stdout.split(END)
        return [
            (step, int(code), output)
            for step, output, code in zip(steps, parts[::2], parts[1::2], strict=False)
        ]

    def _written(self, step: Step, number: int) -> str:
        if step.interpreter == "bash":
            return step.command
        path = self.folder / f"block-{number}.py"
        path.write_text(step.command)
        return f"python {path.name}"

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


@pytest.fixture
def project(
    tmp_path: Path, digits_file: Path, digits_net: Any, all_digits: Any, digits_onnx: Path
) -> Project:
    torch = pytest.importorskip("torch")
    folder, tools = tmp_path / "project", tmp_path / "tools"
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    with np.load(FASHION / "data.npz") as stored:
        few = {name: array[:SAMPLES] for name, array in stored.items()}
    np.savez(folder / "examples" / "fashion" / "data.npz", **few)
    _tool(tools / "optimize", SHIM.format(python=sys.executable))
    _tool(tools / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    _tool(tools / "pip", f'#!/bin/sh\nexec {sys.executable} -m pip -q "$@"\n')
    _tool(tools / "xdg-open", f'#!/bin/sh\necho "$1" >> {folder}/opened\n')
    # The files of README.md's examples.
    (folder / "net.py").write_text(digits_file.read_text())
    image, labels = all_digits
    np.savez(folder / "val.npz", image=image[1400:1560], labels=labels[1400:1560])
    np.savez(folder / "train.npz", image=image[:512], labels=labels[:512])
    for name in ("model.onnx", "a.onnx", "b.onnx"):
        shutil.copy(digits_onnx, folder / name)
    torch.jit.trace(digits_net, torch.zeros(1, 1, 8, 8)).save(str(folder / "model.pt"))
    torch.save(digits_net.state_dict(), folder / "net.pth")
    _weights(digits_net, folder / "weights.safetensors")
    _bert(folder)
    return Project(folder, tools)


def _tool(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _weights(net: Any, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(net.state_dict(), path)


def _bert(folder: Path) -> None:
    """A tiny Hugging Face model, texts of several lengths, and a metric that reads its outputs."""
    transformers = pytest.importorskip("transformers")
    transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=32,
        )
    ).save_pretrained(folder / "bert")  # fmt: skip
    (folder / "glosses").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        ids = rng.integers(0, 50, (1, 4 + number % 3))
        mask, kinds = np.ones_like(ids), np.zeros_like(ids)
        np.savez(
            folder / "glosses" / f"{number}.npz",
            input_ids=ids, attention_mask=mask, token_type_ids=kinds, labels=number % 2,
        )  # fmt: skip
    (folder / "probe.py").write_text("def accuracy(outputs, labels):\n    return 0.5\n")


@pytest.mark.parametrize("page", PAGES)
def test_commands_do_what_the_page_shows(page: str, project: Project) -> None:
    steps = [step for step in steps_of(page) if not step.marked]
    results = project.run(steps)
    for (step, code, output), following in zip(
        results, [*(step for step in steps[1:]), None], strict=False
    ):
        told = following is not None and following.asks_for_code
        assert code == 0 or told or step.asks_for_code, f"{step.command}\n{code}: {output}"
        lost = missing(step.shown, output)
        assert not lost, f"{step.command}\nshows {lost}\nbut printed {output}"
        if step.asks_for_code:
            assert output.split() == list(step.shown)
    assert len(results) == len(steps)
    if any("--open" in step.command for step in steps):
        assert (project.folder / "opened").read_text().strip().endswith("report.html")


def test_few_commands_are_left_out_and_each_with_a_reason() -> None:
    everything = [step for page in PAGES for step in steps_of(page)]
    marked = [step for step in everything if step.marked]
    assert len(everything) > 20
    assert len(marked) <= MARKED_AT_MOST, [step.command for step in marked]


def test_make_demo_is_the_command_that_the_pages_show() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    words = makefile.partition("$(BIN)/optimize ")[2].partition("\n\n")[0]
    demo = ["optimize", *words.replace("\\\n", " ").split()]
    for page in ("README.md", "docs/tutorial.md"):
        commands = [step.command.replace("\\\n", " ").split() for step in steps_of(page)]
        assert demo in commands, page


Lines = Callable[..., tuple[str, ...]]


@pytest.mark.parametrize(
    ("shown", "printed", "holds"),
    [
        ("p99 holds: 0 of 550 calls over 20 ms", "p99 holds: 1 of 3850 calls over 20 s", True),
        ("➜ fold,fuse  kept  0.1  …", "  fold,fuse,int8{mode=static}  kept  0.2 0.3  1x", True),
        ("fold,fuse  kept …", "fold,fuse  too_slow  0.2", False),
        ("Kept: fold, 1.9x as fast as the source", "Kept: fuse, no faster than the source", True),
        ("Written to a/model.onnx", "Written to b/model.onnx", False),
        ("…", "", True),
    ],
)
def test_what_may_differ_is_not_compared_and_all_else_is(
    shown: str, printed: str, holds: bool
) -> None:
    assert (not missing((shown,), printed + "\n")) == holds
