"""The section on what clients run for themselves: many clients, none with categories, hostile names."""

from runfolders import HOSTILE

from fedit.report.document import Document, Figure, Table
from fedit.report.html import html
from fedit.report.sections.personal import MOST_ROWS, Client, personal_section


def made(count, categories=("copy", "upper"), names=None):
    losses = [1.0 + (7 * k) % count for k in range(count)]
    clients = [
        Client(
            names[k] if names else f"client-{k}",
            k != 1,
            {"global": 9.0, "personal": losses[k]},
            {"personal": {name: losses[k] for name in categories}},
        )
        for k in range(count)
    ]
    summaries = {
        "seen": {
            "personal": {"clients": 2, "mean": 2.0, "gap_to_global": -7.0},
            "global": {"clients": 2, "mean": 9.0},
        },
        "unseen": {"personal": {"clients": 1, "mean": 3.0}},
    }
    return personal_section(clients, dict.fromkeys(categories, 9.0), summaries, steps=0, measured=False)


def test_of_many_clients_those_that_lose_most_are_drawn_and_all_are_listed():
    section = made(60)
    (figure,) = [block for block in section.blocks if isinstance(block, Figure)]
    assert len(figure.chart.rows) == MOST_ROWS + 1
    assert min(figure.chart.totals[1:]) == 21.0
    assert f"Of 60 clients the {MOST_ROWS} that lose most are shown" in figure.caption
    assert len([block for block in section.blocks if isinstance(block, Table)][-1].rows) == 60


def test_without_categories_there_is_nothing_to_draw():
    section = made(3, categories=())
    assert not [block for block in section.blocks if isinstance(block, Figure)]
    assert "client-2" in html(Document("run", "", (section,)))


def test_kinds_of_models_stand_in_one_order_and_a_gap_that_nobody_has_is_left_out():
    (table, _) = [block for block in made(3).blocks if isinstance(block, Table)]
    assert [row.cells[0] for row in table.rows] == [
        "the global adapter",
        "the client's own",
        "the client's own (never in a cohort)",
    ]
    assert table.rows[0].cells[5] is None
    assert table.rows[1].cells[5] == -7.0


def test_names_of_clients_and_categories_cannot_do_harm():
    section = made(len(HOSTILE), categories=HOSTILE[:3], names=HOSTILE)
    page = html(Document("run", "", (section,)))
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
