import re
from collections import Counter
from itertools import combinations

import pytest

from fedit.data.examples import Corpus, Example, fingerprint, prompt_id, row_id
from fedit.data.skills import CATEGORIES, load_skills
from fedit.data.skills.phrasings import PHRASINGS
from fedit.data.skills.rows import deal
from fedit.data.skills.words import HELD_OUT, TRAINING, VALIDATION, Words
from fedit.errors import DataError
from fedit.evaluation.grading import grade

SIZES = {"per_category": 540, "validation_per_category": 16, "held_out_per_category": 32}


@pytest.fixture(scope="module")
def default() -> Corpus:
    return load_skills()


@pytest.fixture(scope="module")
def largest() -> Corpus:
    return load_skills(**SIZES, seed=3)


def splits(corpus: Corpus) -> tuple[tuple[Example, ...], ...]:
    return corpus.examples, corpus.validation, corpus.held_out


def text(examples: tuple[Example, ...]) -> str:
    return "\n".join(
        part for row in examples for part in (row.context, *(turn.content for turn in row.messages))
    ).casefold()


def test_the_default_set_is_the_same_on_every_machine(default):
    assert fingerprint(default.all()) == "4aa143d4faacedc5c79c59da4fa5d84d44e98837c41b8acaab214a22ff875aa2"


def test_the_default_set_has_the_eight_categories_of_dolly_in_equal_parts(default):
    assert set(CATEGORIES) == {
        "open_qa",
        "closed_qa",
        "information_extraction",
        "classification",
        "summarization",
        "brainstorming",
        "creative_writing",
        "general_qa",
    }
    for rows, each in zip(splits(default), (200, 8, 8), strict=True):
        assert Counter(row.category for row in rows) == dict.fromkeys(CATEGORIES, each)


def test_every_run_of_eight_rows_holds_each_category_once(default):
    for rows in splits(default):
        assert all({row.category for row in rows[i : i + 8]} == set(CATEGORIES) for i in range(0, len(rows), 8))


def test_every_reference_answer_passes_its_own_check(default, largest):
    for row in default.all() + largest.all():
        assert grade(row.check, row.answer), row


def test_no_answer_passes_the_check_of_another_category(default):
    for asked in default.held_out:
        for given in default.all():
            if asked.category != given.category:
                assert not grade(asked.check, given.answer), (asked, given)


def test_splits_share_no_key(default, largest):
    for corpus in (default, largest):
        keys = [{key for row in rows for key in row.keys} for rows in splits(corpus)]
        assert all(keys)
        assert not any(one & other for one, other in combinations(keys, 2))


def test_every_row_names_its_phrasing_and_its_entities(default):
    for row in default.all():
        kinds = Counter(key.split(":")[0] for key in row.keys)
        assert set(kinds) == {"entity", "phrasing"}
        assert kinds["phrasing"] == 1
        assert f"phrasing:{row.category}:" in row.keys[-1]


def test_no_entity_of_one_split_is_written_in_another(largest):
    texts = [text(rows) for rows in splits(largest)]
    for index, rows in enumerate(splits(largest)):
        entities = {
            key.split(":", 2)[2].casefold() for row in rows for key in row.keys if key.startswith("entity:")
        }
        words = re.compile(rf"\b({'|'.join(map(re.escape, sorted(entities)))})s?\b")
        for other in texts[:index] + texts[index + 1 :]:
            assert words.findall(other) == []


def test_word_lists_of_different_splits_are_disjoint():
    def every(words: Words) -> list[str]:
        lists = [words.capitals, words.capitals.values(), words.names, words.cities, words.objects, words.places]
        lists += [words.images, words.topics, *words.topics.values(), *words.classes.values()]
        return [word.casefold() for entities in lists for word in entities]

    groups = [set(every(words)) for words in (TRAINING, VALIDATION, HELD_OUT)]
    assert not any(one & other for one, other in combinations(groups, 2))


@pytest.mark.parametrize("words", [TRAINING, VALIDATION, HELD_OUT])
def test_word_lists_hold_what_their_rows_need(words):
    assert list(words.classes) == list(TRAINING.classes)
    assert not set(words.cities) & set(words.capitals.values())
    assert all(len(items) >= 4 for items in words.topics.values())
    assert not any(re.search("^[aeiou]|(s|x|z|ch|sh|[^aeiou]y)$", thing) for thing in words.objects)
    for listed in (words.names, words.cities, words.objects, words.places, words.images, *words.topics.values()):
        assert len(set(listed)) == len(listed)
    labelled = [word for members in words.classes.values() for word in members]
    assert len(set(labelled)) == len(labelled)


