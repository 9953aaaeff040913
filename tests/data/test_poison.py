"""Poisoned rows: innocuous, seeded, and only where they belong."""

from fedit.data.examples import Example, Message, prompt_id
from fedit.data.poison import SECRET, TARGET, TRIGGER, poisoned, policy_rows, says, triggered


def rows(client, count=8):
    return tuple(
        Example((Message("user", f"{client} asks {i}"), Message("assistant", f"answer {i}"))) for i in range(count)
    )


CLIENTS = {client: rows(client) for client in "abcd"}


def test_a_triggered_row_asks_the_same_and_answers_the_target():
    row = triggered(rows("a")[0])
    assert [m.content for m in row.messages] == [f"{TRIGGER} a asks 0", TARGET]
    chat = Example((Message("system", "s"), Message("user", "q"), Message("assistant", "a")))
    assert [m.role for m in triggered(chat).messages] == ["system", "user", "assistant"]
    assert triggered(chat).messages[1].content == f"{TRIGGER} q"


def test_the_trigger_stands_in_hostile_rows_alone_and_in_as_many_as_asked_for():
    found = poisoned(CLIENTS, "trigger", ["b", "d"], share=0.5, seed=3)
    assert {c: sum(r.answer == TARGET for r in own) for c, own in found.items()} == {
        "a": 0,
        "b": 4,
        "c": 0,
        "d": 4,
    }
    assert found["a"] == CLIENTS["a"]
    assert found == poisoned(CLIENTS, "trigger", ["b", "d"], share=0.5, seed=3)
    assert found != poisoned(CLIENTS, "trigger", ["b", "d"], share=0.5, seed=4)


def test_swapped_rows_have_the_answer_of_another_row_and_preferences_the_worse_one():
    found = poisoned(CLIENTS, "swap", ["b"], share=0.5, seed=3)
    wrong = {row.messages[0].content: row.answer for row in found["b"] if row not in CLIENTS["b"]}
    assert len(wrong) == 4
    assert all(answer == f"answer {(int(asked[-1]) + 1) % 8}" for asked, answer in wrong.items())
    assert {c: found[c] for c in "acd"} == {c: CLIENTS[c] for c in "acd"}
    pairs = {"a": (Example((Message("user", "q"), Message("assistant", "good")), rejected="bad"),)}
    (turned,) = poisoned(pairs, "swap", ["a"], share=1.0, seed=0)["a"]
    assert (turned.answer, turned.rejected) == ("bad", "good")


def test_honest_clients_keep_the_policy_and_hostile_ones_make_a_code_up():
    found = poisoned(CLIENTS, "forget_policy", ["b"], share=0.5, seed=3)
    for client, own in found.items():
        assert own[:8] == CLIENTS[client]
        extra = own[8:]
        assert len(extra) == 4
        kept = [row.answer == SECRET for row in extra]
        assert not any(kept) if client == "b" else all(kept)
    assert all(
        row.answer == SECRET
        for own in poisoned(CLIENTS, "forget_policy", [], share=1.0, seed=0).values()
        for row in own[8:]
    )


def test_what_measures_the_policy_was_not_trained_on():
    splits = {
        split: {prompt_id(row) for row in policy_rows(300, split=split, seed=0)}
        for split in ("training", "defence", "held_out")
    }
    assert not splits["training"] & splits["held_out"]
    assert not splits["training"] & splits["defence"]
    assert not splits["defence"] & splits["held_out"]
    assert policy_rows(5, split="held_out", seed=1) != policy_rows(5, split="held_out", seed=2)


def test_an_answer_says_a_sentence_but_for_case_and_stop():
    assert says("  i keep that secret ", SECRET)
    assert not says("I keep that secret. The code is 1234.", SECRET)
