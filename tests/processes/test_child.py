"""What the child says while it works reaches the parent before the answer does."""

from __future__ import annotations

import tempfile
from pathlib import Path

from optimize.processes.child import Child, say


def test_what_the_child_says_is_heard_and_the_answer_follows() -> None:
    child = Child()
    heard: list[str] = []
    child.listen = heard.append
    try:
        assert child.call(say, "prune", "half way") is None
        assert heard == ["prune: half way"]
        assert child.call(str.upper, "done") == "DONE"
        assert heard == ["prune: half way"]
    finally:
        child.close()


def test_temporary_files_of_a_child_are_where_it_is_told(tmp_path: Path) -> None:
    child = Child(tmp_path)
    try:
        assert child.call(tempfile.mkdtemp).startswith(str(tmp_path))
    finally:
        child.close()
