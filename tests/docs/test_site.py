"""The site: generated pages say what the code says, links hold, and it needs no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from documented import REPOSITORY

DOCS = REPOSITORY / "docs"
Build = Callable[[Path, Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def build() -> Build:
    """Build a site as ``make docs`` does."""
    pytest.importorskip("sphinx")
    makefile = (REPOSITORY / "Makefile").read_text()
    flags = makefile.partition("$(BIN)/sphinx-build ")[2].partition(" docs build/docs")[0].split()

    def run(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sphinx", *flags, docs, site],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def site(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


class Loaded(HTMLParser):
    """Collects what a browser loads for a page without being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.addresses.append(given.get("href") or "")


def test_the_generated_pages_are_current() -> None:
    spec = spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        assert (DOCS / name).read_text() == text, f"run python docs/generate.py: {name} is old"


def test_a_page_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        addresses = [address.partition("?")[0] for address in loaded.addresses if address]
        assert not [a for a in addresses if "//" in a], page
        assert all((page.parent / address).is_file() for address in addresses), page
    for sheet in site.rglob("*.css"):
        text = sheet.read_text()
        assert "@import" not in text
        assert "url(http" not in text.replace('"', "")


def test_decisions_are_in_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text()
    for decision in (DOCS / "decisions").glob("0*.md"):
        assert f'href="decisions/{decision.stem}.html"' in index


@pytest.mark.parametrize("wrong", ["[x](nowhere.md)", "[x](limits.md#nowhere)", "![x](no.png)"])
def test_a_broken_link_ends_the_build(wrong: str, build: Build, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(DOCS / "conf.py", docs)
    (docs / "limits.md").write_text("# Limits\n\n## What it cannot see\n")
    index = "# Site\n\n```{toctree}\nlimits\n```\n\n[x](limits.md#what-it-cannot-see)\n\n"
    (docs / "index.md").write_text(index)
    right = build(docs, tmp_path / "right")
    assert right.returncode == 0, right.stderr
    (docs / "index.md").write_text(f"{index}{wrong}\n")
    done = build(docs, tmp_path / "wrong")
    assert done.returncode != 0
    assert "index.md" in done.stderr
