"""Sessions: every way of dropping out gives the exact sum of who is left, or nothing; rules are kept."""

import hashlib
import itertools
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from playing import STAGES, Played, added, carried, words

from fedit.errors import NoUpdates, ProtocolError
from fedit.privacy.secagg import client
from fedit.privacy.secagg.graph import least_shares
from fedit.privacy.secagg.messages import AskKeys, AskMasked, AskShares, AskUnmask

STAY = "nowhere"


def names(count):
    return [f"c{i}" for i in range(count)]


def outcomes(stages):
    """Return (who is in the sum, how many reveal, how many share) of clients that stop at these stages."""
    survivors = [i for i, stage in enumerate(stages) if stage in (STAY, "unmask")]
    return survivors, sum(s == STAY for s in stages), sum(s not in ("keys", "shares") for s in stages)


@pytest.mark.parametrize(("count", "threshold"), [(3, 0.5), (4, 0.5), (4, 0.7)])
def test_the_sum_is_exact_for_every_way_of_dropping_out_or_there_is_none(count, threshold):
    vectors = words(names(count), 3)
    for stages in product([*STAGES, STAY], repeat=count):
        dropping = {name: stage for name, stage in zip(names(count), stages, strict=True) if stage != STAY}
        survivors, revealing, sharing = outcomes(stages)
        keyed = sum(stage != "keys" for stage in stages)
        # In a complete graph all who sent keys hold everybody's shares.
        needed = least_shares(keyed, threshold)
        played = Played(vectors, dropping, threshold=threshold)
        if min(sharing, len(survivors), revealing) >= needed and keyed >= 2:
            total, who = played.run()
            assert who == [names(count)[i] for i in survivors]
            assert np.array_equal(total, added(vectors, who))
        else:
            with pytest.raises(NoUpdates):
                played.run()


def test_below_the_threshold_nobody_is_asked_to_reveal_anything():
    played = Played(words(names(5), 2), dict.fromkeys(["c0", "c1", "c2"], "masked"))
    with pytest.raises(NoUpdates, match=r"2 of the 5 that hold shares .* 3 are needed"):
        played.run()
    assert {own.stage for own in played.sessions.values()} == {"shares", "masked"}


def test_neighbours_suffice_in_a_large_cohort_with_drop_outs_in_every_stage():
    vectors = words(names(40), 5)
    dropping = {"c3": "keys", "c11": "shares", "c17": "masked", "c23": "masked", "c31": "unmask"}
    played = Played(vectors, dropping, neighbours=12)
    total, who = played.run()
    assert set(vectors) - set(who) == {"c3", "c11", "c17", "c23"}
    assert np.array_equal(total, added(vectors, who))
    assert {len(s.peers) for s in played.sessions.values() if s.stage == "masked"} == {12}


@pytest.fixture
def seeded(monkeypatch):
    """Let keys and seeds follow from a counter, so that a statistical test has one outcome."""
    counter = itertools.count()
    draw = lambda size=32: hashlib.sha256(b"%d" % next(counter)).digest()[:size]  # noqa: E731
    monkeypatch.setattr(client.KeyPair, "new", classmethod(lambda cls: cls.of(draw())))
    monkeypatch.setattr(client.secrets, "token_bytes", draw)


def test_one_masked_vector_cannot_be_told_from_noise(seeded):
    """Chi-square over bytes and over bits of what the server gets of a client, whatever that client sends."""
    zeros = {name: np.zeros(1 << 15, dtype=np.uint64) for name in names(3)}
    played = Played(zeros)
    played.run()
    for masked in played.seen.values():
        counts = np.bincount(masked.view(np.uint8), minlength=256)
        expected = counts.sum() / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert 255 - 5 * np.sqrt(510) < statistic < 255 + 5 * np.sqrt(510)
        for bit in range(64):
            ones = int(((masked >> np.uint64(bit)) & np.uint64(1)).sum())
            assert abs(ones - len(masked) / 2) < 6 * np.sqrt(len(masked) / 4)
    first, second, _ = played.seen.values()
    assert abs(np.corrcoef(first.view(np.uint8), second.view(np.uint8))[0, 1]) < 0.01


# --- what a client refuses ---


def at_masked(dropping=()):
    """Return a session of three in which all have masked their vectors, and what c0 is asked next."""
    played = Played(words(names(3), 2), dict.fromkeys(dropping, "masked"))
    asked = {}
    real = played._unmask
    played._unmask = lambda own, question: asked.setdefault(own, question) and real(own, question)
    kept = {}
    masked = played._masked

    def keep(own, question):
        answer = masked(own, question)
        kept[own] = played.sessions[own]
        return answer

    played._masked = keep
    played.run()
    return kept["c0"], AskUnmask.read(asked["c0"])


def test_a_client_never_reveals_both_shares_of_anybody():
    session, asked = at_masked()
    with pytest.raises(ProtocolError, match="c1 is said to have survived and to have dropped out"):
        client.reveal(session, replace(asked, dropped=("c1",)), 0.5)
    after, first = client.reveal(session, asked, 0.5)
    assert not set(first.seeds) & set(first.mask_keys)
    lie = replace(asked, survivors=("c0", "c2"), dropped=("c1",))
    with pytest.raises(ProtocolError, match="this stage follows 'masked'"):
        client.reveal(after, lie, 0.5)


