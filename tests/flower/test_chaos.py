"""The plan of random kills: all kinds, the same from the same seed, and what is done is not done again."""

import json

from chaos import RESULTS, left, plan
from deploying import KINDS


def test_all_kinds_of_processes_are_killed_equally_often():
    kinds = [kill.kind for kill in plan(2 * len(KINDS), 0)]
    assert all(kinds.count(kind) == 2 for kind in KINDS)
    assert plan(20, 0) == plan(20, 0) != plan(20, 1)
    assert {kill.kind for kill in plan(20, 0)} == set(KINDS)


def test_what_was_interrupted_goes_on_where_it_stopped(tmp_path):
    kills = plan(3, 0)
    (tmp_path / RESULTS).write_text(json.dumps({"number": 2}) + '\n{"number": 3, "ki')
    assert [kill.number for kill in left(kills, tmp_path)] == [1, 3]
