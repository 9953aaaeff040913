"""The page: one file that asks for nothing, whose text is text, and that can be read by everybody."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from runfolders import HOSTILE

from fedit.report.document import (
    Code,
    Column,
    Document,
    Fact,
    Facts,
    Headline,
    Note,
    Piece,
    Row,
    Section,
    ShownAnswer,
    SideBySide,
    Table,
    Text,
)
from fedit.report.html import html
from fedit.report.numbers import Estimate
from fedit.report.run_report import run_report

VOID = {"meta", "br", "input", "link", "img", "hr"}


class Page(HTMLParser):
    """Elements of a page, with their attributes and text; fails where they are not nested."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self._open = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names))
        node = {"tag": tag, "text": "", "within": tuple(self._open), **dict(attributes)}
        self.elements.append(node)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", "within": tuple(self._open), **dict(attributes)})

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self.elements:
            self.elements[-1]["text"] += data

    def all(self, *tags):
        return [node for node in self.elements if node["tag"] in tags]


@pytest.fixture
def page(make_run):
    return Page(html(run_report(make_run())))


@pytest.fixture
def hostile(make_run):
    names = {"clients": HOSTILE, "categories": HOSTILE, "arms": HOSTILE, "answers": HOSTILE}
    return html(run_report(make_run(**names, failures=tuple((text, text) for text in HOSTILE))))


def page_of(*blocks):
    return html(Document("Title", "subtitle", (Section("Section", "section", blocks),)))


def test_the_policy_allows_the_page_itself_and_nothing_else(make_run):
    text = html(run_report(make_run()))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1].replace("&#x27;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert set(rules) == {"default-src", "style-src", "script-src", "base-uri", "form-action"}


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(page):
    for node in page.elements:
        assert not {"src", "srcset", "action", "data", "poster", "xlink:href", "style"} & set(node), node
        assert not any(name.startswith("on") for name in node), node
        assert node.get("href", "#").startswith("#"), node
    for node in page.all("style"):
        assert "url(" not in node["text"]
        assert "@import" not in node["text"]


def test_hostile_text_makes_no_elements(hostile, make_run):
    page = Page(hostile)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert page.all("img", "iframe", "object", "embed", "link", "base", "form") == []
    text = "".join(node["text"] for node in page.elements)
    assert "<script>alert(1)</script>" in text  # as text
    for char in "\u202e\u2066\u200b\x00\x1b":
        assert char not in hostile
    hostile.encode()


def test_ids_are_unique_and_all_references_lead_somewhere(page):
    ids = [node["id"] for node in page.elements if "id" in node]
    assert len(ids) == len(set(ids))
    for node in page.elements:
        targets = [*node.get("aria-labelledby", "").split(), *re.findall(r"url\(#(.+?)\)", node.get("fill") or "")]
        targets += [node["href"][1:]] if "href" in node else []
        assert set(targets) <= set(ids), node


def test_headings_go_down_step_by_step(page):
    levels = [int(node["tag"][1]) for node in page.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_has_landmarks_a_language_and_a_way_past_the_contents(page):
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("main")) == len(page.all("nav")) == len(page.all("header")) == 1
    assert page.all("a")[0]["href"] == f"#{page.all('main')[0]['id']}"
    assert page.all("title")[0]["text"] == "a-run · fedit report"
    viewport = next(node for node in page.all("meta") if node.get("name") == "viewport")
    assert "user-scalable" not in viewport["content"]


def test_tables_name_their_columns_and_rows(page):
    assert page.all("table")
    for node in page.all("th"):
        assert node["scope"] == ("col" if "thead" in node["within"] else "row")
    assert len(page.all("caption")) == len(page.all("table"))
    regions = [node for node in page.elements if node.get("role") == "region"]
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in regions)


def test_every_figure_is_an_image_with_a_name_and_its_numbers(page):
    pictures = page.all("svg")
    assert len(pictures) >= len(page.all("figure")) > 5
    assert all(picture["role"] == "img" and picture["aria-labelledby"] for picture in pictures)
    assert sum("figure" in node["within"] for node in page.all("details")) == len(page.all("figure"))


def test_equal_documents_are_equal_pages(make_run):
    document = run_report(make_run())
    assert html(document) == html(document)


def test_every_block_is_shown():
    text = page_of(
        Headline("It worked.", (Fact("loss", "1.0", "nats"),)),
        Text("A paragraph."),
        Code("ls"),
        Note("Careful.", "warning"),
        Facts((Fact("seed", "7"),), folded="More"),
        Table(
            "Arms",
            (Column("arm"), Column("share", "interval", ".0%", "highest")),
            (Row(("base", Estimate(0.1, 0.0, 0.2))), Row(("federated", Estimate(0.5, 0.4, 0.6)), emphasis=True)),
        ),
        SideBySide("Which?", (ShownAnswer("base", (Piece("48"),), right=False),), "ctx", "83", "general_qa"),
        SideBySide(
            "?", (ShownAnswer("judged", (Piece("is "), Piece("83", new=True)), score=7.5, against="changed"),)
        ),
    )
    Page(text)
    for part in (
        '<p class="lead">It worked.</p>', "<p>A paragraph.</p>",
        '<pre tabindex="0"><code>ls</code></pre>',
        '<p class="note warning"><strong>Warning: </strong>Careful.</p>', "<summary>More</summary>",
        '<strong class="best">50%<span class="unseen"> (best)</span></strong>',
        '<span class="range">40% to 60%</span>',
        '<tr class="emphasis">', "<h3 dir=\"auto\">general_qa</h3>", "✗ wrong", "<mark>83</mark>", "score 7.5",
        "marked: not in base", '<h3 dir="auto">Example 2</h3>',
    ):  # fmt: skip
        assert part in text, part


def test_names_are_cut_to_what_a_page_has_room_for():
    arm = "a" * 5000
    text = page_of(SideBySide("?", (ShownAnswer(arm, (Piece("x"),)),)), Table("t", (Column("c"),), (Row((arm,)),)))
    assert "a" * 200 not in text
    assert "aaa…" in text


def test_an_empty_answer_is_said_to_be_empty():
    assert "(empty)" in page_of(SideBySide("?", (ShownAnswer("base", (Piece(" \n"),)),)))
