import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedit.data.cluster import kmeans
from fedit.errors import DataError


def blobs(count, each, dimensions=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = 10 * rng.normal(size=(count, dimensions))
    truth = np.repeat(np.arange(count), each)
    return centres[truth] + rng.normal(size=(count * each, dimensions)), truth


def test_well_separated_groups_are_found():
    vectors, truth = blobs(5, 40)
    # Numbered by first appearance, which is the order of the blobs.
    assert np.array_equal(kmeans(vectors, 5, seed=0), truth)


def test_a_huge_dimension_does_not_hide_the_others():
    vectors, truth = blobs(3, 30)
    vectors[:, 0] = 1e6 * np.random.default_rng(1).normal(size=len(vectors))
    assert np.array_equal(kmeans(vectors, 3, seed=0), truth)


@settings(max_examples=40)
@given(st.integers(1, 8), st.integers(8, 40), st.integers(1, 5), st.integers(0, 3))
def test_no_cluster_is_empty_and_the_seed_decides(k, rows, dimensions, seed):
    vectors = np.random.default_rng(seed).normal(size=(rows, dimensions + 1))
    labels = kmeans(vectors, k, seed)
    assert set(labels.tolist()) == set(range(k))
    assert labels[0] == 0
    assert np.array_equal(labels, kmeans(vectors, k, seed))


def test_repeated_rows_still_fill_every_cluster():
    vectors = np.array([[0.0, 1.0]] * 20 + [[1.0, 0.0], [1.0, 1.0], [0.0, -3.0]])
    labels = kmeans(vectors, 4, seed=0)
    assert set(labels.tolist()) == {0, 1, 2, 3}
    assert len(set(labels[:20].tolist())) == 1


def test_more_clusters_than_different_rows_are_refused():
    with pytest.raises(DataError, match="3 clusters are asked for and the rows have 2 different vectors"):
        kmeans(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), 3, seed=0)
    with pytest.raises(DataError, match="0 clusters"):
        kmeans(np.eye(3), 0, seed=0)


def test_vectors_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="finite"):
        kmeans(np.array([[np.nan, 1.0]]), 1, seed=0)
