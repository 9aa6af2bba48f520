"""README.md: its links lead somewhere, and its first command is that of ``make demo``."""

from __future__ import annotations

import re

from documented import REPOSITORY, steps_of


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
