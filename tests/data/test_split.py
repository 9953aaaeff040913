from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit.data.examples import Corpus, Example, Message, prompt_id, row_id
from fedit.data.split import clean, split
from fedit.errors import ConfigError, DataError


def row(prompt, answer="yes", *, category=None, owner=None):
    return Example((Message("user", prompt), Message("assistant", answer)), category=category, owner=owner)


def corpus_of(*rows, **splits):
    return Corpus("toy", tuple(rows), **splits)


# Few prompts and answers, so that rows and prompts repeat.
rows = st.builds(
    row,
    st.integers(0, 12).map("prompt {}".format),
    st.sampled_from(["yes", "no", "maybe"]),
    category=st.sampled_from(["a", "b", None]),
    owner=st.sampled_from(["ann", "bob", "cy"]),
)


def test_identical_rows_stay_once_in_the_strictest_split():
    same, other = row("p"), row("q")
    cleaned, removed = clean(corpus_of(same, other, other, validation=(same, row("v")), held_out=(same, same)))
    assert cleaned == corpus_of(other, validation=(row("v"),), held_out=(same,))
    assert removed == {"duplicate": 4, "prompt_in_held_out": 0, "prompt_in_validation": 0}


def test_training_rows_whose_prompt_is_held_out_or_validates_are_removed():
    corpus = corpus_of(
        row("h", "b"), row("v", "b"), row("t"), validation=(row("v"), row("h", "c")), held_out=(row("h"),)
    )
    cleaned, removed = clean(corpus)
    assert cleaned == corpus_of(row("t"), validation=(row("v"),), held_out=(row("h"),))
    assert removed == {"duplicate": 0, "prompt_in_held_out": 2, "prompt_in_validation": 1}


def test_the_first_of_identical_rows_stays():
    cleaned, _ = clean(corpus_of(row("p", category="first"), row("p", category="second")))
    assert [e.category for e in cleaned.examples] == ["first"]


def test_an_integer_holds_out_rows_per_category():
    corpus = corpus_of(*(row(f"p{i}", category="abc"[i % 3]) for i in range(60)))
    result = split(corpus, held_out=10, validation=2, seed=0, by_owner=False)
    assert Counter(e.category for e in result.held_out) == {"a": 10, "b": 10, "c": 10}
    assert Counter(e.category for e in result.validation) == {"a": 2, "b": 2, "c": 2}
    assert len(result.examples) == 24


def test_without_categories_an_integer_is_rows_in_all():
    result = split(corpus_of(*(row(f"p{i}") for i in range(20))), held_out=7, validation=0, seed=0, by_owner=False)
    assert (len(result.held_out), len(result.validation), len(result.examples)) == (7, 0, 13)


def test_a_fraction_is_taken_from_every_category():
    corpus = corpus_of(*(row(f"p{i}", category="a" if i < 80 else "b") for i in range(100)))
    result = split(corpus, held_out=0.1, validation=0.05, seed=0, by_owner=False)
    assert Counter(e.category for e in result.held_out) == {"a": 8, "b": 2}
    assert Counter(e.category for e in result.validation) == {"a": 4, "b": 1}


def test_an_exact_number_is_found_among_prompts_of_several_rows():
    # Groups of 3 and 2 rows: 4 is reached by 2 + 2 only, which most orders of filling miss.
    corpus = corpus_of(*(row(f"p{group}", f"{i}") for group, n in enumerate([3, 3, 3, 2, 2]) for i in range(n)))
    result = split(corpus, held_out=4, validation=0, seed=0, by_owner=False)
    assert Counter(e.messages[0].content for e in result.held_out) == {"p3": 2, "p4": 2}


def test_owners_of_five_rows_give_a_share_and_smaller_ones_nothing():
    owners = ["big"] * 40 + ["five"] * 5 + ["small"] * 4
    corpus = corpus_of(*(row(f"p{i}", owner=owner) for i, owner in enumerate(owners)))
    result = split(corpus, held_out=0.1, validation=0.1, seed=0, by_owner=True)
    assert Counter(e.owner for e in result.held_out) == {"big": 4, "five": 1}
    assert Counter(e.owner for e in result.validation) == {"big": 4, "five": 1}