@pytest.mark.parametrize(
    ("survivors", "dropped", "reason"),
    [
        (("c0",), ("c1", "c2"), "1 clients survived; at least 2"),
        (("c1", "c2"), ("c0",), "are not those whose shares are here"),
        (("c0", "c1"), (), "are not those whose shares are here"),
        (("c0", "c1", "c2", "c9"), (), "are not those whose shares are here"),
    ],
)
def test_a_client_reveals_nothing_to_a_server_that_tells_it_something_else(survivors, dropped, reason):
    session, asked = at_masked()
    with pytest.raises(ProtocolError, match=reason):
        client.reveal(session, replace(asked, survivors=survivors, dropped=dropped), 0.5)


def test_a_vector_is_masked_once_and_secrets_are_forgotten():
    session, asked = at_masked()
    with pytest.raises(ProtocolError, match="a vector is masked once"):
        client.mask(session, np.zeros(2, dtype=np.uint64))
    assert (session.mask_key, session.share_key, session.seed) == (b"", b"", b"")
    after, _ = client.reveal(session, asked, 0.5)
    assert (dict(after.held), dict(after.peers)) == ({}, {})


def test_a_client_takes_no_part_alone_with_itself_or_with_a_double():
    session, keys = client.begin("a", 1, AskKeys(bytes(16)))
    with pytest.raises(ProtocolError, match="too few to hide"):
        client.hand_out(session, AskShares(bytes(16), {}), 0.5)
    pair = (keys.mask_key, keys.share_key)
    with pytest.raises(ProtocolError, match="no neighbour of its own"):
        client.hand_out(session, AskShares(bytes(16), {"a": pair}), 0.5)
    with pytest.raises(ProtocolError, match="the same key"):
        client.hand_out(session, AskShares(bytes(16), {"b": pair, "c": pair}), 0.5)
    with pytest.raises(ProtocolError, match="another session"):
        client.hand_out(session, AskShares(bytes([1] * 16), {"b": pair}), 0.5)


def test_a_point_of_small_order_is_refused():
    session, _ = client.begin("a", 1, AskKeys(bytes(16)))
    with pytest.raises(ProtocolError, match="not one that an honest client makes"):
        client.hand_out(session, AskShares(bytes(16), {"b": (bytes(32), bytes([1] + [0] * 31))}), 0.5)


def test_a_letter_that_was_changed_is_noticed():
    asks = {}
    played = Played(words(names(3), 2))
    real = played._masked

    def spoil(own, question):
        if own == "c0":
            asked = AskMasked.read(question)
            letter = bytearray(asked.sealed["c1"])
            letter[20] ^= 1
            asks[own] = replace(asked, sealed={**asked.sealed, "c1": bytes(letter)})
            question = carried(asks[own])
        return real(own, question)

    played._masked = spoil
    total, who = played.run()
    assert played.refused == {"c0": "a sealed share was changed on its way, or is not for this client"}
    assert np.array_equal(total, added(played.vectors, who))
    assert who == ["c1", "c2"]


# --- what the server refuses ---


def test_an_answer_that_breaks_the_rules_makes_its_sender_a_drop_out():
    def tamper(stage, own, said):
        if own != "c3":
            return said
        return {
            "keys": said,
            "shares": said,
            "masked": {"extras": [["x", [5]]]},
            "unmask": said,
        }[stage]

    played = Played(words(names(4), 2), tamper=tamper)
    total, who = played.run()
    assert who == ["c0", "c1", "c2"]
    assert np.array_equal(total, added(played.vectors, who))
    assert "other names or shapes" in played.refused["c3"]


def test_shares_that_fit_nothing_end_the_round_and_name_whose_they_are():
    def tamper(stage, own, said):
        if stage == "unmask" and own == "c0":
            said["seeds"]["c1"] = said["seeds"]["c0"]
        return said

    with pytest.raises(NoUpdates, match="client 'c1'"):
        Played(words(names(3), 2), tamper=tamper).run()


def test_answers_that_were_not_asked_for_or_come_twice_are_refused():
    played = Played(words(names(3), 2))
    played._stage("keys", played.server.ask_keys(), played._keys, played.server.keys)
    _, answer = client.begin("c0", 1, AskKeys(bytes(16)))
    with pytest.raises(ProtocolError, match="answered already"):
        played.server.keys("c0", carried(answer))
    with pytest.raises(ProtocolError, match="it was not asked"):
        played.server.keys("stranger", carried(answer))
    with pytest.raises(ProtocolError, match="it was not asked"):
        played.server.masked("c0", {"extras": []}, np.zeros(2, dtype=np.uint64))


def test_keys_are_nobody_else_s():
    copied = {}

    def tamper(stage, own, said):
        if stage == "keys":
            copied.setdefault("first", said)
            return copied["first"]
        return said

    played = Played(words(names(3), 2), tamper=tamper)
    with pytest.raises(NoUpdates, match="1 of 3 clients are left"):
        played.run()
    assert all("those of somebody else" in reason for reason in played.refused.values())
