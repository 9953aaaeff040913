"""Figures: all lies within the picture, can be read, says what it shows, and depends on the data alone."""

import math
import warnings
from itertools import product
from xml.etree import ElementTree

import pytest

from fedit.report.chartdata import chart_table
from fedit.report.charts import theme
from fedit.report.charts.pdf import pdf_file
from fedit.report.charts.scale import scale, shortened, text_width
from fedit.report.charts.spec import (
    Axis,
    Bars,
    HeatMap,
    Interval,
    Intervals,
    Lines,
    Panel,
    Panels,
    Reference,
    Series,
    Stack,
)
from fedit.report.charts.svg import NARROW, WIDE, inline_svg, svg_file
from fedit.report.numbers import Estimate

HOSTILE = ("<script>alert(1)</script>", "]]>", "W" * 300, "\u202e\x00\ud800", "$x_1$", "_hidden", "名前", "")
LOSS = Axis("loss", ".3f")
TOKENS = Axis("tokens", "compact", zero=True)


def curves(names, points=5):
    return tuple(
        Series(
            name,
            tuple((1000.0 * x, 2.0 - 0.2 * x - 0.1 * i) for x in range(points)),
            tuple((1000.0 * x, 1.8 - 0.2 * x, 2.2 - 0.2 * x) for x in range(points)) if i == 0 else (),
            emphasis=i == 0,
        )
        for i, name in enumerate(names)
    )


def charts(names=("one", "two", "three")):
    """One chart of every kind, over ``names``."""
    lines = curves(names)
    references = (Reference(names[0], 1.5),) if names else ()
    values = tuple(tuple(None if i == j else float(i * j) for j in range(len(names))) for i in range(len(names)))
    shares = tuple(
        Interval(name, Estimate(0.1 * i, 0.1 * i - 0.05, 0.1 * i + 0.1), i == 0) for i, name in enumerate(names)
    )
    counts = tuple(float(i) for i in range(len(names)))
    return {
        "lines": Lines(TOKENS, LOSS, lines, references),
        "panels": Panels(TOKENS, LOSS, tuple(Panel(name, lines, references) for name in names)),
        "bars": Bars("round", Axis("bytes", "bytes"), names, tuple(Stack(name, counts) for name in names)),
        "heat": HeatMap("client", "category", "rows", names, names, values, ",d", True, counts, "all", ",d"),
        "intervals": Intervals(Axis("share", ".0%"), shares, references),
    }


def odd():
    """Charts of missing and infinite numbers, of single points, of equal values, of huge and tiny ones."""
    nan, inf = math.nan, math.inf
    series = (
        Series("gaps", ((0, 1.0), (1, None), (2, nan), (3, inf), (4, 2.0)), ((0, nan, 1.0), (1, None, 2.0))),
        Series("none", ()),
        Series("nothing finite", ((0, nan),)),
    )
    return [
        Lines(LOSS, LOSS, series, (Reference("nan", nan),)),
        Lines(Axis("x", whole=True), LOSS, (Series("point", ((3, 1.0),)),)),
        Lines(LOSS, LOSS, (Series("equal", ((1, 5.0), (2, 5.0))),)),
        Lines(LOSS, LOSS, (Series("huge", ((0, 1e300), (1e9, -1e300))),)),
        Lines(LOSS, LOSS, (Series("tiny", ((0, 1e-300), (1e-9, 2e-300))),)),
        Bars("x", LOSS, ("a", "b"), (Stack("s", (nan, None)),)),
        Bars("x", LOSS, (), ()),
        HeatMap("r", "c", "m", ("a",), ("b", "c"), ((nan, inf),), totals=(nan,)),
        HeatMap("r", "c", "m", (), (), ()),
        Intervals(LOSS, (Interval("a", Estimate(nan, nan, nan)), Interval("b", Estimate(1.0)))),
    ]


