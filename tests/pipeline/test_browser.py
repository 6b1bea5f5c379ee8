"""The report in a real browser: on a phone and a desk, light and dark, without a network."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.unit.report_example import PRUNED, RECOVERY, charts_of, page_of, summarise

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


@pytest.fixture
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: run `make chromium`"
    with sync_playwright() as playwright:
        # Without a sandbox, for tests may run as root; the page is our own.
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
    page.wait_for_function(
        f"document.querySelectorAll('.chart svg').length === {len(names)}", timeout=60_000
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in names:
        found = page.locator(f"#chart-{name}").evaluate(DRAWN)
        assert found["marks"] > 0, f"{name} is empty at {width} pixels"
        assert found["cut"] == [], f"{name} is cut off at {width} pixels"
    point = page.locator("#chart-ratio .mark-symbol path").first
    assert point.evaluate("mark => getComputedStyle(mark).fill") == ACCENT[scheme]
    page.locator("#chart-retention").scroll_into_view_if_needed()
    box = page.locator("#chart-retention .mark-symbol path").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=10_000)
    said = tooltip.inner_text()
    assert "piqa" in said and "93.4" in said
