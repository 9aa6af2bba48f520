"""A run's folder goes with the run, and what a killed one left goes with the next."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from optimize.processes.scratch import scratch_folder


def test_it_goes_also_when_its_user_fails(tmp_path: Path) -> None:
    def use() -> None:
        with scratch_folder(tmp_path, "run-") as folder:
            (folder / "file").write_text("x")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        use()
    assert not list(tmp_path.iterdir())


def test_folders_in_use_and_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("not ours")
    (tmp_path / "other-1").mkdir()
    (tmp_path / "run-My-backup").mkdir()
    (tmp_path / "run-backup.old").mkdir()  # of the same prefix, and not made here
    with scratch_folder(tmp_path, "run-") as first:
        with scratch_folder(tmp_path, "run-") as second:
            assert first != second
            assert first.is_dir()
        assert first.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {
        "run.txt",
        "other-1",
        "run-backup.old",
        "run-My-backup",
    }


KILLED = """
import os, sys
from pathlib import Path
from optimize.processes.scratch import scratch_folder

with scratch_folder(Path(sys.argv[1]), "run-") as folder:
    (folder / "file").write_text("x")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    with scratch_folder(tmp_path, "run-") as folder:
        assert list(tmp_path.iterdir()) == [folder]
