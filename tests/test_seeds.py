"""Seeds depend on their path and on nothing else."""

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from fedit.seeds import derive, derive_each

parts = st.one_of(
    st.integers(0, 10**9), st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=8)
)
paths = st.tuples(st.integers(0, 2**63), st.lists(parts, max_size=4))


@given(paths)
def test_a_seed_fits_every_generator(path):
    root, rest = path
    assert 0 <= derive(root, *rest) < 2**63


@given(paths, paths)
def test_different_paths_get_different_seeds(first, second):
    if first != second:
        assert derive(first[0], *first[1]) != derive(second[0], *second[1])


def test_a_number_and_its_text_are_different_paths():
    assert derive(0, "cohort", 3) != derive(0, "cohort", "3")


def test_a_longer_path_is_not_its_parts_run_together():
    assert derive(0, "ab", "c") != derive(0, "a", "bc")
    assert derive(1, 23) != derive(12, 3)


def test_another_process_draws_the_same():
    code = "from fedit.seeds import derive; print(derive(7, 'train', 3, 'client-1'))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(printed) == derive(7, "train", 3, "client-1")


@given(st.integers(0, 2**62), st.lists(st.text(st.characters(exclude_categories=["Cs"]))), st.integers(0, 9))
def test_many_seeds_at_once_are_the_same_seeds(root, ends, round):
    assert list(derive_each(root, "x", round, ends=ends)) == [derive(root, "x", round, end) for end in ends]
