"""Votes: one line each, never half a line, and what they come to."""

import json

import pytest

from fedit.errors import DataError, RunFolderError
from fedit.evaluation.votes import Pair, Vote, append, read_votes, tally


def line(first, second, winner, **fields):
    return {"first": first, "second": second, "winner": winner, **fields}


def pair_of(*votes):
    [pair] = tally(votes).pairs
    return pair


def test_votes_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "votes.jsonl"
    append(path, [line("a", "b", "first", vote="1", question_id="q", identities={"first": "x", "second": "y"})])
    append(path, [line("b", "é", "tie", blind=False)])
    assert read_votes(path) == [
        Vote("a", "b", "first", vote="1", question_id="q", identities=("x", "y")),
        Vote("b", "é", "tie", blind=False),
    ]


def test_what_a_crash_left_unfinished_is_no_vote_and_goes(tmp_path):
    path = tmp_path / "votes.jsonl"
    append(path, [line("a", "b", "first")])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert len(read_votes(path)) == 1
    append(path, [line("a", "b", "second")])
    assert [vote.winner for vote in read_votes(path)] == ["first", "second"]


def test_a_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(line("a", "b", "tie")))  # as an editor may leave it
    assert len(read_votes(path)) == 1
    append(path, [line("a", "b", "second")])
    assert [vote.winner for vote in read_votes(path)] == ["tie", "second"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        append(tmp_path / "file" / "votes.jsonl", [line("a", "b", "tie")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"first": "a", "second": "a", "winner": "tie"}', "expected two names"),
        ('{"first": "a", "winner": "tie"}', "second None"),
        ('{"first": "a", "second": "b", "winner": "a"}', "expected one of first, second, tie, both_bad"),
    ],
)
def test_a_line_that_is_no_vote_is_named(tmp_path, text, message):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(line("a", "b", "tie")) + "\n" + text + "\n")
    with pytest.raises(DataError, match=r"votes\.jsonl:2: ") as error:
        read_votes(path)
    assert message in str(error.value)


def test_wins_are_counted_for_the_arm_wherever_it_was_shown():
    pair = pair_of(
        Vote("a", "b", "first"), Vote("b", "a", "second"), Vote("b", "a", "first"), Vote("a", "b", "tie"),
        Vote("b", "a", "both_bad"), Vote("b", "a", "tie"),
    )  # fmt: skip
    assert (pair.one, pair.other) == ("a", "b")
    assert (pair.wins, pair.losses, pair.ties, pair.both_bad, pair.count) == (2, 1, 2, 1, 6)
    assert pair.win_rate == (2 + 0.5 * 3) / 6


def test_only_blind_votes_count():
    result = tally([Vote("a", "b", "first"), Vote("a", "b", "first", blind=False)])
    assert (result.votes, result.not_blind, result.pairs[0].count) == (1, 1, 1)


def test_a_vote_among_three_is_one_vote_and_several_verdicts():
    result = tally([Vote("a", "b", "first", vote="v"), Vote("a", "c", "first", vote="v"), Vote("c", "b", "tie")])
    assert result.votes == 2
    assert [(p.one, p.other, p.wins, p.ties) for p in result.pairs] == [
        ("a", "b", 1, 0), ("a", "c", 1, 0), ("b", "c", 0, 1),
    ]  # fmt: skip


def test_places_are_counted_so_that_a_liking_for_the_first_shows():
    result = tally(
        [Vote("a", "b", "first"), Vote("b", "a", "first"), Vote("b", "a", "second"), Vote("a", "b", "tie")]
    )
    assert (result.first_shown, result.decided) == (2, 3)


def test_one_name_of_two_adapters_is_two_arms():
    old, new = ("1234567", "base"), ("abcdefg", "base")
    result = tally(
        [Vote("federated", "base", "first", identities=old), Vote("federated", "base", "second", identities=new)]
    )
    assert [(p.one, p.other, p.wins, p.losses) for p in result.pairs] == [
        ("federated [123456]", "base", 1, 0),
        ("base", "federated [abcdef]", 1, 0),
    ]


def test_a_pair_is_counted_for_the_one_that_won_more_often():
    votes = [Vote("a", "b", "second"), Vote("b", "a", "first"), Vote("a", "b", "first"), Vote("a", "b", "tie")]
    pair = pair_of(*votes)
    assert (pair.one, pair.other, pair.wins, pair.losses, pair.ties) == ("b", "a", 2, 1, 1)
    assert pair_of(Vote("b", "a", "tie")).one == "a"


def test_nothing_is_no_pairs():
    assert tally([]).as_dict() == {"votes": 0, "pairs": [], "first_shown": 0, "decided": 0, "not_blind": 0}


def test_the_interval_is_wilson_s():
    # 8 of 10, 95 %: Brown, Cai and DasGupta (2001) and every implementation
    assert Pair("a", "b", wins=8, losses=2).interval == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    # Six wins and four ties are eight wins of ten.
    assert Pair("a", "b", wins=6, ties=3, both_bad=1).interval == Pair("a", "b", wins=8, losses=2).interval
    assert Pair("a", "b", losses=5).interval[0] == 0.0
    assert Pair("a", "b", wins=5).interval[1] == 1.0
