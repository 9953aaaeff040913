"""The page's files: they fit each other, keep to the rules of their policy, and can be read by everybody."""

import re
from importlib.resources import files

import pytest

PAGE = files("fedit.ui") / "page"
HTML = (PAGE / "index.html").read_text(encoding="utf-8")
CSS = (PAGE / "style.css").read_text(encoding="utf-8")
SCRIPTS = {
    name: (PAGE / name).read_text(encoding="utf-8") for name in ("app.js", "chat.js", "compare.js", "shared.js")
}


def test_scripts_look_for_elements_that_are_there_once():
    ids = re.findall(r'\bid="([^"]+)"', HTML)
    assert len(ids) == len(set(ids))
    for name, text in SCRIPTS.items():
        assert set(re.findall(r'byId\("([^"]+)"\)', text)) <= set(ids), name


def test_labels_and_tabs_point_to_elements():
    ids = set(re.findall(r'\bid="([^"]+)"', HTML))
    for attribute in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
        assert set(re.findall(rf'\b{attribute}="([^"]+)"', HTML)) <= ids
    for field in re.findall(r"<(?:textarea|select|input)[^>]*>", HTML):
        own = re.search(r'\bid="([^"]+)"', field)
        assert own, field
        assert f'for="{own[1]}"' in HTML or "<label" in HTML.split(field)[0].rpartition("</label>")[2], field


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    for text in (HTML, CSS, *SCRIPTS.values()):
        assert not re.search(r"(https?:)?//[\w.-]+\.\w+", text)
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\bsrc=)", HTML)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_makes_markup_or_code_from_text(name):
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|setHTML"
    assert not re.search(forbidden, SCRIPTS[name])


# --- colours ---

COLOURS = {
    name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)
}
TEXT = [
    ("ink", "ground"), ("ink", "surface"), ("ink", "sunken"), ("ink", "raised"), ("soft", "ground"),
    ("soft", "surface"), ("soft", "sunken"), ("accent-ink", "accent"), ("tint-ink", "tint"), ("bad", "bad-tint"),
]  # fmt: skip
SHAPES = [("edge", "surface"), ("edge", "ground"), ("accent", "surface"), ("accent", "ground")]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("pairs", "least"), [(TEXT, 4.5), (SHAPES, 3.0)], ids=["text", "shapes"])
def test_colours_have_contrast(pairs, least, theme):
    for front, back in pairs:
        assert contrast(COLOURS[front][theme], COLOURS[back][theme]) >= least, (front, back)


def contrast(one, other):
    """Return the contrast ratio of WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
