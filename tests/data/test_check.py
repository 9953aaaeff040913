"""The audit, the shown example and the refusal of clients with nothing to learn."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedit.data.check import Piece, audit, refuse_if_nothing_learnt, show_example
from fedit.data.examples import Corpus, Example, Message, row_id
from fedit.data.templates import get_template
from fedit.data.tokens import TokenTable, tokenize
from fedit.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    rules.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=rules, eos_token="</s>")


def row(question, answer, line=0, owner=None):
    messages = (Message("user", question), Message("assistant", answer))
    return Example(messages, owner=owner, where=f"r:{line}" if line else "")


def table_of(rows, tokenizer, max_length=512):
    return tokenize(rows, tokenizer, get_template("alpaca_short", tokenizer), max_length=max_length)


def test_each_finding_counts_its_rows_and_says_where(tokenizer):
    rows = (
        row("a", "one", 1),
        row("a", "one", 2),
        row("a", "two", 3),
        row("b", " ", 4),
        row("c", "x" * 200, 5),
        row("d " * 100, "y", 6),
        row("held", "z", 7),
        row("also", "z", 8),
    )
    corpus = Corpus("r", rows, validation=(row("held", "z"),), held_out=(row("also", "other"),))
    found = audit(corpus, table_of(rows, tokenizer, max_length=100), tokenizer)
    assert found.rows == 8
    assert {finding.title: (finding.count, finding.where) for finding in found.findings} == {
        "empty answers": (1, ("r:4",)),
        "rows with nothing to learn": (0, ()),
        "prompts cut to max_length": (1, ("r:6",)),
        "answers cut to max_length": (1, ("r:5",)),
        "answers without end of sequence": (1, ("r:5",)),
        "rows that repeat an earlier row": (1, ("r:2",)),
        "prompts with different answers": (3, ("r:1", "r:2", "r:3")),
        "rows held by several clients": (0, ()),
        "preferences with two equal answers": (0, ()),
        "rows that are held out as well": (1, ("r:7",)),
        "prompts that are held out as well": (2, ("r:7", "r:8")),
    }


def test_lengths_and_tokens_are_counted(tokenizer):
    rows = tuple(row("q", "x" * n) for n in range(1, 101))
    table = table_of(rows, tokenizer)
    found = audit(Corpus("r", rows), table, tokenizer)
    assert found.tokens == len(table.ids)
    assert found.supervised_tokens == int(table.supervised.sum())
    assert found.supervised_lengths == (2, 51, 91, 96, 100, 101)
    assert found.lengths[-1] == table.lengths.max()
    assert found.duplicate_rows.count == 0


def test_only_the_first_places_are_named_and_rows_without_a_place_by_number(tokenizer):
    rows = tuple(row(f"q{n}", "") for n in range(9))
    found = audit(Corpus("r", rows), table_of(rows, tokenizer), tokenizer).empty_answers
    assert found.count == 9
    assert found.where == ("row 1", "row 2", "row 3", "row 4", "row 5")


def test_rows_of_several_clients_are_found_by_owner_or_by_assignment(tokenizer):
    rows = (row("a", "x", 1, "c0"), row("b", "x", 2, "c0"), row("a", "x", 3, "c1"), row("b", "x", 4, "c0"))
    corpus, table = Corpus("r", rows), table_of(rows, tokenizer)
    assert audit(corpus, table, tokenizer).rows_of_several.where == ("r:1", "r:3")
    clients = {"c0": [row_id(rows[1])], "c1": [row_id(rows[1])], "c2": [row_id(rows[0])]}
    assert audit(corpus, table, tokenizer, clients=clients).rows_of_several.where == ("r:2", "r:4")


def test_an_empty_corpus_is_audited(tokenizer):
    found = audit(Corpus("r", ()), table_of((), tokenizer), tokenizer)
    assert (found.rows, found.lengths) == (0, ())
    assert all(finding.count == 0 for finding in found.findings)


def test_the_shown_example_is_decoded_from_what_is_trained_on(tokenizer):
    turns = ("user", "Hé 😀"), ("assistant", "Ça va"), ("user", "And?"), ("assistant", "Bien 👍")
    rows = [Example(tuple(Message(*turn) for turn in turns))]
    table = table_of(rows, tokenizer)
    assert show_example(table, 0, tokenizer) == (
        Piece("### Instruction:\nHé 😀\n\n### Response:\n", False),
        Piece("Ça va</s>", True),
        Piece("### Instruction:\nAnd?\n\n### Response:\n", False),
        Piece("Bien 👍</s>", True),
    )
    flipped = TokenTable(table.ids, ~table.supervised, table.offsets, table.truncated)
    assert [piece.supervised for piece in show_example(flipped, 0, tokenizer)] == [True, False, True, False]


def test_a_client_with_nothing_to_learn_is_named_with_its_rows(tokenizer):
    rows = [row("a", "x", 1), row("b", "y", 2)]
    table = table_of(rows, tokenizer)
    clients = {"c0": [row_id(rows[0])], "c1": [row_id(rows[1])]}
    refuse_if_nothing_learnt(table, rows, clients)
    blank = TokenTable(
        table.ids,
        table.supervised & (np.arange(len(table.ids)) < table.offsets[1]),
        table.offsets,
        table.truncated,
    )
    with pytest.raises(DataError, match=r"client 'c1' has no token to learn in its 1 rows \(r:2\)"):
        refuse_if_nothing_learnt(blank, rows, clients)
    with pytest.raises(DataError, match="client 'c2' holds no training rows"):
        refuse_if_nothing_learnt(table, rows, {"c2": []})


def test_a_row_without_targets_is_found(tokenizer):
    rows = (row("a", "x", 1),)
    table = table_of(rows, tokenizer)
    blank = TokenTable(table.ids, np.zeros_like(table.supervised), table.offsets, table.truncated)
    found = audit(Corpus("r", rows), blank, tokenizer)
    assert found.nothing_supervised.where == ("r:1",)
    assert found.missing_eos.where == ("r:1",)
