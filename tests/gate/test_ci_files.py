"""The files for build systems: their commands are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

yaml = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).resolve().parents[2]
INPUT = re.compile(r"\$\{\{ inputs\.(\w+) \}\}")


@pytest.fixture
def shell(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a script in the project, as a build does: ``optimize`` is on the path."""
    tools = tmp_path_factory.mktemp("tools")
    (tools / "optimize").write_text(f'#!/bin/sh\nexec {sys.executable} -m optimize "$@"\n')
    (tools / "optimize").chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    python = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])

    def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # As GitHub's runner calls it for `shell: bash`.
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=place, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PATH": path, "PYTHONPATH": python, **environment},
        )  # fmt: skip

    return run


def snippets(word: str) -> dict[str, Any]:
    """The YAML block of the page that holds a word."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", (REPOSITORY / "docs/build-step.md").read_text(),
                        re.MULTILINE | re.DOTALL)  # fmt: skip
    (found,) = [yaml.safe_load(block) for block in blocks if word in block]
    return dict(found)


def test_the_actions_steps_run(shell: Any, place: Path) -> None:
    action = yaml.safe_load((REPOSITORY / "action.yml").read_text())
    inputs = {name: str(entry["default"]) for name, entry in action["inputs"].items()}
    install, step = action["runs"]["steps"]
    assert "pip install" in install["run"]
    assert all("${{" not in one["run"] for one in (install, step))  # no text is run as a script
    inputs |= {"arguments": "--no-cache --max-samples 600", "target": ""}
    environment = {
        name: INPUT.sub(lambda match: inputs[match[1]], value)
        for name, value in step["env"].items()
    }
    summary = place / "summary.md"
    done = shell(step["run"], GITHUB_STEP_SUMMARY=str(summary), **environment)
    assert done.returncode == 0, done.stderr
    assert "optimize check: Passed: 1 of 1" in summary.read_text()
    assert (place / "optimize-results" / "net" / "report.json").is_file()
    assert (
        ElementTree.parse(place / "optimize-results" / "junit.xml").getroot().get("failures") == "0"
    )
    done = shell(step["run"], **{**environment, "AGAINST": "nowhere", "TARGET": "here"})
    assert done.returncode == 2
    assert "--against nowhere is no folder" in done.stderr


def test_the_actions_inputs_in_the_docs_are_known() -> None:
    action = yaml.safe_load((REPOSITORY / "action.yml").read_text())
    (used,) = [
        step for step in snippets("actions/checkout")["jobs"]["models"]["steps"]
        if step["uses"].startswith("OWNER/")
    ]  # fmt: skip
    assert set(used["with"]) <= set(action["inputs"])


def test_the_gitlab_job_runs_and_its_report_is_where_it_says(shell: Any, place: Path) -> None:
    job = snippets("artifacts:\n    when")["models"]
    install, check = job["script"]
    assert install.startswith("pip install")
    done = shell(f"{check} --no-cache")
    assert done.returncode == 0, done.stderr
    report = ElementTree.parse(place / job["artifacts"]["reports"]["junit"]).getroot()
    assert report.tag == "testsuites"
    assert [case.get("name") for case in report.iter("testcase")][:2] == ["kept", "p50=100s"]