def drawn(chart, width=WIDE):
    return ElementTree.fromstring(
        inline_svg(chart, title="A <title>", description="What & how", width=width, key="k")
    )


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("kind", charts())
@pytest.mark.parametrize("count", [1, 3, 8, 40])
def test_everything_lies_within_the_picture(kind, count, width):
    names = tuple(f"a name of client number {i}" for i in range(count))
    picture = drawn(charts(names)[kind], width)
    left, top, wide, high = map(float, picture.get("viewBox").split())
    for node in picture.iter():
        x = node.get("x") or node.get("cx") or node.get("x1")
        y = node.get("y") or node.get("cy") or node.get("y1")
        if x and y and not (turn := node.get("transform")):
            assert left <= float(x) <= left + wide
            assert top <= float(y) <= top + high
        if node.tag == "text" and not turn:
            size = text_width(node.text or "", 12)
            start = float(x) - {None: 0, "middle": size / 2, "end": size}[node.get("text-anchor")]
            assert left - 1 <= start, node.text
            # Widths are rather too wide; a font that is as wide everywhere has not been seen.
            assert start + 0.9 * size <= left + wide + 1, node.text


@pytest.mark.parametrize("kind", charts())
def test_text_is_large_enough_on_a_phone(kind):
    picture = drawn(charts()[kind], NARROW)
    shown_at = 390 - 2 * 16  # a phone less the page's margins
    scaling = shown_at / float(picture.get("viewBox").split()[2])
    assert float(picture.get("font-size")) * scaling >= 11
    assert all(node.get("font-size") is None for node in picture.iter("text"))


@pytest.mark.parametrize("kind", charts())
def test_a_figure_says_what_it_is_and_tells_its_values(kind):
    picture = drawn(charts()[kind])
    assert picture.get("role") == "img"
    named = picture.get("aria-labelledby").split()
    texts = {node.get("id"): node.text for node in picture.iter() if node.get("id")}
    assert [texts[name] for name in named] == ["A <title>", "What & how"]
    tips = [node.text for node in picture.iter("title")]
    assert len(tips) >= 3
    assert any("one" in tip for tip in tips)


@pytest.mark.parametrize("kind", charts())
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_hostile_names_stay_text(kind, width):
    harmless = drawn(charts(tuple(f"name {i}" for i in range(len(HOSTILE))))[kind], width)
    picture = drawn(charts(HOSTILE)[kind], width)
    tags = {node.tag for node in picture.iter()}
    assert tags <= {node.tag for node in harmless.iter()} | {"title"}
    assert "\u202e" not in "".join(picture.itertext())


@pytest.mark.parametrize("chart", odd(), ids=range(len(odd())))
def test_odd_numbers_are_drawn_as_gaps(chart):
    for width in (WIDE, NARROW):
        places = [value for node in drawn(chart, width).iter() for value in node.attrib.values()]
        assert not any("nan" in place or "inf" in place for place in places)
    assert pdf_file(chart).startswith(b"%PDF")
    assert chart_table(chart, "numbers").folded


def test_files_depend_on_the_data_alone():
    for chart in charts().values():
        assert svg_file(chart, title="t", description="d") == svg_file(chart, title="t", description="d")
    bars, other = charts()["bars"], charts(("other", "names"))["bars"]
    assert pdf_file(bars) == pdf_file(bars) != pdf_file(other)


