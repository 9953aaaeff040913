import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.data.examples import Example, Message, row_id
from fedit.data.partition import PARTITIONS, find_scheme, partition, read_assignment
from fedit.data.statistics import category_counts, measure
from fedit.errors import ConfigError, DataError, UnknownName

CATEGORIES = "abcdefgh"


def rows_of(count, *, categories=CATEGORIES, owners=None):
    return [
        Example(
            (Message("user", f"prompt {i}"), Message("assistant", "yes")),
            category=categories[i % len(categories)] if categories else None,
            owner=owners[i % len(owners)] if owners else None,
            where=f"rows.jsonl:{i + 1}",
        )
        for i in range(count)
    ]


def deal(scheme, examples, num_clients, seed=0, **options):
    clusters = options.pop("clusters", None)
    return partition(examples, scheme, num_clients=num_clients, seed=seed, options=options, clusters=clusters)


def held(examples, clients):
    """Client -> set of categories."""
    return {client: {examples[i].category for i in rows} for client, rows in clients.items()}


def statistics_of(examples, clients):
    mine = {client: [examples[i] for i in rows] for client, rows in clients.items()}
    return measure({client: len(rows) for client, rows in clients.items()}, category_counts(mine))


DEALING = ["iid", "shepherd_shards", "shepherd_dirichlet", "dirichlet", "label_count", "quantity", "cluster"]