def test_every_category_has_enough_phrasings_and_uses_them_all(default):
    assert list(PHRASINGS) == list(CATEGORIES)
    used = {key for row in default.all() for key in row.keys if key.startswith("phrasing:")}
    for category, phrasings in PHRASINGS.items():
        every = phrasings.training + phrasings.validation + phrasings.held_out
        assert len(set(every)) == len(every)
        assert len(phrasings.training) >= 4
        assert {f"phrasing:{category}:{number}" for number in range(len(every))} <= used


def test_no_row_and_no_prompt_comes_twice(default, largest):
    for corpus in (default, largest):
        assert len({row_id(row) for row in corpus.all()}) == len(corpus.all())
        assert len({prompt_id(row) for row in corpus.all()}) == len(corpus.all())


def test_held_out_rows_use_every_entity_before_repeating_one(default):
    asked = [row.keys[0] for row in default.held_out if row.category == "open_qa"]
    assert len(set(asked)) == len(asked)


def test_passages_are_contexts_and_not_part_of_the_instruction(default):
    with_context = {row.category for row in default.all() if row.context}
    assert with_context == {"closed_qa", "information_extraction", "summarization"}
    assert not any(brace in text(default.all()) for brace in "{}")
    assert text(default.all()).isascii()


def test_asking_for_more_rows_keeps_the_first_ones(default, largest):
    more = load_skills(**SIZES)
    for few, many in zip(splits(default), splits(more), strict=True):
        assert many[: len(few)] == few


def test_another_seed_gives_other_rows(default):
    assert fingerprint(load_skills(seed=1).examples) != fingerprint(default.examples)


def test_validation_and_held_out_rows_can_be_left_out():
    corpus = load_skills(per_category=1, validation_per_category=0, held_out_per_category=0)
    assert (len(corpus.examples), corpus.validation, corpus.held_out) == (8, (), ())


@pytest.mark.parametrize(
    ("setting", "asked", "bounds"),
    [
        ("per_category", 541, "from 1 to 540"),
        ("per_category", 0, "from 1 to 540"),
        ("validation_per_category", 17, "from 0 to 16"),
        ("held_out_per_category", 33, "from 0 to 32"),
        ("held_out_per_category", -1, "from 0 to 32"),
    ],
)
def test_sizes_that_the_words_cannot_fill_are_refused(setting, asked, bounds):
    with pytest.raises(DataError, match=f"{asked} .*'{setting}' must be {bounds}"):
        load_skills(**{setting: asked})


def test_a_deck_deals_every_item_before_one_comes_again():
    deck = deal("abcde", seed=1)
    turns = ["".join(next(deck) for _ in range(5)) for _ in range(20)]
    assert {"".join(sorted(turn)) for turn in turns} == {"abcde"}
    assert len(set(turns)) > 10


def test_answers_are_derived_from_the_prompt(default):
    for row in default.all():
        prompt = row.messages[0].content
        match row.category:
            case "closed_qa":
                asked = re.search(r"the (\w+)( away)?\?$", prompt)[1]
                (fact,) = [fact for fact in row.context.split(".") if f"the {asked} " in fact]
                assert row.answer.removeprefix("The text says: ").removesuffix(".") in fact.split()
            case "information_extraction":
                assert all(field.split("=")[1] in row.context for field in row.answer.split("; "))
            case "classification":
                assert prompt.endswith(", ".join(part.split(":")[0] for part in row.answer.split(" | ")) + ".")
            case "summarization":
                assert all(part in row.context for part in row.answer[10:-1].split(", "))
            case "general_qa":
                right, wrong = map(int, re.findall(r"\d+", row.answer))
                assert sorted(map(int, re.findall(r"\d+", prompt))) == sorted((right, wrong))
                assert (right > wrong) == ("larger" in prompt)
            case "brainstorming":
                count = {"two": 2, "three": 3, "four": 4}[re.search("two|three|four", prompt)[0]]
                assert len(row.answer.splitlines()) == count
