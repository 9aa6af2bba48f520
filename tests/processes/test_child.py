"""What the child says while it works reaches the parent before the answer does."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest

from optimize.processes.child import Child, ChildDied, Children, say


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


def test_after_an_interruption_nothing_more_is_begun(tmp_path: Path) -> None:
    children = Children(1, tmp_path)
    with contextlib.suppress(KeyboardInterrupt), children.threads(1) as pool:
        assert pool.submit(children.call, len, "abc").result(60) == 3
        raise KeyboardInterrupt
    with pytest.raises(ChildDied, match="ended before it was begun"):
        children.call(len, "abc")
