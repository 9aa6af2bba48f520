"""The files of a result folder: written by a run, drawn again by the command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_reports import EVERY, hostile, many, none_kept, profile

from optimize.errors import InputError
from optimize.reports import folder as reports
from optimize.reports.samples import pack, unpack
from optimize.results.output import add, write

DRAWN = {"report.html", "report.md"} | {
    f"{name}.{kind}"
    for name in ("accuracy-latency", "latency-distribution")
    for kind in ("png", "svg")
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A result folder as an earlier version wrote it, with samples."""
    measured = {"source": profile(14.0, 400), "fold,fuse,int8{mode=static}": profile(6.0, 1500, 1)}
    extra: dict[str, str | bytes] = {"samples.npz": pack(measured)}
    write(tmp_path / "out", many(5).report.to_json(), {"schema": 1}, None, extra)
    return tmp_path / "out"


def run(*words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", *map(str, words)],
        capture_output=True, text=True, timeout=120, **options,
    )  # fmt: skip


def holds_its_digests(folder: Path) -> bool:
    digests = json.loads((folder / "manifest.json").read_text())["files"]
    found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in digests}
    return bool(found == digests) and {p.name for p in folder.iterdir()} == {
        *digests,
        "manifest.json",
    }


def test_the_command_prints_and_draws(folder: Path) -> None:
    pytest.importorskip("plotly", reason="the extra report is not installed")
    done = run("report", folder)
    assert done.returncode == 0, done.stderr
    assert "fold,fuse,int8{mode=static}" in done.stdout
    assert "budget 20 ms" in done.stdout
    assert str(folder / "report.html") in done.stdout
    assert {path.name for path in folder.iterdir()} >= DRAWN
    assert holds_its_digests(folder)
    assert run("report", folder).returncode == 0
    assert holds_its_digests(folder)


def test_it_draws_elsewhere_and_leaves_the_folder_alone(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="the extra report is not installed")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = run("report", folder, "--out", tmp_path / "a" / "b")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == DRAWN
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["report.json", "samples.npz", "manifest.json"])
def test_a_report_that_was_changed_is_no_evidence(folder: Path, name: str) -> None:
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(text.replace(b"kept", b"lost") + b" ")
    if name == "manifest.json":
        manifest = json.loads(text) | {"files": None}
        (folder / name).write_text(json.dumps(manifest))
        with pytest.raises(InputError, match="report.json is missing or was changed"):
            reports.read(folder)
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match=rf"{name} is missing or was changed|no {name}"):
        reports.read(folder)


def test_what_is_no_result_is_one_sentence(tmp_path: Path) -> None:
    for damage in (None, "", "{}", '{"schema": 9}'):
        if damage is not None:
            (tmp_path / "report.json").write_text(damage)
        done = run("report", tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("optimize: ")


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["plotly", "plotly.offline", "jinja2", "matplotlib"]))
sys.argv = ["optimize", *sys.argv[1:]]
from optimize.cli import main
main()
"""


def test_without_the_extra_it_says_what_to_install(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "report", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'tailfit[report]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "budget 20 ms" in done.stdout  # the terminal needs no extra
    assert not (folder / "report.html").exists()


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plotly", "plotly.offline", "jinja2", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_run_without_the_extra_writes_text_and_samples(no_extra: None) -> None:
    found, problem = reports.for_run(none_kept().report, {"source": profile(40.0, 400)})
    assert set(found) == {"report.md", "samples.npz"}
    assert problem is None
    with pytest.raises(InputError, match="tailfit"):
        reports.drawn(none_kept())


def test_a_run_writes_everything_with_the_extra() -> None:
    pytest.importorskip("plotly", reason="the extra report is not installed")
    found, problem = reports.for_run(none_kept().report, {"source": profile(40.0, 400)})
    assert set(found) == DRAWN | {"samples.npz"}
    assert problem is None
    assert b"](accuracy-latency.png)" in found["report.md"]
    quick, _ = reports.for_run(none_kept().report, {}, quick=True)
    assert set(quick) == {"report.md", "samples.npz"}


@pytest.mark.parametrize("problem", [ValueError("no such font"), KeyboardInterrupt()])
def test_a_fault_of_drawing_costs_no_result(
    problem: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> str:
        raise problem

    monkeypatch.setattr(reports, "page", fail)
    found, said = reports.for_run(none_kept().report, {})
    assert set(found) == {"report.md", "samples.npz"}
    assert said is not None
    assert said.startswith("report.html could not be drawn")


@pytest.mark.parametrize("name", ["none_kept", "hostile", "unmeasured", "without_samples"])
def test_pictures_are_whole(name: str) -> None:
    pictures = pytest.importorskip("optimize.reports.pictures")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    found = pictures.pictures(EVERY[name]())
    expected = {"unmeasured": 0, "without_samples": 2}.get(name, 4)
    assert len(found) == expected
    for file, content in found.items():
        if file.endswith(".png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
            assert len(content) < 300_000
        else:
            assert ElementTree.fromstring(content).tag.endswith("svg")


def test_pictures_come_out_the_same_again() -> None:
    pictures = pytest.importorskip("optimize.reports.pictures")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    assert pictures.pictures(hostile()) == pictures.pictures(hostile())


def test_an_added_file_is_whole_or_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(folder, {"report.md": "first"})

    def full(self: Path, *_: Any) -> int:
        with self.open("wb") as stream:
            stream.write(b"ha")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(Exception, match="No space left on device"):
            add(folder, {"report.md": b"second"})
    assert (folder / "report.md").read_text() == "first"
    assert holds_its_digests(folder)


def test_timings_go_by_the_names_that_the_report_gives() -> None:
    chain = "distill{hook=/home/ann/hooks.py:train}"
    found, _ = reports.for_run(none_kept().report, {chain: profile(40.0, 400)}, quick=True)
    assert list(unpack(found["samples.npz"])) == ["distill{hook=hooks.py:train}"]