def test_where_all_owners_are_small_the_fraction_is_of_all_rows():
    corpus = corpus_of(*(row(f"p{i}", owner=f"o{i // 4}") for i in range(40)))
    result = split(corpus, held_out=0.1, validation=0, seed=0, by_owner=True)
    assert len(result.held_out) == 4


def test_splits_that_the_source_defines_are_used_as_they_are():
    held_out = (row("h"),)
    corpus = corpus_of(*(row(f"p{i}") for i in range(10)), held_out=held_out)
    result = split(corpus, held_out=5, validation=2, seed=0, by_owner=False)
    assert (result.held_out, len(result.validation), len(result.examples)) == (held_out, 2, 8)
    full = corpus_of(row("p"), validation=(row("v"),), held_out=held_out)
    assert split(full, held_out=5, validation=5, seed=0, by_owner=False) == full


@given(
    st.lists(rows, min_size=8, max_size=40),
    st.sampled_from([0.2, 0.4]),
    st.sampled_from([0, 0.3]),
    st.booleans(),
    st.integers(0, 3),
)
def test_no_prompt_crosses_and_every_row_has_one_place(given_rows, held_out, validation, by_owner, seed):
    cleaned, removed = clean(corpus_of(*given_rows))
    assert len(cleaned.examples) + sum(removed.values()) == len(given_rows)
    try:
        result = split(cleaned, held_out=held_out, validation=validation, seed=seed, by_owner=by_owner)
    except DataError:
        return
    assert result == split(cleaned, held_out=held_out, validation=validation, seed=seed, by_owner=by_owner)
    assert sorted(map(row_id, result.all())) == sorted(map(row_id, cleaned.examples))
    prompts = [{prompt_id(e) for e in part} for part in (result.examples, result.validation, result.held_out)]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    order = [row_id(e) for e in cleaned.examples]
    for part in (result.examples, result.validation, result.held_out):
        places = [order.index(row_id(e)) for e in part]
        assert places == sorted(places)


def test_another_seed_holds_out_other_rows():
    corpus = corpus_of(*(row(f"p{i}") for i in range(50)))
    first, second = (split(corpus, held_out=10, validation=0, seed=s, by_owner=False) for s in (0, 1))
    assert first.held_out != second.held_out


def test_the_held_out_rows_do_not_depend_on_the_validation_rows():
    corpus = corpus_of(*(row(f"p{i}") for i in range(50)))
    first, second = (split(corpus, held_out=10, validation=v, seed=0, by_owner=False) for v in (0, 5))
    assert first.held_out == second.held_out


def test_too_few_rows_are_an_error_with_numbers():
    corpus = corpus_of(*(row(f"p{i}", category="a") for i in range(10)))
    with pytest.raises(DataError, match="'a' has 10 rows and 12 of them"):
        split(corpus, held_out=10, validation=2, seed=0, by_owner=False)


def test_prompts_that_repeat_too_often_are_an_error_with_numbers():
    corpus = corpus_of(*(row(f"p{i % 2}", f"{i}") for i in range(10)))
    with pytest.raises(DataError, match=r"asks for 3 of 10 rows.*0 is the most.*2 different prompts"):
        split(corpus, held_out=3, validation=0, seed=0, by_owner=False)


def test_a_fraction_that_comes_to_no_row_is_an_error():
    with pytest.raises(DataError, match=r"held_out 0\.1 of 3 rows is not one row"):
        split(corpus_of(row("a"), row("b"), row("c")), held_out=0.1, validation=0, seed=0, by_owner=False)


def test_an_empty_data_set_cannot_be_split():
    with pytest.raises(DataError, match="'toy' has no training row"):
        split(corpus_of(), held_out=0.1, validation=0, seed=0, by_owner=False)


@pytest.mark.parametrize("amount", [-1, 1.0, -0.1, 2.5, float("nan"), True])
def test_amounts_that_mean_nothing_are_refused(amount):
    with pytest.raises(ConfigError, match="held_out is"):
        split(corpus_of(row("p")), held_out=amount, validation=0, seed=0, by_owner=False)


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match="leave no row"):
        split(corpus_of(row("p")), held_out=0.5, validation=0.5, seed=0, by_owner=False)


def test_rows_per_category_are_refused_where_owners_give_shares():
    with pytest.raises(ConfigError, match="as a fraction"):
        split(corpus_of(row("p", owner="a")), held_out=10, validation=0, seed=0, by_owner=True)
