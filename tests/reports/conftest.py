"""A headless browser without a network, and pages opened in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_reports import EVERY

from optimize.reports.page import page as render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Opened:
    """A page in the browser, and what it said and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium is installed (see CONTRIBUTING.md)")
    with api.sync_playwright() as playwright:
        # Root, as in containers, may not use Chromium's sandbox.
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a made-up report's page, rendered once."""
    pytest.importorskip("plotly", reason="the extra report is not installed")
    folder = tmp_path_factory.mktemp("pages")

    def file(name: str) -> Path:
        path = folder / f"{name}.html"
        if not path.exists():
            path.write_text(render(EVERY[name]()), encoding="utf-8")
        return path

    return file


@pytest.fixture(scope="session")
def opened(browser: Any, pages: Callable[[str], Path]) -> Callable[..., Any]:
    """Open a report of one's own by name, e.g. ``with opened("many", width=390) as shown``."""

    @contextmanager
    def show(name: str, width: int = 1440, scheme: str = "light") -> Iterator[Opened]:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        page = context.new_page()
        shown = Opened(page)
        page.on("console", lambda message: shown.complaints.append(message.text))
        page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        page.on("request", lambda request: shown.requests.append(request.url))
        page.on("dialog", lambda dialog: shown.complaints.append(f"dialog {dialog.message}"))
        page.goto(pages(name).as_uri())
        yield shown
        context.close()

    return show


@pytest.fixture(scope="session")
def seen(opened: Callable[..., Any]) -> Iterator[Callable[..., Opened]]:
    """A report to look at only, opened once for all tests: ``seen("many", width=390)``."""
    open_once: dict[tuple[str, int, str], Opened] = {}
    with ExitStack() as stack:

        def look(name: str, width: int = 1440, scheme: str = "light") -> Opened:
            key = name, width, scheme
            if key not in open_once:
                open_once[key] = stack.enter_context(opened(*key))
            return open_once[key]

        yield look
