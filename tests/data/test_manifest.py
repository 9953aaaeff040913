import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.data.examples import Corpus, Example, Message, prompt_id, row_id
from fedit.data.manifest import Partition, build
from fedit.errors import ConfigError, DataError


def row(prompt, answer="yes", *, category=None, owner=None):
    return Example((Message("user", prompt), Message("assistant", answer)), category=category, owner=owner)


def toy(count=60, **splits):
    rows = (row(f"p{i}", category="abc"[i % 3], owner=f"o{i % 4}") for i in range(count))
    return Corpus("toy", tuple(rows), **splits)


def make(corpus, scheme="iid", num_clients=3, seed=0, held_out=2, validation=1, clusters=None, **options):
    return build(
        corpus,
        scheme,
        num_clients=num_clients,
        seed=seed,
        options=options,
        held_out=held_out,
        validation=validation,
        clusters=clusters,
    )


def client_rows(partition):
    return [identity for rows in partition.clients.values() for identity in rows]


rows = st.builds(
    row,
    st.integers(0, 30).map("prompt {}".format),
    st.sampled_from(["yes", "no"]),
    category=st.sampled_from("ab"),
    owner=st.sampled_from(["ann", "bob"]),
)


@settings(max_examples=50)
@given(st.lists(rows, min_size=15, max_size=50), st.sampled_from(["iid", "natural", "quantity"]))
def test_rows_have_one_place_and_prompts_one_side(given_rows, scheme):
    options = {"min_examples": 1} if scheme == "quantity" else {}
    try:
        partition, corpus = make(Corpus("x", tuple(given_rows)), scheme, 2, 0, 0.2, 0.2, **options)
    except DataError:
        return
    everywhere = client_rows(partition) + partition.validation + partition.held_out
    assert len(everywhere) == len(set(everywhere))
    assert len(everywhere) + sum(partition.removed.values()) == len(given_rows)
    assert sorted(client_rows(partition)) == sorted(map(row_id, corpus.examples))
    assert partition.held_out == [row_id(e) for e in corpus.held_out]
    assert partition.validation == [row_id(e) for e in corpus.validation]
    prompts = [{prompt_id(e) for e in part} for part in (corpus.examples, corpus.validation, corpus.held_out)]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    assert Partition.from_json(json.loads(json.dumps(partition.to_json()))) == partition
    partition.check_against(Corpus("x", tuple(given_rows)))
    assert partition.arrange(Corpus("x", tuple(given_rows))) == corpus


def test_a_saved_partition_loads_as_it_was(tmp_path):
    partition, _ = make(toy(), "dirichlet", alpha=0.5, min_examples=2)
    partition.save(tmp_path / "partition.json")
    loaded = Partition.load(tmp_path / "partition.json")
    assert loaded == partition
    assert loaded.hash == partition.hash


def test_the_same_seed_gives_the_same_hash_and_another_one_does_not():
    assert make(toy())[0].hash == make(toy())[0].hash
    assert make(toy())[0].hash != make(toy(), seed=1)[0].hash


def test_clients_get_their_rows_back():
    partition, corpus = make(toy())
    mine = partition.client_examples(corpus)
    assert {client: [row_id(e) for e in rows] for client, rows in mine.items()} == partition.clients


def test_owners_left_out_are_counted_and_leave_the_corpus():
    partition, corpus = make(toy(), "natural", 3, held_out=0.1, validation=0)
    assert partition.removed["unassigned"] == 13  # 15 rows of one owner less its two held-out ones
    assert len(corpus.examples) == len(client_rows(partition)) == 39


def test_cluster_labels_follow_their_rows_through_cleaning_and_splitting():
    corpus = toy()
    corpus = replace(corpus, examples=corpus.examples[:5] + corpus.examples)
    labels = [int(e.category == "a") for e in corpus.examples]
    partition, arranged = make(corpus, "cluster", 2, clusters=labels, alpha=0.001, min_examples=1)
    mixes = [{e.category == "a" for e in mine} for mine in partition.client_examples(arranged).values()]
    assert {True} in mixes
    assert {False} in mixes
    with pytest.raises(DataError, match="2 cluster labels for 65 rows"):
        make(corpus, "cluster", 2, clusters=[0, 1])


