"""Markdown twins: what models and data say stays text."""

import pytest
from markdown_it import MarkdownIt
from runfolders import HOSTILE

from fedit.report.document import Code, Column, Document, Fact, Facts, Note, Row, Section, Table, Text
from fedit.report.markdown import escaped, fenced, markdown
from fedit.report.markup import visible
from fedit.report.run_report import run_report


def tokens(text):
    """All tokens, those within lines too."""
    parsed = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [token for outer in parsed for token in (outer, *(outer.children or ()))]


def plain(text):
    return "".join(token.content for token in tokens(text) if token.type in ("text", "text_special"))


ODD = (
    *HOSTILE, "1. item", "1) item", "- item", "+ item", "-0.5", "> quote", "***", "---", "a_b_c _d_ __e__",
    "<b>&lt;", "www.evil.example", "https://evil.example", "| a |", "\\", "\\*", "`` ` ``", "    indented",
    "![x](y)", "2.686 nats", "[x]: http://evil", "~x~", "",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_text_on_a_line_stays_text(text):
    found = tokens(escaped(text))
    assert {token.type for token in found} <= {
        "paragraph_open",
        "paragraph_close",
        "inline",
        "text",
        "text_special",
    }
    assert plain(escaped(text)) == " ".join(visible(text).split())


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_text_in_a_cell_stays_in_it(text):
    parsed = tokens(f"| a | b |\n|---|---|\n| {escaped(text)} | end |\n")
    assert sum(token.type == "td_open" for token in parsed) == 2


@pytest.mark.parametrize("text", [*ODD, "```\nbreak out\n```", "~~~", "````"], ids=range(len(ODD) + 3))
def test_answers_are_whole_code_blocks(text):
    (block,) = tokens("\n".join(fenced(text)))
    assert block.type == "fence"
    assert block.content.removesuffix("\n") == visible(text)


def test_common_text_is_not_cluttered():
    for text in (
        "lowered from 2.635 to 0.981 (41.7%)",
        "local_total:client-0",
        "a/b-c.d, e; f: g = h + i",
        "-0.5",
    ):
        assert escaped(text) == text


def test_blocks_are_written():
    table = Table(
        "Arms",
        (Column("arm"), Column("loss", "number", ".2f", "lowest")),
        (Row(("base", 2.0)), Row(("federated", 1.0), emphasis=True)),
    )
    blocks = (
        Text("text"),
        Note("careful", "warning"),
        Facts((Fact("seed", "0", "root"),), folded="More"),
        table,
        Code("ls"),
    )
    text = markdown(Document("T", "s", (Section("S", "s", blocks),)))
    assert "> **Warning:** careful" in text
    assert "- seed: 0 (root)" in text
    assert "| **federated** | **1.00** |" in text
    assert "```bash\nls\n```" in text


def test_a_report_with_hostile_names_has_no_html_and_no_links(make_run):
    run = make_run(
        clients=HOSTILE, categories=HOSTILE, arms=HOSTILE, answers=HOSTILE, failures=((HOSTILE[0],) * 2,)
    )
    parsed = tokens(markdown(run_report(run)))
    kinds = {token.type for token in parsed}
    assert not kinds & {"html_block", "html_inline", "link_open", "s_open"}
    pictures = [str(token.attrs["src"]) for token in parsed if token.type == "image"]
    assert pictures
    assert all(picture.startswith("figures/") and picture.endswith(".svg") for picture in pictures)
    headings = [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open"]
    assert headings[:3] == ["a-run", "Summary", "What was run"]
