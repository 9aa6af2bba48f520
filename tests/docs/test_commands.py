"""The commands in README.md and docs/*.md do what the pages show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from documented import PAGES, missing, steps_of

if TYPE_CHECKING:
    from docs.conftest import CheckPage, Project

MARKED_AT_MOST = 6


@pytest.fixture(scope="module")
def tutorial(project: Project) -> None:
    """Other pages go on where the tutorial ends."""
    demo = next(step for step in steps_of("docs/tutorial.md") if "optimize " in step.command)
    code, output = project.run(demo)
    assert code == 0, output


def test_the_tutorial_does_what_it_shows(check_page: CheckPage, project: Project) -> None:
    check_page("docs/tutorial.md")
    assert (project.folder / "opened").read_text().strip().endswith("resnet.optimized/report.html")


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/tutorial.md"])
def test_they_do_what_the_page_shows(page: str, check_page: CheckPage, tutorial: None) -> None:
    check_page(page)


@pytest.mark.usefixtures("own_files")
def test_they_do_what_the_readme_shows(check_page: CheckPage, tutorial: None) -> None:
    check_page("README.md")


def test_few_are_left_out_and_each_with_a_reason() -> None:
    steps = [step for page in ("README.md", *PAGES) for step in steps_of(page)]
    marked = [step.command for step in steps if step.marked]
    assert len(steps) > 25
    assert len(marked) <= MARKED_AT_MOST, marked


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
    assert (not missing((shown,), printed)) == holds