@settings(max_examples=60)
@given(st.sampled_from(DEALING), st.integers(1, 12), st.integers(0, 200), st.integers(0, 5))
def test_every_row_goes_to_exactly_one_client_and_again_the_same(scheme, num_clients, extra, seed):
    examples = rows_of(100 + extra)
    options = {"min_examples": 1} if "min_examples" in PARTITIONS[scheme].options else {}
    if scheme == "label_count":
        options = {"labels_per_client": 8 if num_clients < 2 else -(-8 // num_clients)}
    if scheme == "cluster":
        options["clusters"] = [i % 3 for i in range(len(examples))]
    clients = deal(scheme, examples, num_clients, seed, **options)
    assert sorted(i for rows in clients.values() for i in rows) == list(range(len(examples)))
    assert len(clients) == num_clients
    assert all(clients.values())
    assert list(clients) == sorted(clients)
    assert clients == deal(scheme, examples, num_clients, seed, **options)


@pytest.mark.parametrize("scheme", DEALING)
def test_another_seed_deals_other_rows(scheme):
    examples = rows_of(800)
    options = {"clusters": [0] * 800} if scheme == "cluster" else {}
    assert deal(scheme, examples, 4, 0, **options) != deal(scheme, examples, 4, 1, **options)


def test_client_names_sort_as_their_numbers_do():
    assert list(deal("iid", rows_of(8), 4)) == ["client-0", "client-1", "client-2", "client-3"]
    assert list(deal("iid", rows_of(20), 11))[::5] == ["client-00", "client-05", "client-10"]


def test_iid_sizes_differ_by_at_most_one():
    assert Counter(map(len, deal("iid", rows_of(103), 10).values())) == {10: 7, 11: 3}


def test_two_contiguous_shards_of_sorted_rows_hold_few_categories():
    examples = rows_of(800)
    clients = deal("shepherd_shards", examples, 10)
    assert {len(rows) for rows in clients.values()} == {80}
    # 20 shards of 40 rows over 8 categories of 100: no shard has more than two.
    assert max(len(mine) for mine in held(examples, clients).values()) <= 4
    one_each = deal("shepherd_shards", examples, 8, shards_per_client=1)
    assert sorted(map(sorted, held(examples, one_each).values())) == [[c] for c in CATEGORIES]


def test_shepherds_unequal_split_keeps_forty_rows_each():
    assert min(map(len, deal("shepherd_dirichlet", rows_of(1000), 10).values())) >= 40


def test_a_huge_alpha_gives_all_clients_the_same_mix():
    examples = rows_of(4000)
    numbers = statistics_of(examples, deal("dirichlet", examples, 10, alpha=1e6))
    assert numbers.jensen_shannon_max < 0.001
    assert numbers.label_entropy_ratio > 0.99


def test_a_tiny_alpha_gives_each_client_about_one_category():
    examples = rows_of(4000)
    numbers = statistics_of(examples, deal("dirichlet", examples, 8, alpha=0.01, min_examples=1))
    assert numbers.categories_median <= 2  # the second one by a handful of rows
    assert numbers.label_entropy_ratio < 0.2


def test_rows_of_a_category_go_to_clients_with_room_when_draws_vanish():
    examples = rows_of(80)
    # Draws this concentrated often put all mass on a client that is already full.
    clients = deal("dirichlet", examples, 8, alpha=1e-3, min_examples=1)
    assert all(clients.values())


@pytest.mark.parametrize(("num_clients", "each"), [(4, 2), (8, 1), (2, 4)])
def test_just_enough_categories_are_disjoint(num_clients, each):
    examples = rows_of(80)
    mine = held(examples, deal("label_count", examples, num_clients, labels_per_client=each))
    assert sorted(category for categories in mine.values() for category in categories) == list(CATEGORIES)
    assert {len(categories) for categories in mine.values()} == {each}


def test_more_clients_than_categories_share_them_evenly():
    examples = rows_of(800)
    mine = held(examples, deal("label_count", examples, 20, labels_per_client=2))
    assert {len(categories) for categories in mine.values()} == {2}
    assert set(Counter(c for categories in mine.values() for c in categories).values()) == {5}


def test_quantity_gives_unequal_sizes_of_the_same_mix():
    examples = rows_of(8000)
    numbers = statistics_of(examples, deal("quantity", examples, 10, alpha=1.0, min_examples=100))
    assert numbers.size_gini > 0.2
    assert numbers.size_min >= 100
    assert numbers.jensen_shannon_max < 0.06


def test_owners_are_clients():
    examples = rows_of(9, owners=["bob", "ann", "zoë"])
    assert deal("natural", examples, None) == {"ann": [1, 4, 7], "bob": [0, 3, 6], "zoë": [2, 5, 8]}
    some = deal("natural", examples, 2)
    assert len(some) == 2
    assert some.items() <= deal("natural", examples, None).items()
    assert some == deal("natural", examples, 2)


def test_clusters_stand_in_for_categories():
    examples = rows_of(200, categories=None)
    labels = np.repeat([0, 1], 100)
    clients = deal("cluster", examples, 2, alpha=0.01, min_examples=50, clusters=labels)
    assert sorted(clients.values()) == [list(range(100)), list(range(100, 200))]


def test_a_manifest_is_followed(tmp_path):
    examples = rows_of(6)
    path = tmp_path / "fixed.json"
    ids = [row_id(e) for e in examples]
    path.write_text(json.dumps({"clients": {"b": [ids[3], ids[0]], "a": [ids[5]]}}))
    assert deal("manifest", examples, None, path=str(path)) == {"a": [5], "b": [0, 3]}
    path.write_text(json.dumps({"clients": {"b": [3, 0], "a": [5]}}))
    assert deal("manifest", examples, 2, path=str(path)) == {"a": [5], "b": [0, 3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"clients": {"a": [9]}}', "names row 9, and the data has rows 0 to 5"),
        ('{"clients": {"a": [-1]}}', "names row -1"),
        ('{"clients": {"a": ["feed"]}}', "'feed', which is not in the data"),
        ('{"clients": {"a": [1], "b": [1]}}', "to 'a' and to 'b'"),
        ('{"clients": {"a": [1, 1]}}', "to 'a' and to 'a'"),
        ('{"clients": {"a": []}}', "gives client 'a' no rows"),
        ('{"clients": {"a": [true]}}', "client 'a' has True"),
        ('{"clients": {"a": 3}}', "client 'a' is int"),
        ('{"clients": {}}', "names no clients"),
        ("[1]", "names no clients"),
        ("clients:", "not a JSON file"),
    ],
)
def test_a_manifest_that_cannot_be_followed_says_why(tmp_path, content, message):
    path = tmp_path / "fixed.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        deal("manifest", rows_of(6), None, path=str(path))


def test_a_missing_manifest_and_a_wrong_number_of_clients_say_why(tmp_path):
    with pytest.raises(DataError, match="cannot read the manifest"):
        read_assignment(tmp_path / "none.json")
    path = tmp_path / "fixed.json"
    path.write_text('{"clients": {"a": [0]}}')
    with pytest.raises(DataError, match=r"3 clients are asked for and .* has 1"):
        deal("manifest", rows_of(6), 3, path=str(path))


@pytest.mark.parametrize(
    ("scheme", "num_clients", "options", "message"),
    [
        ("iid", 101, {}, "101 clients are asked for and there are 100 training rows"),
        ("shepherd_shards", 60, {}, "60 clients x 2 shards need 120 rows.*to 50 or fewer"),
        ("shepherd_dirichlet", 10, {}, "need 400 rows and there are 100.*clients to 2 or min_examples to 10"),
        ("quantity", 20, {}, "need 200 rows and there are 100.*clients to 10 or min_examples to 5"),
        ("dirichlet", 10, {"alpha": 0.01, "min_examples": 10}, r"1000 draws of Dir\(0\.01\) over 10 clients"),
        ("label_count", 3, {}, "leave out 2 of 8 categories; set labels_per_client to 3 or use 4 clients"),
        ("label_count", 3, {"labels_per_client": 9}, "lower it to 8 or fewer"),
        ("label_count", 90, {"labels_per_client": 2}, r"'\w' has 1\d rows for 2\d clients"),
        ("natural", 3, {}, "the rows have 2 owners"),
        ("cluster", 3, {}, "needs one cluster label per row"),
        ("cluster", 3, {"clusters": [1]}, "1 cluster labels for 100 rows"),
    ],
)
def test_what_cannot_be_dealt_says_what_could(scheme, num_clients, options, message):
    with pytest.raises(DataError, match=message):
        deal(scheme, rows_of(100, owners=["a", "b"]), num_clients, **options)


def test_rows_without_categories_point_to_clusters():
    examples = [*rows_of(10), *rows_of(2, categories=None)]
    with pytest.raises(DataError, match=r"2 of 12 rows have none \(first: rows\.jsonl:1\).*partitioner=cluster"):
        deal("dirichlet", examples, 2)


def test_rows_without_owners_point_to_partition_by():
    with pytest.raises(DataError, match=r"10 of 10 rows have none.*partition_by"):
        deal("natural", rows_of(10), 2)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("iid", {"alpha": 1}, "'iid' does not read 'alpha'; it has no options"),
        ("dirichlet", {"alhpa": 1}, "its options are alpha, min_examples"),
        ("dirichlet", {"alpha": 0}, "alpha is 0; expected a number above 0"),
        ("dirichlet", {"alpha": float("inf")}, "alpha is inf"),
        ("dirichlet", {"alpha": True}, "alpha is True"),
        ("dirichlet", {"min_examples": 0}, "expected a whole number from 1"),
        ("dirichlet", {"min_examples": 1.5}, "expected a whole number from 1"),
        ("manifest", {}, "needs the option path"),
        ("manifest", {"path": 3}, "path is 3; expected a file"),
    ],
)
def test_options_are_checked_before_rows_are_dealt(scheme, options, message):
    with pytest.raises(ConfigError, match=message):
        deal(scheme, rows_of(10), 2, **options)


