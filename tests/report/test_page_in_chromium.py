"""The page in a browser: nothing is asked for, nothing sticks out, everything can be read and reached."""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from chromium import STOPPED, asked_for, chromium
from runfolders import HOSTILE, write_run
from studyfolders import write_study

from fedit.report.run_report import run_report
from fedit.report.write import write_report
from fedit.study.report import study_report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZES = {"desktop": 1280, "tablet": 768, "phone": 390}

# The contrast of every text with the first opaque ground behind it; numbers on shades are tested with the theme.
CONTRASTS = """
const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const node = walk.currentNode.parentElement;
  if (!walk.currentNode.textContent.trim() || !node.checkVisibility()) continue;
  if (node.closest("script, title, desc, [fill*=heat-ink]")) continue;
  const style = getComputedStyle(node);
  const front = parse(node.closest("svg") ? style.fill : style.color);
  const [a, b] = [light(front), light(ground(node))].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), walk.currentNode.textContent.trim().slice(0, 60)]);
}
return found.sort((x, y) => x[0] - y[0]);
"""
STICKING_OUT = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll("body *")]
  .filter((e) => e.checkVisibility() && !e.closest(".scroll, pre, .unseen, .skip"))
  .filter((e) => { const box = e.getBoundingClientRect(); return box.right > wide + 0.5 || box.left < -0.5; })
  .map((e) => `${e.tagName}.${e.className.baseVal ?? e.className}: ${e.textContent.slice(0, 40)}`);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module", params=["plain", "hostile", "many", "study"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A report on an ordinary run, on one of hostile names, on one of many clients, and on a study."""
    folder = tmp_path_factory.mktemp("run") / request.param
    if request.param == "study":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDIT_CACHE", str(folder.parent / "cache"))
            study = write_study(folder, tiny)
        return write_report(study_report(study), study, pdf=False)
    changes = {
        "plain": {},
        "hostile": {"clients": HOSTILE, "categories": HOSTILE, "arms": HOSTILE, "answers": HOSTILE, "loss": None},
        "many": {
            "clients": tuple(f"hospital-{i}" for i in range(200)),
            "categories": tuple(f"category {i}" for i in range(60)),
            "arms": tuple(f"local:hospital-{i}" for i in range(12)),
            "rounds": 150,
        },
    }[request.param]
    return write_report(run_report(write_run(folder, **changes)), folder, pdf=False)


def look(browser, page, width, scheme="light"):
    """Open the page ``width`` pixels wide, in light or dark colours."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.get(page.as_uri())


@pytest.mark.parametrize("size", SIZES)
def test_nothing_sticks_out(browser, page, size):
    look(browser, page, SIZES[size])
    assert browser.execute_script("return document.documentElement.scrollWidth") <= SIZES[size]
    assert browser.execute_script(STICKING_OUT) == []


def test_a_study_shows_judge_votes_and_strategies(browser, page):
    if page.parent.name != "study":
        pytest.skip("of the page on a study alone")
    look(browser, page, SIZES["phone"])
    titles = browser.execute_script("return [...document.querySelectorAll('h2')].map((e) => e.textContent)")
    for title in ("Judge", "Votes", "Strategies", "Differences", "By category", "Answers to questions"):
        assert any(own.startswith(title) for own in titles), titles


def test_nothing_is_asked_for_and_nothing_is_complained_about(browser, page):
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    look(browser, page, 1280)
    assert asked_for(browser) == {page.as_uri()}
    assert browser.get_log("browser") == []


def test_the_policy_stops_what_would_be_asked_for(browser, page):
    look(browser, page, 1280)
    assert browser.execute_async_script(STOPPED) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_text_has_contrast(browser, page, size, scheme):
    look(browser, page, SIZES[size], scheme)
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert dark == (scheme == "dark")
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    found = browser.execute_script(CONTRASTS)
    assert len(found) > 100
    assert found[0][0] >= 4.5, found[:5]


def eventually(look, enough, seconds=10):
    """Return what ``look`` finds once it is ``enough``: the browser builds some of it after the page is there."""
    deadline = time.monotonic() + seconds
    while not enough(found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_figures_have_names_and_text_that_can_be_read(browser, page):
    for width in (1280, 768, 736, 390):
        look(browser, page, width)
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('figure svg')].filter((e) => e.checkVisibility())"
        )
        assert drawn
        assert all(svg.aria_role in ("image", "img") and svg.accessible_name for svg in drawn)
        sizes = browser.execute_script(
            "return [...document.querySelectorAll('svg')].filter((e) => e.checkVisibility())"
            ".map((e) => e.getScreenCTM().a * parseFloat(getComputedStyle(e).fontSize))"
        )
        assert min(sizes) >= 11


def test_the_keyboard_reaches_everything_in_order(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    look(browser, page, 1280)
    keys, reached = ActionChains(browser), []
    for _ in range(30):
        keys.send_keys(Keys.TAB).perform()
        place = browser.execute_script(
            "const e = document.activeElement; const all = [...document.querySelectorAll('*')];"
            "const seen = getComputedStyle(e).outlineStyle !== 'none' && e.getBoundingClientRect().width > 0;"
            "return [e.tagName, e.getAttribute('href'), all.indexOf(e), seen]"
        )
        reached.append(place)
    assert reached[0][:2] == ["A", "#report"]
    order = [place[2] for place in reached]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    assert {"A", "SUMMARY", "DIV"} <= {place[0] for place in reached}
    assert all(place[3] for place in reached)
    browser.execute_script("document.querySelector('a.skip').focus()")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.activeElement.id") == "report"


def test_headings_are_in_order_and_arms_can_be_chosen(browser, page):
    from selenium.webdriver.common.by import By

    look(browser, page, 1280)
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map((e) => Number(e.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    boxes = browser.find_elements(By.CSS_SELECTOR, "fieldset input")
    # Each section with examples has a choice of its own.
    arms = browser.execute_script(
        "return [...document.querySelectorAll('section:has([data-arm])')].map((section) =>"
        "new Set([...section.querySelectorAll('[data-arm]')].map((e) => e.dataset.arm)).size)"
    )
    assert len(boxes) == sum(arms)
    assert min(arms) >= 2
    shown = "return [...document.querySelectorAll('[data-arm]')].filter((e) => e.checkVisibility()).length"
    before = browser.execute_script(shown)
    browser.execute_script("arguments[0].click()", boxes[1])
    examples = browser.execute_script(
        "return arguments[0].closest('section').querySelectorAll('.example').length", boxes[1]
    )
    assert browser.execute_script(shown) == before - examples


def test_the_page_is_complete_without_its_script(browser, page):
    look(browser, page, 1280)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        text = eventually(
            lambda: json.dumps(browser.execute_cdp_cmd("DOM.getDocument", {"depth": -1})),
            lambda found: found.count('"ARTICLE"') >= 4,
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert text.count('"ARTICLE"') >= 4
    assert "FIELDSET" not in text


def test_it_prints_on_white_with_settings_and_without_controls(browser, page):
    look(browser, page, 1280, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    assert ink == "rgb(28, 33, 40)"
    hidden = browser.execute_script(
        "return ['nav', '.skip', 'fieldset', 'figure details']"
        ".filter((name) => document.querySelector(name).checkVisibility())"
    )
    assert hidden == []
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    assert len(printed["data"]) > 50_000