def test_rows_added_or_moved_later_do_not_matter():
    partition, corpus = make(toy())
    moved = Corpus("toy", (row("new"), *reversed(toy().examples)))
    partition.check_against(moved)
    assert set(partition.arrange(moved).held_out) == set(corpus.held_out)


def test_a_missing_or_edited_row_is_found():
    partition, corpus = make(toy())
    edited = replace(corpus.examples[0], messages=(Message("user", "p0"), Message("assistant", "no")))
    for examples in (corpus.examples[1:], (edited, *corpus.examples[1:])):
        with pytest.raises(DataError, match=r"the data changed since.*1 of its 60 rows"):
            partition.check_against(replace(corpus, examples=examples))
    relabelled = replace(corpus.examples[0], category="other")
    with pytest.raises(DataError, match="another category or owner"):
        partition.check_against(replace(corpus, examples=(relabelled, *corpus.examples[1:])))


def test_a_followed_partition_is_the_same_partition(tmp_path):
    path = tmp_path / "partition.json"
    repeated = replace(toy(), examples=toy().examples + toy().examples[:7])
    partition, corpus = make(repeated, "shepherd_shards")
    partition.save(path)
    followed, again = make(repeated, "manifest", None, path=str(path))
    assert followed.hash == partition.hash
    assert again == corpus
    assert followed.removed["unassigned"] == 7


def test_a_manifest_by_row_number_is_followed_and_cleaned(tmp_path):
    path = tmp_path / "fixed.json"
    corpus = Corpus("toy", (row("a"), row("b"), row("a"), row("h", "1"), row("h", "2"), row("c"), row("d")))
    path.write_text(json.dumps({"clients": {"x": [0, 3, 5], "y": [1, 2]}, "held_out": [4]}))
    partition, arranged = make(corpus, "manifest", None, path=str(path))
    assert arranged == Corpus("toy", (row("a"), row("b"), row("c")), held_out=(row("h", "2"),))
    assert partition.clients == {"x": [row_id(row("a")), row_id(row("c"))], "y": [row_id(row("b"))]}
    assert partition.removed == {
        "duplicate": 1,
        "prompt_in_held_out": 1,
        "prompt_in_validation": 0,
        "unassigned": 1,
    }


def test_a_manifest_of_clients_alone_leaves_the_datas_own_splits(tmp_path):
    path = tmp_path / "fixed.json"
    corpus = toy(6, held_out=(row("h"),), validation=(row("v"),))
    path.write_text(json.dumps({"clients": {"x": [0, 1], "y": [2]}}))
    partition, arranged = make(corpus, "manifest", None, path=str(path))
    assert (arranged.held_out, arranged.validation) == (corpus.held_out, corpus.validation)
    assert partition.removed["unassigned"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"clients": {"x": [0]}, "held_out": [0]}, "row 0 to a client and to held_out"),
        ({"clients": {"x": [0]}, "held_out": [1], "validation": [1]}, "row 1 to held_out and to validation"),
        ({"clients": {"x": [0], "y": [2]}, "held_out": [3]}, "'y' has only rows"),
    ],
)
def test_a_manifest_that_crosses_splits_is_refused(tmp_path, content, message):
    path = tmp_path / "fixed.json"
    path.write_text(json.dumps(content))
    corpus = Corpus("toy", (row("a"), row("b"), row("h", "1"), row("h", "2")))
    with pytest.raises(DataError, match=message):
        make(corpus, "manifest", None, path=str(path))


def test_a_file_that_is_no_saved_partition_is_refused(tmp_path):
    path = tmp_path / "partition.json"
    with pytest.raises(DataError, match="cannot read the partition"):
        Partition.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match="not a JSON file"):
        Partition.load(path)
    path.write_text('{"clients": {"a": [0]}}')
    with pytest.raises(DataError, match=r"partition\.json: expected a partition saved by fedit"):
        Partition.load(path)
    content = make(toy())[0].to_json()
    path.write_text(json.dumps(content | {"clients": {"a": 3}}))
    with pytest.raises(DataError, match="expected a partition"):
        Partition.load(path)
    path.write_text(json.dumps(content | {"held_out": []}))
    with pytest.raises(DataError, match="it was edited"):
        Partition.load(path)


def test_a_manifest_without_a_path_is_refused():
    with pytest.raises(ConfigError, match="needs the option path"):
        make(toy(), "manifest", None)