def test_the_number_of_clients_is_checked():
    with pytest.raises(ConfigError, match="'iid' needs the number of clients"):
        deal("iid", rows_of(10), None)
    with pytest.raises(ConfigError, match="is 0; at least 1"):
        deal("iid", rows_of(10), 0)
    with pytest.raises(DataError, match="no row to train on"):
        deal("iid", [], 1)


def test_an_unknown_scheme_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'dirichlet'"):
        find_scheme("dirichle")


def test_every_scheme_says_what_it_reads_and_does():
    assert {name: set(scheme.options) for name, scheme in PARTITIONS.items()} == {
        "iid": set(),
        "shepherd_shards": {"shards_per_client"},
        "shepherd_dirichlet": {"alpha", "min_examples"},
        "dirichlet": {"alpha", "min_examples"},
        "label_count": {"labels_per_client"},
        "quantity": {"alpha", "min_examples"},
        "natural": set(),
        "cluster": {"alpha", "min_examples"},
        "manifest": {"path"},
    }
    assert all(scheme.summary.endswith(".") for scheme in PARTITIONS.values())


def test_dolly_in_shards_is_as_the_paper_describes():
    folder = os.environ.get("FEDIT_DATA")
    path = Path(folder or ".") / "dolly15k" / "dolly15k.jsonl"
    if not folder or not path.exists():
        pytest.skip("FEDIT_DATA does not name a folder with dolly15k/dolly15k.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    examples = [
        Example(
            (Message("user", r["instruction"]), Message("assistant", r["response"])),
            r["context"],
            category=r["category"],
        )
        for r in rows[:14931]  # the last 80 are the paper's held-out rows
    ]
    for seed in range(4):
        clients = deal("shepherd_shards", examples, 10, seed)
        assert all(1490 <= len(mine) <= 1495 for mine in clients.values())
        # Two shards that each cross a border between categories may meet at one client, which then has 4.
        counts = [len(mine) for mine in held(examples, clients).values()]
        assert max(counts) <= 4
        assert sum(count <= 3 for count in counts) >= 8
