"""README.md: its commands do what it shows, and its links lead somewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from documented import REPOSITORY, steps_of

if TYPE_CHECKING:
    from docs.conftest import CheckPage


@pytest.mark.usefixtures("own_files")
def test_its_commands_do_what_it_shows(check_page: CheckPage) -> None:
    check_page("README.md")


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (REPOSITORY / "README.md").read_text())
    local = [link for link in links if "://" not in link]
    assert local
    assert all((REPOSITORY / link).exists() for link in local), local


def test_make_demo_is_the_command_that_it_shows() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    demo = makefile.partition("$(BIN)/optimize ")[2].partition("\n\n")[0]
    words = ["optimize", *demo.replace("\\\n", " ").split()]
    for page in ("README.md", "docs/tutorial.md"):
        assert words in [step.command.replace("\\\n", " ").split() for step in steps_of(page)]