@pytest.mark.parametrize("kind", charts())
def test_pdf_takes_any_name(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pdf_file(charts(HOSTILE)[kind]).startswith(b"%PDF")


def test_a_file_of_its_own_needs_no_style_sheet():
    for chart in charts().values():
        text = svg_file(chart, title="t", description="d")
        assert "var(" not in text
        root = ElementTree.fromstring(text.split("\n", 1)[1])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_a_gap_in_a_curve_is_not_bridged():
    chart = Lines(LOSS, LOSS, (Series("s", ((0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, 2.0))),))
    lines = [node.get("d") for node in drawn(chart).iter("path") if node.get("stroke-linecap")]
    assert len(lines) == 2
    assert all(line.count("L") == 1 for line in lines)


def test_bars_are_as_high_as_their_values():
    chart = Bars("round", Axis("n", zero=True), ("1", "2"), (Stack("a", (1.0, 2.0)), Stack("b", (3.0, 2.0))))
    bars = [node for node in drawn(chart).iter("rect") if node.find("title") is not None]
    heights = {bar.find("title").text: float(bar.get("height")) for bar in bars}
    unit = heights["round 1, a: 1"]
    assert heights["round 1, b: 3"] == pytest.approx(3 * unit, abs=0.2)
    assert heights["round 2, a: 2"] == heights["round 2, b: 2"] == pytest.approx(2 * unit, abs=0.2)


def test_shades_follow_values():
    chart = HeatMap("r", "c", "m", ("a",), tuple("bcdef"), ((0.0, 2.0, 4.0, 8.0, None),))
    cells = [node for node in drawn(chart).iter("rect") if node.find("title") is not None]
    shades = [int(cell.get("fill").removeprefix("var(--heat-").removesuffix(")")) for cell in cells]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1], len(shades)) == (0, theme.STEPS - 1, 4)


def test_tables_of_figures_have_all_numbers():
    table = chart_table(charts()["lines"], "numbers")
    assert [column.title for column in table.columns] == ["curve", "tokens", "loss"]
    assert len(table.rows) == 3 * 5 + 1
    assert table.rows[0].cells == ("one", 0.0, Estimate(2.0, 1.8, 2.2))
    heat = chart_table(charts()["heat"], "numbers")
    assert heat.rows[1].cells == ("two", 0.0, None, 2.0, 1.0)


# --- axes and text ---


@pytest.mark.parametrize(
    ("axis", "values", "ticks"),
    [
        (Axis("x"), [1.2, 2.9], (1, 1.5, 2, 2.5, 3)),
        (Axis("x", zero=True), [1.2, 2.9], (0, 1, 2, 3)),
        (Axis("x", whole=True), [0, 3], (0, 1, 2, 3)),
        (Axis("x"), [0.1, 10], (0, 2.5, 5, 7.5, 10)),
        (Axis("x"), [], (0, 0.25, 0.5, 0.75, 1)),
    ],
)
def test_axes_have_round_ticks(axis, values, ticks):
    assert scale(axis, values, 4).ticks == pytest.approx(ticks)


def test_a_tight_axis_ends_where_the_values_do():
    axis = scale(Axis("x"), [1.2, 2.9], 4, tight=True)
    assert (axis.low, axis.high) == (1.2, 2.9)
    assert axis.ticks == pytest.approx((1.5, 2, 2.5))
    assert axis.placed(100, 200)(2.9) == 200


def test_long_names_are_cut_to_the_room():
    for text, room in product(("W" * 100, "a name", "名" * 30, "i" * 80), (20, 60, 300)):
        cut = shortened(text, room, 12)
        assert text_width(cut, 12) <= max(room, 25)  # one sign and the dots always stay
        assert cut == text or cut.endswith("…")


# --- colours ---


def contrast(one, other):
    """Return the contrast ratio of WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_text_and_shapes_can_be_told_from_their_ground(colours):
    for role, ground in product(("ink", "muted", "accent", "good", "bad"), ("surface", "panel")):
        assert contrast(colours[role], colours[ground]) >= 4.5, (role, ground)
    for ground in ("mark", "warn"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
    for position in range(theme.SERIES):
        assert contrast(colours[theme.series_role(position)], colours["surface"]) >= 3
    for step in range(theme.STEPS):
        assert contrast(colours[f"heat-ink-{step}"], colours[f"heat-{step}"]) >= 4.5, step


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_shades_get_steadily_stronger_and_lines_differ_in_more_than_colour(colours):
    levels = [luminance(colours[f"heat-{step}"]) for step in range(theme.STEPS)]
    assert levels in (sorted(levels), sorted(levels, reverse=True))
    styles = {(theme.marker(i), theme.dash(i)) for i in range(theme.SERIES * len(theme.DASHES))}
    assert len(styles) == theme.SERIES * len(theme.DASHES)
