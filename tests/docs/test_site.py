"""The built site: no dead link, nothing fetched from elsewhere; in a browser, also narrow and without scripts."""

import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from chromium import STOPPED, asked_for, chromium

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from docs.build import build  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PHONE, DESKTOP = 390, 1280
LOOKED_AT = ("index.html", "docs/how-it-works.html", "docs/cli.html", "docs/tutorials/non-iid.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once."""
    pytest.importorskip("zensical", reason="needs zensical (group 'docs')")
    folder = tmp_path_factory.mktemp("docs") / "site"
    build(folder)
    return folder


class Parsed(HTMLParser):
    """A page's anchors, its links, and what it would fetch."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        if name := own.get("id"):
            self.ids.add(name)
        if tag == "a" and own.get("href"):
            self.links.add(own["href"])
        if tag == "link" and own.get("rel") not in ("prev", "next", "canonical"):
            self.fetched.add(own.get("href") or "")
        if tag in ("img", "script", "iframe", "source", "object", "embed") and (source := own.get("src")):
            self.fetched.add(source)


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[Path, Parsed]:
    """Every page of the site but the one that a server shows in place of a missing one."""
    return {path: Parsed(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_link_leads_to_a_file_and_a_place_in_it(site, parsed):
    assert len(parsed) > 60
    lost = []
    for page, own in parsed.items():
        for link in own.links | own.fetched:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            to = Path(unquote(urlsplit(urljoin(page.as_uri(), parts.path)).path)) if parts.path else page
            if not to.is_file() or (parts.fragment and to in parsed and parts.fragment not in parsed[to].ids):
                lost.append(f"{page.relative_to(site)}: {link}")
    assert lost == []


def test_no_page_would_fetch_anything_from_elsewhere(parsed):
    fetched = {link for own in parsed.values() for link in own.fetched}
    assert fetched
    assert {
        link for link in fetched if urlsplit(link).scheme not in ("", "data") or link.startswith("//")
    } == set()


def test_code_in_tables_shows_bars_and_not_their_escapes(site):
    for path in site.rglob("*.html"):
        assert "\\|" not in path.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0], (
            path
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of the site on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def look(browser, address, width, scheme="light", scripts=True):
    """Open a page ``width`` pixels wide, in light or dark colours, with scripts or without."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get(address)


def eventually(look, seconds=10):
    """Return what ``look`` finds once it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_no_page_is_wider_than_a_phone(browser, site, parsed):
    wide = []
    for page in parsed:
        if page.parent.name == "decisions":
            continue  # many, and text alone
        look(browser, page.as_uri(), PHONE)
        if browser.execute_script("return document.documentElement.scrollWidth") > PHONE:
            wide.append(str(page.relative_to(site)))
    assert wide == []


@pytest.mark.parametrize("how", ["served", "from the disk"])
def test_nothing_is_asked_of_other_machines_and_nothing_is_complained_about(browser, site, served, how):
    base = served if how == "served" else f"{site.as_uri()}/"
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    for page in LOOKED_AT:
        look(browser, base + page, DESKTOP)
    asked = asked_for(browser)
    assert base + LOOKED_AT[0] in asked
    assert {url for url in asked if not url.startswith((base, "data:"))} == set()
    assert browser.get_log("browser") == []


def test_the_policy_stops_what_would_be_asked_for(browser, served):
    look(browser, served, DESKTOP)
    assert browser.execute_async_script(STOPPED) == 2


def test_colours_follow_the_reader_and_so_do_figures(browser, site):
    grounds = {}
    for scheme in ("light", "dark"):
        look(browser, (site / "docs/how-it-works.html").as_uri(), DESKTOP, scheme)
        grounds[scheme] = browser.execute_script(
            "const image = document.querySelector('article img');"
            "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(image).colorScheme,"
            "image.naturalWidth]"
        )
    assert grounds["light"][0] != grounds["dark"][0]
    assert grounds["dark"][1].startswith("dark")
    assert grounds["dark"][2] > 0


def test_pictures_are_shown(browser, site, parsed):
    for page in ("index.html", "docs/how-it-works.html", "docs/the-paper.html", "docs/ui.html"):
        look(browser, (site / page).as_uri(), DESKTOP)
        widths = browser.execute_script("return [...document.images].map((image) => image.naturalWidth)")
        assert widths, page
        assert min(widths) > 100, page


def box(browser, selector):
    """Return (left, top, right, bottom) of an element without running a script; None: there is none."""
    root = browser.execute_cdp_cmd("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    node = browser.execute_cdp_cmd("DOM.querySelector", {"nodeId": root, "selector": selector})["nodeId"]
    if not node:
        return None
    quad = browser.execute_cdp_cmd("DOM.getBoxModel", {"nodeId": node})["model"]["border"]
    return quad[0], quad[1], quad[4], quad[5]


def click(browser, selector):
    """Click the middle of an element."""
    left, top, right, bottom = box(browser, selector)
    place = {"x": (left + right) / 2, "y": (top + bottom) / 2, "button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": kind, **place})


def test_pages_are_read_and_left_without_scripts(browser, site):
    page = (site / "docs/cli.html").as_uri()
    try:
        look(browser, page, PHONE, scripts=False)
        left, _, right, bottom = eventually(lambda: box(browser, "article"))
        assert left >= 0
        assert right <= PHONE
        assert bottom > 5000, "the whole page is laid out"
        drawer = ".md-sidebar--primary .md-nav__link[href*='glossary']"
        assert box(browser, ".md-sidebar--primary")[2] <= 0, "the drawer is shut"
        click(browser, "header label[for=__drawer]")
        assert eventually(lambda: box(browser, ".md-sidebar--primary")[0] >= 0), "the drawer opens"
        assert box(browser, drawer) is not None
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_the_search_finds_a_page(browser, served):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    look(browser, served, DESKTOP)
    search = "const parts = [...document.querySelectorAll('*')].map((part) => part.shadowRoot).filter(Boolean);"
    focused = search + "return parts.some((part) => part.activeElement?.tagName === 'INPUT')"
    opened = ActionChains(browser).key_down(Keys.CONTROL).send_keys("k").key_up(Keys.CONTROL)
    # The page may not listen yet when the keys are pressed first.
    for _ in range(3):
        opened.perform()
        if eventually(lambda: browser.execute_script(focused)):
            break
    else:
        pytest.fail("Ctrl-K does not open the search")
    ActionChains(browser).send_keys("staleness").perform()
    found = search + "return parts.flatMap((part) => [...part.querySelectorAll('a')]).map((link) => link.href)"
    links = eventually(lambda: browser.execute_script(found))
    assert any(link.startswith(served + "docs/selection.html") for link in links), links
