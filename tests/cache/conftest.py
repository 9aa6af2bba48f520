"""A store in an empty folder, and what it said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optimize.cache.store import Store

MakeFolder = Callable[[dict[str, bytes]], Path]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Iterator[Store]:
    with Store(tmp_path / "cache", report=said.append) as opened:
        yield opened


@pytest.fixture
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    def make(files: dict[str, bytes]) -> Path:
        folder = tmp_path_factory.mktemp("made")
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
