"""The report in a real browser: on a phone and a desk, light and dark, without a network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.unit.report_example import (
    PRUNED,
    RECOVERY,
    ROUNDS,
    a_round,
    charts_of,
    delivering,
    page_of,
    summarise,
)
from tests.unit.test_verdict import WORSE, with_gates

pytestmark = pytest.mark.slow
ACCENT = {"light": "rgb(11, 98, 196)", "dark": "rgb(108, 178, 255)"}
# What is drawn of a chart, and what of its text sticks out of its place.
DRAWN = """chart => {
    const place = chart.getBoundingClientRect();
    const marks = [...chart.querySelectorAll(
        ".mark-symbol path, .mark-rect path, .mark-rule line, .mark-line path"
    )].map(mark => mark.getBoundingClientRect());
    const texts = [...chart.querySelectorAll("text")].filter(text => text.textContent);
    return {
        marks: marks.filter(box => box.width + box.height > 1).length,
        cut: texts.filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < place.left - 1 || box.right > place.right + 1;
        }).map(text => text.textContent),
    };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: run `make chromium`"
    with sync_playwright() as playwright:
        # Without a sandbox, because tests may run as root; the page is our own.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_report_is_drawn_whole_on_phone_and_desk_light_and_dark(
    browser: Browser, tmp_path: Path
) -> None:
    model = {**PRUNED["model"], "recovery": RECOVERY}
    text = page_of(summarise(evaluation={**PRUNED, "model": model}))
    report = tmp_path / "report.html"
    report.write_text(text, encoding="utf-8")
    for width in (390, 1440):
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            page = context.new_page()
            complaints, requests = _listen(page)
            page.goto(report.as_uri())
            _check(page, list(charts_of(text)), width, scheme)
            page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
            context.close()
            assert complaints == []
            assert requests == [report.as_uri()]


def test_a_refusal_and_an_early_end_are_drawn_whole_on_a_phone(
    browser: Browser, tmp_path: Path
) -> None:
    rounds = [*ROUNDS[:1], a_round(2, 0.1402, 3.0, 91_300_000)]
    evaluation = delivering(1, PRUNED)
    summary = summarise(rounds=rounds, evaluation=evaluation)
    text = page_of(summary, with_gates(WORSE), rounds=rounds)
    assert "Refused:" in text and "broke a health limit" in text
    report = tmp_path / "report.html"
    report.write_text(text, encoding="utf-8")
    page = browser.new_context(viewport={"width": 390, "height": 900}).new_page()
    complaints, _ = _listen(page)
    page.goto(report.as_uri())
    _check_charts(page, list(charts_of(text)), 390)
    page.screenshot(path=tmp_path / "refused.png", full_page=True)
    assert complaints == []


def test_the_report_is_whole_on_paper(browser: Browser, tmp_path: Path) -> None:
    text = page_of()
    report = tmp_path / "report.html"
    report.write_text(text, encoding="utf-8")
    # The width of A4 without margins, at 96 pixels an inch.
    page = browser.new_context(viewport={"width": 718, "height": 1000}).new_page()
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    _check_charts(page, list(charts_of(text)), 718)
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000


def _listen(page: Page) -> tuple[list[str], list[str]]:
    """Collect what the browser complains of, and what it asks for."""
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith("data:") else requests.append(asked.url),
    )
    return complaints, requests


def _check(page: Page, names: list[str], width: int, scheme: str) -> None:
    _check_charts(page, names, width)
    point = page.locator("#chart-ratio .mark-symbol path").first
    assert point.evaluate("mark => getComputedStyle(mark).fill") == ACCENT[scheme]
    told = {name: _told(page, name) for name in names}
    assert "piqa" in told["retention"] and "93.4" in told["retention"]


def _check_charts(page: Page, names: list[str], width: int) -> None:
    """Every chart is drawn and none is cut off, nor does anything stick out of the page."""
    page.wait_for_function(
        f"document.querySelectorAll('.chart svg').length === {len(names)}", timeout=60_000
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in names:
        found = page.locator(f"#chart-{name}").evaluate(DRAWN)
        assert found["marks"] > 0, f"{name} is empty at {width} pixels"
        assert found["cut"] == [], f"{name} is cut off at {width} pixels"


def _told(page: Page, name: str) -> str:
    """What a chart says when the pointer is on one of its marks."""
    mark = page.locator(f"#chart-{name} :is(.mark-symbol path, .mark-rect path)").first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box is not None
    page.mouse.move(0, 0)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=10_000)
    said = tooltip.inner_text()
    assert said.strip(), f"{name} says nothing"
    return said
