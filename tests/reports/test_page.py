"""The page in a real browser: quiet, offline, usable by mouse, keyboard and screen reader."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from made_reports import EVERY, HOSTILE, many, profile

from optimize.reports.page import page as render
from optimize.reports.samples import pack, unpack
from optimize.reports.view import View

MOST_BYTES = 6_000_000
Open = See = Callable[..., Any]


@pytest.mark.parametrize("name", EVERY)
def test_a_page_is_one_file_of_bounded_size(name: str, pages: Callable[[str], Path]) -> None:
    assert pages(name).stat().st_size < MOST_BYTES


def test_a_page_of_twice_as_many_variants_and_calls_is_no_larger() -> None:
    pytest.importorskip("plotly", reason="the extra report is not installed")
    made = many(120)
    timed = [v.chain for v in made.report.variants if v.latency]
    timings = unpack(pack({chain: profile(8.0, 5000, n) for n, chain in enumerate(timed)}))
    assert len(render(View(made.report, timings)).encode()) < MOST_BYTES


@pytest.mark.parametrize(
    ("name", "scheme"), [*((name, "light") for name in EVERY), ("many", "dark")]
)
def test_it_opens_without_a_network_and_without_complaint(
    name: str, scheme: str, seen: See
) -> None:
    shown = seen(name, scheme=scheme)
    assert shown.page.locator("h2#answer").is_visible()
    assert shown.complaints == []
    assert [url for url in shown.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len(shown.requests) == 1  # itself


@pytest.mark.parametrize(("name", "width"), [("many", 1440), ("many", 390), ("hostile", 390)])
def test_nothing_sticks_out_of_the_window(name: str, width: int, seen: See) -> None:
    shown = seen(name, width=width)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("many", 1440, "light"), ("many", 390, "dark"), ("undecided", 1440, "dark")],
)
def test_axe_finds_nothing_to_object_to(name: str, width: int, scheme: str, seen: See) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    shown = seen(name, width, scheme)
    shown.page.evaluate(axe)
    found = shown.page.evaluate("axe.run({resultTypes: ['violations']})")
    assert [
        (rule["id"], [node["target"] for node in rule["nodes"]][:3]) for rule in found["violations"]
    ] == []
    assert len(found["passes"]) > 10


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("one", "Kept"), ("many", "Kept"), ("none_kept", "None kept"),
        ("undecided", "Undecided"), ("unmeasured", "Interrupted"),
    ],
)  # fmt: skip
def test_it_leads_with_the_answer(name: str, title: str, seen: See) -> None:
    shown = seen(name)
    first = shown.page.locator("main section").first
    assert first.locator("h2").inner_text().startswith(title)


def test_facts_tell_margin_and_certainty(seen: See) -> None:
    shown = seen("many")
    text = shown.page.locator(".facts").inner_text()
    latency = many().report.variant("fold,fuse,int8{mode=static}").latency
    assert latency is not None
    assert f"{latency.p99_ms:.4g} ms" in text
    assert f"{1 - latency.p99_ms / 20:.1%} of the budget of 20 ms is left" in text
    assert "99%" in text
    assert "1500 calls in 3 processes" in text


def test_the_nearest_miss_is_told(seen: See) -> None:
    shown = seen("none_kept")
    assert "1.60x the budget" in shown.page.locator(".miss").inner_text()
    assert shown.page.locator("#plot-tradeoff").get_by_text("nearest miss").is_visible()


def test_hovering_tells_chain_and_reason(opened: Open) -> None:
    with opened("many") as shown:
        point = shown.page.locator("#plot-tradeoff .scatterlayer .points path").first
        point.hover(force=True)
        label = shown.page.locator("#plot-tradeoff .hoverlayer")
        label.locator("text").first.wait_for()
        text = label.text_content()
        assert "chosen: fold,fuse,int8{mode=static}" in text
        assert "in 3 fresh processes, p99 holds" in text


def test_budget_floor_front_and_chosen_are_marked(seen: See) -> None:
    shown = seen("many")
    plot = shown.page.locator("#plot-tradeoff")
    for text in ("budget 20 ms", "floor 0.9233", "chosen", "source", "Pareto front"):
        assert plot.get_by_text(text, exact=True).is_visible()
    statuses = {v.status for v in many().report.variants if v.latency}
    symbols = shown.page.evaluate(
        "document.getElementById('plot-tradeoff').data.filter(t => t.mode === 'markers')"
        ".map(t => t.marker.symbol)"
    )
    assert len(set(symbols)) == len(symbols) == len(statuses)  # no two alike but in colour


VISIBLE = (
    "[...new Set(document.getElementById('plot-{0}').data.filter(t => t.visible === true)"
    ".map(t => t.meta))]"
)


def test_source_and_chosen_are_shown_and_any_other_by_click(opened: Open) -> None:
    with opened("many") as shown:
        page = shown.page
        for plot in ("distribution", "time"):
            assert page.evaluate(VISIBLE.format(plot)) == [0, 1]
        page.locator("#variants tbody tr", has_text="sparsity=0.02").locator(".pick").click()
        for plot in ("distribution", "time"):
            assert page.evaluate(VISIBLE.format(plot)) == [0, 1, 2]
        page.get_by_role("button", name="Hide source").click()
        assert page.evaluate(VISIBLE.format("time")) == [1, 2]
        page.locator("#plot-tradeoff .scatterlayer .points path").nth(3).click(force=True)
        page.wait_for_function(f"{VISIBLE.format('time')}.length === 3")
        assert shown.complaints == []


def test_variants_are_picked_with_the_keyboard(opened: Open) -> None:
    with opened("many") as shown:
        page = shown.page
        button = page.locator("#variants tbody .pick").nth(4)
        button.focus()
        page.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        page.get_by_label("Show also").select_option(index=9)
        assert len(page.evaluate(VISIBLE.format("distribution"))) == 4


def cells(page: Any, column: int) -> list[str]:
    found = page.locator(f"#variants tbody tr > :nth-child({column + 1})")
    return [str(v) for v in found.evaluate_all("cells => cells.map(c => c.dataset.sort)")]


def test_columns_sort_both_ways_with_the_unmeasured_last(opened: Open) -> None:
    with opened("many") as shown:
        heading = shown.page.get_by_role("columnheader", name="p99 ms")
        measured = sorted(v.latency.p99_ms for v in many().report.variants if v.latency)
        missing = len(many().report.variants) - len(measured)
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == "ascending"
        found = cells(shown.page, 4)
        assert [float(v) for v in found[:-missing]] == pytest.approx(measured)
        assert found[-missing:] == [""] * missing
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == "descending"
        found = cells(shown.page, 4)
        assert [float(v) for v in found[:-missing]] == pytest.approx(measured[::-1])
        assert found[-missing:] == [""] * missing


def test_a_phone_sorts_by_a_list(opened: Open) -> None:
    with opened("many", width=390) as shown:
        shown.page.get_by_label("Sort by").select_option("p50 ms")
        values = [float(v) for v in cells(shown.page, 2) if v]
        assert values == sorted(values)


def test_rows_are_filtered_by_words_and_by_status(opened: Open) -> None:
    with opened("many") as shown:
        page = shown.page
        rows = page.locator("#variants tbody tr:visible")
        assert rows.count() == 60
        page.get_by_label("Filter").fill("SPARSITY made inaccurate")
        wanted = sum("inaccurate" in v.reason for v in many().report.variants)
        assert rows.count() == wanted
        assert page.locator("#count").inner_text() == f"{wanted} of 60 variants"
        page.get_by_role("checkbox", name="inaccurate").uncheck()
        assert rows.count() == 0
        page.get_by_label("Filter").fill("")
        assert rows.count() == 60 - wanted


def test_names_with_html_in_them_are_shown_as_they_are(seen: See) -> None:
    shown = seen("hostile")
    page = shown.page
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.locator("#variants").get_by_text(HOSTILE).first.is_visible()
    page.locator("#plot-tradeoff .scatterlayer .points path").first.hover(force=True)
    label = page.locator("#plot-tradeoff .hoverlayer")
    label.locator("text").first.wait_for()
    assert "".join(HOSTILE.split()) in "".join(label.text_content().split())
    legend = page.locator("#plot-distribution .legendtext").nth(1).text_content()
    assert "".join(legend.split()) == "".join(HOSTILE.split())
    assert shown.complaints == []


def test_the_theme_can_be_switched(opened: Open) -> None:
    with opened("many") as shown:
        page = shown.page
        paper = "getComputedStyle(document.body).backgroundColor"
        ink = "document.getElementById('plot-tradeoff').layout.font.color"
        before = page.evaluate(paper), page.evaluate(ink)
        page.get_by_role("button", name="Switch between light and dark").click()
        after = page.evaluate(paper), page.evaluate(ink)
        assert before[0] != after[0]
        assert before[1] != after[1]
        page.get_by_role("button", name="Switch between light and dark").click()
        assert (page.evaluate(paper), page.evaluate(ink)) == before


def test_passes_parts_bound_and_reasons_are_there(seen: See) -> None:
    shown = seen("many")
    page = shown.page
    rows = page.locator(".waterfall tbody tr")
    assert [row.split()[0] for row in rows.all_inner_texts()] == [
        "source", "fold", "fuse", "int8{mode=static}",
    ]  # fmt: skip
    assert "cosine 0.9981" in rows.nth(3).inner_text()
    where = page.locator("section[aria-labelledby=where]").inner_text()
    assert "QLinearConv" in where
    assert "1.53x" in where
    assert "already runs in INT8" in page.locator("section[aria-labelledby=why]").inner_text()


def test_what_was_measured_can_be_repeated(seen: See) -> None:
    shown = seen("one")
    text = shown.page.locator("section.what").inner_text()
    assert "optimize resnet.safetensors --budget p99=20ms --data data.npz" in text
    assert "900 of 1000 calls while nothing disturbed the machine" in text
    assert "A processor with a long name" in text


def test_without_single_timings_it_says_so(seen: See) -> None:
    shown = seen("without_samples")
    assert shown.page.locator("#plot-distribution .lines").first.is_visible()
    assert shown.page.locator("#plot-time").count() == 0
    assert shown.page.get_by_text("holds no single timings").is_visible()
