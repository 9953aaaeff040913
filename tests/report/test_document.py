import json
import math

import pytest

from fedit.report.charts.spec import Axis, Lines, Series
from fedit.report.difference import compared
from fedit.report.document import (
    Column,
    Document,
    Figure,
    Row,
    Section,
    Table,
    Text,
    data,
)
from fedit.report.numbers import Estimate

CHART = Lines(Axis("x"), Axis("y"), (Series("s", ((0, math.nan), (1, 2.0))),))


def table(values, best):
    columns = (Column("arm"), Column("loss", "number", ".3f", best))
    return Table("t", columns, tuple(Row((str(i), value)) for i, value in enumerate(values)))


@pytest.mark.parametrize(
    ("values", "best", "rows"),
    [
        ((2.0, 1.0, 3.0), "lowest", {1}),
        ((2.0, 1.0, 3.0), "highest", {2}),
        ((2.0, 1.0, 3.0), None, set()),
        ((Estimate(0.2, 0.1, 0.3), Estimate(0.4), 0.4), "highest", {1, 2}),
        ((None, math.nan, 3.0, 4.0), "lowest", {2}),
        ((1.0, 1.0), "lowest", set()),
        ((1.0,), "lowest", set()),
        ((), "lowest", set()),
    ],
)
def test_the_best_of_a_column_is_found(values, best, rows):
    assert table(values, best).best_rows(1) == rows


def test_a_row_of_another_width_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        Table("t", (Column("a"), Column("b")), (Row(("x",)),))


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../x", "a--b", "1st", "x\n"])
def test_names_of_files_and_links_are_plain(name):
    with pytest.raises(ValueError, match="name"):
        Figure(name, "t", CHART, "alt")
    with pytest.raises(ValueError, match="anchor"):
        Section("t", name, ())


def test_names_are_unique_in_a_document():
    section, figure = Section("t", "one", ()), Figure("pic", "t", CHART, "alt")
    with pytest.raises(ValueError, match="twice"):
        Document("t", "s", (section, section))
    with pytest.raises(ValueError, match="twice"):
        Document("t", "s", (Section("t", "a", (figure,)), Section("t", "b", (figure,))))


def test_data_is_json_with_the_types_of_blocks():
    blocks = (Text("half \ud800"), table((1.0, math.inf), None), Figure("pic", "t", CHART, "alt"))
    content = json.loads(json.dumps(data(Document("t", "s", (Section("T", "a", blocks),))), allow_nan=False))
    assert content["format"] == "fedit-report-1"
    text, numbers, figure = content["sections"][0]["blocks"]
    assert (text["type"], text["text"]) == ("Text", "half ?")
    assert [row["cells"] for row in numbers["rows"]] == [["0", 1.0], ["1", None]]
    assert figure["chart"]["type"] == "Lines"
    assert figure["chart"]["series"][0]["points"] == [[0, None], [1, 2.0]]


# --- differences ---


def marked(answer):
    return [piece.text for piece in answer.pieces if piece.new]


def test_words_that_the_base_lacks_are_marked():
    answer = compared("a", "The larger  number is 83.\n", "The larger number is 48.", right=True)
    assert answer.against == "changed"
    assert marked(answer) == ["83"]
    assert answer.text == "The larger  number is 83.\n"
    assert answer.right is True


@pytest.mark.parametrize(
    ("text", "base", "against"),
    [
        ("same words", "same  words ", "same"),
        ("", "", "same"),
        ("nothing in common", "Paris", "rewritten"),
        ("Paris", "", "rewritten"),
        ("anything", None, ""),
        ("word " * 1500, "word " * 1501, ""),
    ],
)
def test_answers_that_are_the_same_or_have_nothing_in_common_are_left_alone(text, base, against):
    answer = compared("a", text, base)
    assert answer.against == against
    assert marked(answer) == []
    assert answer.text == text
