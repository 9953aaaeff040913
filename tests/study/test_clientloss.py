"""Intervals over clients: every draw of rows against the same losses computed one by one."""

import numpy as np
import pytest

from fedit.data.statistics import per_client_loss, summary
from fedit.evaluation.intervals import nested_bootstrap
from fedit.study.clientloss import SUMMARIES, ClientTable
from fedit.study.items import Items

CATEGORIES = ("a", "b", "a", "c", "b", "c", "a", None)
NOBODY = (None,) * len(CATEGORIES)
COUNTS = {
    "one": {"a": 5, "b": 0, "c": 0},
    "two": {"a": 1, "b": 3},
    "three": {"b": 1, "c": 9, "elsewhere": 100},
    "none": {"elsewhere": 4},
}
SIZES = {"one": 5.0, "two": 4.0, "three": 110.0, "none": 4.0}


def items(seed, owners=NOBODY):
    generator = np.random.default_rng(seed)
    rows = len(CATEGORIES)
    tokens = [*generator.integers(1, 9, rows - 2).tolist(), 0, 5]
    nll = [float(own * generator.uniform(1, 4)) for own in tokens]
    return Items(tuple(map(str, range(rows))), CATEGORIES, owners, tuple(nll), tuple(tokens), tuple(tokens))


def by_label(own, labels, picked):
    sums: dict[str, list[float]] = {}
    for row in picked:
        if labels[row] is not None:
            total = sums.setdefault(labels[row], [0.0, 0.0])
            total[0] += own.nll[row]
            total[1] += own.tokens[row]
    return {label: nll / tokens for label, (nll, tokens) in sums.items() if tokens}


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_draw_is_the_summary_of_what_its_rows_give(name):
    own = items(1)
    table = ClientTable.of(own, SIZES, COUNTS)
    picked = np.random.default_rng(2).integers(len(CATEGORIES), size=(300, len(CATEGORIES)))
    found = table.statistic(name)(picked.astype(np.float64))
    expected = [
        summary(per_client_loss(by_label(own, own.categories, draw), COUNTS))[name] for draw in picked.tolist()
    ]
    assert found == pytest.approx(expected, rel=1e-12)
    # Some draws lack a category that some client holds alone.
    assert any("a" not in by_label(own, own.categories, draw) for draw in picked.tolist())


@pytest.mark.parametrize("name", SUMMARIES)
def test_of_rows_with_owners_everyone_is_measured_on_its_own(name):
    owners = ("one", "two", "one", "three", "two", None, "one", "three")
    own = items(3, owners)
    table = ClientTable.of(own, SIZES, COUNTS)
    picked = np.random.default_rng(4).integers(len(owners), size=(200, len(owners)))
    expected = [summary(by_label(own, owners, draw))[name] for draw in picked.tolist()]
    assert table.statistic(name)(picked.astype(np.float64)) == pytest.approx(expected, rel=1e-12)


def test_the_worst_tenth_is_rounded_up():
    losses = np.array([[float(i) for i in range(11)], [*[float(i) for i in range(10)], np.nan]])
    assert SUMMARIES["worst_decile"](losses).tolist() == [9.5, 9.0]


def test_differences_are_of_the_same_draw():
    one, other = items(5), items(6)
    table, theirs = (ClientTable.of(own, SIZES, COUNTS) for own in (one, other))
    interval = nested_bootstrap([table.places], [table.statistic("mean", theirs)], resamples=200)
    alone = [nested_bootstrap([t.places], t.statistic("mean"), resamples=200).estimate for t in (table, theirs)]
    assert interval.estimate == pytest.approx(alone[0] - alone[1])
    assert nested_bootstrap([table.places], table.statistic("mean", table), resamples=50).bounds() == [0, 0]


def test_no_client_has_a_loss_or_the_arm_diverged():
    assert ClientTable.of(items(7), SIZES, {"none": {"elsewhere": 1}}) is None
    whole = items(8)
    broken = Items(whole.rows, whole.categories, whole.owners, (float("inf"), *whole.nll[1:]), whole.tokens, ())
    assert ClientTable.of(broken, SIZES, COUNTS) is None
