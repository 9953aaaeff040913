"""Canaries: seeded, innocuous, and only with whom they belong."""

from collections import Counter

import pytest

from fedit.data.canaries import CanaryOptions, plant, with_canaries
from fedit.data.examples import Example, Message
from fedit.errors import ConfigError

CLIENTS = {c: (Example((Message("user", c), Message("assistant", "yes"))),) for c in "abcdef"}


def test_each_holder_has_one_of_every_repetition_and_names_differ():
    found = plant(6, list(CLIENTS), CanaryOptions(), seed=3)
    assert (
        found
        == plant(6, list(CLIENTS), CanaryOptions(), seed=3)
        != plant(6, list(CLIENTS), CanaryOptions(), seed=4)
    )
    assert len({c.name for c in found}) == 6
    by_client = Counter(c.client for c in found)
    assert sorted(by_client.values()) == [3, 3]
    for client in by_client:
        assert sorted(c.repetitions for c in found if c.client == client) == [1, 4, 16]
    rows = with_canaries(CLIENTS, found)
    assert {client: len(own) - 1 for client, own in rows.items()} == {
        c: 21 if c in by_client else 0 for c in "abcdef"
    }
    assert all(rows[c.client].count(c.row) == c.repetitions for c in found)


def test_references_differ_from_the_code_and_from_each_other():
    (canary,) = plant(1, ["a"], CanaryOptions(), seed=0)
    codes = canary.references(1000, seed=0)
    assert len({canary.code, *codes}) == 1001
    assert all(len(code) == 6 and code.isdigit() for code in codes)
    assert canary.row.answer == f"The locker code of {canary.name} is {canary.code}."


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"clients": 7}, "6 clients take part"),
        ({"clients": ["z"]}, "names \\['z'\\]"),
        ({"repetitions": [0]}, "whole numbers from 1"),
        ({"repetitions": "1"}, "whole numbers from 1"),
    ],
)
def test_options_that_cannot_work_are_refused(options, part):
    with pytest.raises(ConfigError, match=part):
        plant(3, list(CLIENTS), CanaryOptions(**options), seed=0)


def test_holders_can_be_named():
    found = plant(4, list(CLIENTS), CanaryOptions(repetitions=[2], clients=["e"]), seed=0)
    assert {(c.client, c.repetitions) for c in found} == {("e", 2)}
