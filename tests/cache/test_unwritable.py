"""A disk that is full and a folder that is read only: one sentence, nothing spoilt, work goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optimize.cache.entries import key_of
from optimize.cache.store import Store
from optimize.errors import InputError

OLD, NEW = key_of({"n": "old"}), key_of({"n": "new"})

USE = """
import json, sys
from pathlib import Path
from optimize.cache.store import Store
said = []
old, new, size = sys.argv[2], sys.argv[3], int(sys.argv[4])
with Store(Path(sys.argv[1]), report=said.append) as store:
    answers = []
    for _ in range(2):
        with store.turns.building(new):
            found = store.document(old)
            answers.append([len(found) if found else None, store.put(new, b"n" * size) is not None])
print(json.dumps([answers, said]))
"""


def use(folder: Path, size: int = 2_000_000, **options: Any) -> tuple[list[list[Any]], list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", USE, str(folder), OLD, NEW, str(size)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    answers, said = json.loads(done.stdout)
    return answers, said


def intact(folder: Path) -> bool:
    """Whether the old entry is whole, and nothing else is there."""
    said: list[str] = []
    with Store(folder, report=said.append) as store:
        whole = store.document(OLD) == b"o" * 1000 and len(store.entries()) == 1
    left = [path for name in ("work", "locks") for path in (folder / "v1" / name).glob("*")]
    return whole and not said and not left


def filled(folder: Path) -> Path:
    with Store(folder) as store:
        store.put(OLD, b"o" * 1000)
    return folder


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    folder = filled(tmp_path / "cache")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    answers, said = use(folder, preexec_fn=limit)
    assert answers == [[1000, False]] * 2
    assert said == [f"cache not written: File too large ({folder})"]
    assert intact(folder)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of one megabyte at ``folder``."""
    folder.mkdir()
    size = ["-o", "size=1m"]
    done = subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", folder], capture_output=True)
    if done.returncode != 0:
        pytest.skip("a file system of its own needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Root may write whatever the permissions say, so it is given a read-only file system."""
    if os.getuid() == 0:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        return
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield
    for path in paths:
        path.chmod(0o755)


def test_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with small_disk(folder):
        filled(folder)
        answers, said = use(folder)
        assert answers == [[1000, False]] * 2
        assert said == [f"cache not written: No space left on device ({folder})"]
        assert intact(folder)
        with pytest.raises(OSError, match="No space"):
            (folder / "ballast").write_bytes(bytes(2_000_000))
        with Store(folder) as store:  # whoever is told so can make room
            assert store.clear().entries == 1
        answers, said = use(folder, size=500)
        assert answers == [[None, True]] * 2
        assert said == []


def test_a_read_only_folder_still_gives_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with small_disk(folder) if os.getuid() == 0 else contextlib.nullcontext():
        filled(folder)
        with read_only(folder):
            answers, said = use(folder)
            denied = Store(folder)
            with pytest.raises(InputError, match="cache not cleared: "):
                denied.clear()
        assert answers == [[1000, False]] * 2
        assert len(said) == 1
        assert re.match(r"cache not written: (Read-only file system|Permission denied) \(", said[0])
        assert intact(folder)


def test_a_place_that_cannot_be_created(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    with small_disk(folder) if os.getuid() == 0 else contextlib.nullcontext():
        folder.mkdir(exist_ok=True)
        with read_only(folder):
            answers, said = use(folder / "cache")
        assert answers == [[None, False]] * 2
        assert len(said) == 1
        assert said[0].startswith("cache not written: ")
        assert not (folder / "cache").exists()


def test_a_folder_that_is_removed_meanwhile(tmp_path: Path) -> None:
    said: list[str] = []
    with Store(tmp_path / "cache", report=said.append) as store:
        store.put(OLD, b"o")
        shutil.rmtree(tmp_path / "cache")
        assert store.get(OLD) is None
        store.put(NEW, b"n")  # it may say that it was not written, but goes on
    with Store(tmp_path / "cache") as store:
        assert store.document(NEW) in (b"n", None)
