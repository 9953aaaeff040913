import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit.data.examples import Example, Message
from fedit.data.statistics import PartitionStatistics, category_counts, measure, per_client_loss, summary
from fedit.errors import DataError


def sizes_of(counts):
    return {client: sum(mine.values()) for client, mine in counts.items()}


def test_equal_clients_weigh_equally():
    numbers = measure({"x": 5, "y": 5, "z": 5})
    assert numbers == PartitionStatistics(
        clients=3, rows=15, size_min=5, size_median=5.0, size_max=5, size_gini=0.0, effective_clients=3.0
    )


def test_sizes_by_hand():
    numbers = measure({"x": 1, "y": 2, "z": 5})
    assert (numbers.size_min, numbers.size_median, numbers.size_max) == (1, 2.0, 5)
    # Mean absolute difference (2·(1 + 4 + 3) / 9) over twice the mean (16 / 3).
    assert numbers.size_gini == pytest.approx((16 / 9) / (16 / 3))
    assert numbers.effective_clients == pytest.approx(64 / 30)


def test_disjoint_categories_by_hand():
    counts = {"x": {"a": 4}, "y": {"b": 4}}
    numbers = measure(sizes_of(counts), counts)
    # JS of (1, 0) and (1/2, 1/2): H(3/4, 1/4) - 1/2.
    expected = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)) - 0.5
    assert numbers.jensen_shannon_mean == pytest.approx(expected)
    assert numbers.jensen_shannon_max == pytest.approx(expected)
    assert numbers.total_variation_mean == pytest.approx(0.5)
    assert numbers.label_entropy_ratio == 0.0
    assert (numbers.categories, numbers.categories_min, numbers.categories_max) == (2, 1, 1)


def test_equal_mixes_do_not_differ():
    counts = {"x": {"a": 1, "b": 3}, "y": {"a": 10, "b": 30}}
    numbers = measure(sizes_of(counts), counts)
    assert numbers.jensen_shannon_max == pytest.approx(0, abs=1e-12)
    assert numbers.total_variation_max == pytest.approx(0, abs=1e-12)
    assert numbers.label_entropy_ratio == pytest.approx(1)


def test_a_single_category_is_alike_for_all():
    counts = {"x": {"a": 1}, "y": {"a": 3}}
    assert measure(sizes_of(counts), counts).label_entropy_ratio == 1.0


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.dictionaries(st.sampled_from("abcd"), st.integers(1, 50), min_size=1),
        min_size=1,
        max_size=12,
    )
)
def test_every_number_is_in_its_range(counts):
    numbers = measure(sizes_of(counts), counts)
    assert 0 <= numbers.jensen_shannon_mean <= numbers.jensen_shannon_max + 1e-12 <= 1 + 1e-12
    assert 0 <= numbers.total_variation_mean <= numbers.total_variation_max + 1e-12 <= 1 + 1e-12
    assert 0 <= numbers.label_entropy_ratio <= 1 + 1e-9
    assert -1e-12 <= numbers.size_gini < 1
    assert 1 - 1e-9 <= numbers.effective_clients <= numbers.clients + 1e-9
    assert 1 <= numbers.categories_min <= numbers.categories_median <= numbers.categories_max


def test_lengths_are_compared_with_the_pooled_ones():
    numbers = measure({"x": 2, "y": 2}, token_lengths={"x": [0, 0], "y": [10, 10]})
    assert numbers.length_distance_mean == pytest.approx(5)
    same = measure({"x": 2, "y": 4}, token_lengths={"x": [3, 9], "y": [3, 3, 9, 9]})
    assert same.length_distance_max == pytest.approx(0)


def test_statistics_become_a_flat_dictionary():
    numbers = measure({"x": 1}).as_dict()
    assert numbers["clients"] == 1
    assert numbers["categories"] is None
    assert "length_distance_max" in numbers


def test_clients_without_rows_are_refused():
    with pytest.raises(DataError, match="client 'y' has no rows"):
        measure({"x": 1, "y": 0})
    with pytest.raises(DataError, match="no clients"):
        measure({})


def test_rows_without_a_category_are_not_counted():
    def row(category):
        return Example((Message("user", "p"), Message("assistant", "a")), category=category)

    assert category_counts({"x": [row("b"), row("a"), row("b"), row(None)], "y": [row(None)]}) == {
        "x": {"a": 1, "b": 2},
        "y": {},
    }


def test_a_client_expects_the_loss_of_its_own_mix():
    losses = per_client_loss(
        {"a": 1.0, "b": 2.0},
        {"x": {"a": 3, "b": 1}, "y": {"b": 5}, "z": {"a": 1, "unseen": 9}, "none": {"unseen": 2}, "0": {"a": 0}},
    )
    assert losses == {"x": pytest.approx(1.25), "y": 2.0, "z": 1.0}


def test_the_worst_decile_is_rounded_up():
    losses = {f"c{i}": float(i) for i in range(11)}
    assert summary(losses) == {"mean": 5.0, "worst_decile": 9.5}
    assert summary({"only": 3.0}) == {"mean": 3.0, "worst_decile": 3.0}
    with pytest.raises(DataError, match="no client has a loss"):
        summary({})
