import doctest
from xml.etree import ElementTree

import pytest

from fedit.report import markup
from fedit.report.markup import Markup, element, escape, join, number, visible


def test_examples_in_the_docs_hold():
    assert doctest.testmod(markup).failed == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tab\tand\nline", "tab\tand\nline"),
        ("a\r\nb\rc", "a\nb␍c"),
        ("\x1b[31m\x7f\x85", "␛[31m␡⟨U+0085⟩"),
        ("\u202egnp.exe\u2066", "⟨U+202E⟩gnp.exe⟨U+2066⟩"),
        ("zero\u200bwidth\ufeff", "zero⟨U+200B⟩width⟨U+FEFF⟩"),
        ("half \ud800 pair", "half ⟨U+D800⟩ pair"),
        ("tag \U000e0041", "tag ⟨U+E0041⟩"),
        ("שלום 日本 👩‍👧 é", "שלום 日本 👩‍👧 é"),
    ],
)
def test_what_cannot_be_seen_is_shown(text, shown):
    assert visible(text) == shown
    visible(text).encode()  # and can be written


def test_text_is_escaped_wherever_it_is_put_in():
    hostile = "</p><script>alert('\"&')</script>"
    drawn = element("p", hostile, title=hostile, data_x=hostile)
    parsed = ElementTree.fromstring(drawn)
    assert len(parsed) == 0
    assert parsed.text == parsed.get("title") == parsed.get("data-x") == hostile


def test_markup_is_not_escaped_twice_and_plain_text_made_of_it_is_no_markup():
    inner = element("b", "1 < 2")
    assert join(inner, "<") == "<b>1 &lt; 2</b>&lt;"
    assert escape(inner) is inner
    assert not isinstance(inner + "<script>", Markup)
    assert escape(f"{inner}") == "&lt;b&gt;1 &amp;lt; 2&lt;/b&gt;"


def test_elements_without_content_and_attributes_without_value():
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert element("path", d="M0 0") == '<path d="M0 0"/>'
    assert element("div") == "<div></div>"
    assert element("details", open=True, hidden=False, id=None, class_="x") == '<details open class="x"></details>'


def test_coordinates_are_short_and_finite():
    assert [number(value) for value in (1.0, 1.25, -0.04, 1e6 + 0.06)] == ["1", "1.2", "0", "1000000.1"]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            number(value)
