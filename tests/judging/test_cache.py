import json
import threading

import pytest

from fedit.errors import RunFolderError
from fedit.judging.base import Reply
from fedit.judging.cache import VERDICTS, Replies, open_replies, read_records

REPLY = Reply("8 7", None, 10, 2)


def test_what_is_added_is_found_again(tmp_path):
    path = tmp_path / "v.jsonl"
    replies = Replies(path)
    weighed = Reply(None, {"[[A]]": -0.25, "[[B]]": -1.5}, 30, 0)
    guessed = Reply("\ud800 ü", None, 5, 1, estimated=True)
    for key, reply in (("a", REPLY), ("b", weighed), ("c", guessed)):
        replies.add(key, reply, {"question_id": key})
    again = Replies(path)
    assert [again.get(key) for key in "abc"] == [REPLY, weighed, guessed]
    assert again.get("d") is None
    assert [record["question_id"] for record in read_records(path)] == ["a", "b", "c"]


@pytest.mark.parametrize("torn", range(1, 40))
def test_a_line_that_was_cut_anywhere_costs_itself_alone(tmp_path, torn):
    path = tmp_path / "v.jsonl"
    Replies(path).add("a", REPLY, {})
    Replies(path).add("b", REPLY, {})
    path.write_bytes(path.read_bytes()[:-torn])
    after = Replies(path)
    # A missing line feed alone leaves the reply whole.
    assert (after.get("a"), after.get("b"), after.broken) == (REPLY, REPLY if torn == 1 else None, int(torn > 1))
    after.add("c", REPLY, {})
    last = Replies(path)
    assert (last.get("a"), last.get("c")) == (REPLY, REPLY)
    assert last.broken == after.broken


@pytest.mark.parametrize(
    "line",
    ['"text"', "[1]", "{}", '{"key": "a", "reply": {"text": 3, "tokens_in": 1, "tokens_out": 1}}'],
)
def test_lines_of_another_kind_are_counted(tmp_path, line):
    path = tmp_path / "v.jsonl"
    path.write_text(f"{line}\n\n", encoding="utf-8")
    assert (len(Replies(path)), Replies(path).broken) == (0, 1)


def test_a_verdict_on_a_reply_that_is_there_has_one_line_of_its_own(tmp_path):
    about = [{"purpose": "comparison", "question_id": "1", "shown": arms, "repeat": 0} for arms in (["a"], ["b"])]
    for _ in range(2):
        replies = Replies(tmp_path / "v.jsonl")
        if replies.get("k") is None:
            replies.add("k", REPLY, about[0])
        for one in about:
            replies.note("k", one)
    records = read_records(tmp_path / "v.jsonl")
    assert [(record["shown"], "reply" in record) for record in records] == [(["a"], True), (["b"], False)]
    assert Replies(tmp_path / "v.jsonl").broken == 0


def test_lines_are_only_appended(tmp_path):
    path = tmp_path / "v.jsonl"
    Replies(path).add("a", REPLY, {})
    before = path.read_bytes()
    Replies(path).add("a", Reply("9 9", None, 1, 1), {})
    assert path.read_bytes().startswith(before)
    assert Replies(path).get("a").text == "9 9"


def test_threads_do_not_mix_their_lines(tmp_path):
    replies = Replies(tmp_path / "v.jsonl")
    threads = [
        threading.Thread(target=lambda n=n: [replies.add(f"{n}-{i}", REPLY, {"x": "y" * 5000}) for i in range(10)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_records(replies.path)) == 40
    assert all(json.loads(line) for line in replies.path.read_text().splitlines())


def test_one_process_at_a_time(tmp_path):
    with open_replies(tmp_path / "out") as replies:
        assert replies.path == tmp_path / "out" / VERDICTS
        with pytest.raises(RunFolderError, match="another process judges"), open_replies(tmp_path / "out"):
            pass
    with open_replies(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write to"), open_replies(tmp_path / "file" / "out"):
        pass
