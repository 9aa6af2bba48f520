"""``optimize cache``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimize.cache.entries import key_of
from optimize.cache.store import TRAINING, Store
from optimize.processes.locks import lock


def cache(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", "cache", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with Store(tmp_path / "optimize") as store:
        for number, chain in enumerate(["fold", "fold,fuse", "fold,fuse,fp16"]):
            store.put(key_of({"n": number}), bytes(1000 * (number + 1)), {"what": chain})
        store.get(key_of({"n": 0}))
    return tmp_path / "optimize"


def test_entries_are_listed_last_used_first(filled: Path) -> None:
    rows = [line.split() for line in cache("ls", "--cache", filled).stdout.splitlines()]
    assert [row[-1] for row in rows] == ["fold", "fold,fuse,fp16", "fold,fuse"]
    assert [row[0] for row in rows] == [key_of({"n": n})[:12] for n in (0, 2, 1)]
    assert [row[1:3] for row in rows] == [["1", "kB"], ["3", "kB"], ["2", "kB"]]


def test_size_and_clear(filled: Path) -> None:
    assert cache("size", "--cache", filled).stdout == f"3 entries, 6 kB of 20 GB in {filled}\n"
    with Store(filled) as store:
        store.get(key_of({"n": 2}))
        done = cache("clear", "--cache", filled)
        assert done.stdout == "removed 2 entries, 3 kB; 1 in use by a run left\n"
    assert cache("clear", "--cache", filled).stdout == "removed 1 entry, 3 kB\n"
    assert cache("ls", "--cache", filled).stdout == ""


def test_clear_removes_our_checkpoints_and_not_those_of_a_training(filled: Path) -> None:
    (filled / "training").mkdir()  # of whoever's folder it is
    for name in ("one", "two", "busy"):
        (filled / TRAINING / name).mkdir(parents=True)
    running = lock(filled / TRAINING / "busy", shared=True)
    assert running is not None
    done = cache("clear", "--cache", filled)
    os.close(running)
    assert done.stdout == (
        "removed 3 entries, 6 kB, and 2 unfinished trainings; 1 in use by a run left\n"
    )
    assert [path.name for path in (filled / TRAINING).iterdir()] == ["busy"]
    assert (filled / "training").is_dir()


def test_the_default_place_is_the_users_cache_folder(filled: Path) -> None:
    done = cache("size", XDG_CACHE_HOME=str(filled.parent))
    assert done.stdout == f"3 entries, 6 kB of 20 GB in {filled}\n"


def test_looking_creates_nothing(tmp_path: Path) -> None:
    for word in ("ls", "size", "clear"):
        assert cache(word, "--cache", tmp_path / "none").returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["bad"], ["size", "--cache", __file__], []])
def test_wrong_words_are_one_sentence_and_exit_code_2(words: list[str]) -> None:
    done = cache(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_it_starts_without_heavy_imports() -> None:
    code = "import sys; sys.argv=['optimize','cache','size','--cache','/nowhere']\nimport optimize.cli\ntry: optimize.cli.main()\nexcept SystemExit: pass\nprint({'torch','numpy','onnx','onnxruntime'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
