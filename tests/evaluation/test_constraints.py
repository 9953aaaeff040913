"""Every kind of constraint on answers that follow it and that do not; reports; IFEval's own prompts."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedit.errors import DataError
from fedit.evaluation.constraints import (
    Constraint,
    check,
    constraint_report,
    followed,
    known_kinds,
    language,
    measured_here,
)
from fedit.evaluation.constraints.sentences import count_sentences

IFEVAL = Path(os.environ.get("FEDIT_DATA") or "nowhere") / "ifeval" / "input_data.jsonl"
needs_langdetect = pytest.mark.skipif(not language.available(), reason="langdetect is not installed")
needs_ifeval = pytest.mark.skipif(not IFEVAL.is_file(), reason="FEDIT_DATA names no folder with ifeval/")

LANGUAGE_KINDS = {"change_case:english_capital", "change_case:english_lowercase", "language:response_language"}
ENGLISH = "This is certainly a perfectly ordinary sentence about the weather in the south of England."
SWAHILI = (
    "Habari za asubuhi, rafiki yangu. Leo ninakwenda sokoni kununua matunda na mboga kwa ajili ya familia yangu."
)

PLAIN = {
    "change_case:capital_word_frequency": (
        {"capital_relation": "less than", "capital_frequency": 3},
        ["none at all", "I see a WELL-KNOWN man", "A1 is no Word, U.S. is"],
        ["ONE TWO THREE", "It's IT, I say, AGAIN"],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Who is it?\n Tell me."},
        ["Who is it?\n Tell me. It is he.", "  who IS it?\n tell me.\n"],
        ["Sure. Who is it?\n Tell me.", "Who is it? Tell me.", "Who is it?"],
    ),
    "combination:two_responses": (
        {},
        ["one ****** two", "******one******two\n******"],
        ["one", "one ****** one", "a ****** b ****** c", "one *** two", "a ****** ****** b", "******"],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ["[name] lives in [city].", "[[a]] [b](c) [d]"],
        ["[name] lives.", "[] and [ ]", "[not\nthis] [one]", "name, city"],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. I love you", "Bye. p. s. write!", "**P.S.** So"],
        ["Bye.", "Bye. P.S.", "P.P.S. I love you", "PS: hello", "Steps. It is."],
    ),
    "detectable_format:constrained_response": (
        {},
        ["My answer is yes.", "Well: My answer is maybe. I think."],
        ["yes", "My answer is yes", "my answer is no.", "My answer is perhaps."],
    ),
    "detectable_format:json_format": (
        {},
        ['{"a": [1, null]}', '```json\n{"a": 1}\n```', "```\n[]\n```", '```JSON {"a": 1}```', " 3 "],
        ["", "a", "{'a': 1}", '{"a": NaN}', 'Here: {"a": 1}', '{"a": 1', "[" * 100_000, "``````"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\nfirst\nSECTION 2\nsecond", "SECTION1 a SECTION 2 b SECTION 3 c"],
        ["SECTION 1\nall", "SECTION one SECTION two", "section 1 section 2", "SUBSECTION 1 SUBSECTION 2"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* one\n* two", "Look:\n - one\n\n - two\nDone.", "* *one*\n* two\n---\n* * *"],
        ["* one", "* 1\n* 2\n* 3", "1. one\n2. two", "*one*\n*two*", "a * b\nc * d", "--\n--"],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* and *two*", "**one**\n*two*", "* *one*\n* item with **two** words"],
        ["*one*", "* one\n* two\n* three", "** **  **", "*over\nlines* *and", "2 * 3 * 4"],
    ),
    "detectable_format:title": (
        {},
        ["<<My day>>\nIt was fine.", "So: <<x>>"],
        ["<My day>", "<<>>", "<< >>", "<<My\nday>>", "<<<>>>"],
    ),
    "keywords:existence": (
        {"keywords": ["mother", "Rain"]},
        ["MOTHER in the rain", "my grandmother trains"],
        ["mother", "rain", "moth er rain"],
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["rock", "c++"]},
        ["rocks and a bedrock", "c", "plain"],
        ["Rock!", "hard rock.", "I like C++ most"],
    ),
    "keywords:frequency": (
        {"relation": "at least", "keyword": "War", "frequency": 3},
        ["war war WAR", "toward a war, warlike"],
        ["war and war", "peace"],
    ),
    "keywords:letter_frequency": (
        {"let_relation": "less than", "letter": "Q", "let_frequency": 2},
        ["quiet", "none"],
        ["a quick quiz", "Qq"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "firms"},
        ["a\n\nFirms grow\n\nb", "a\n\n\n\n**Firms** do.\n\n'b'", 'a\n\n"Firms!"\n\nb\n\n'],
        ["a\n\nfirm\n\nb", "firms\n\na\n\nb", "a\n\nfirms", "a\n\nfirms\n\nb\n\nc", "a\nfirms\nb"],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***one***two***", "one\n\nalso one *** two"],
        ["one", "one *** two *** three", "one *** *** two", "one\n\ntwo", "***"],
    ),
    "length_constraints:number_sentences": (
        {"relation": "at least", "num_sentences": 3},
        ["One. Two! Three?", "He left. Why… Nobody knows"],
        ["One. Two", "Dr. J. R. Smith paid 3.50, i.e. too much. Why?", "..."],
    ),
    "length_constraints:number_words": (
        {"relation": "at least", "num_words": 4},
        ["one two three four", "don't do it"],
        ["one two three", "one - two - three!"],
    ),
    "punctuation:no_comma": ({}, ["None here."], ["One, two", ","]),
    "startend:end_checker": (
        {"end_phrase": "Call me."},
        ["Hello. Call me.", '"Hello. CALL ME."', "Call me. \n"],
        ["Call me", "Call me. Now.", "Call him."],
    ),
    "startend:quotation": ({}, ['"All of it."', ' "a" and "b"\n'], ['"', '"Half', "'All'", "None"]),
}
BY_LANGUAGE = {
    "change_case:english_capital": ({}, [ENGLISH.upper()], [ENGLISH, SWAHILI.upper(), "123"]),
    "change_case:english_lowercase": ({}, [ENGLISH.lower()], [ENGLISH, SWAHILI.lower(), "123"]),
    "language:response_language": ({"language": "sw"}, [SWAHILI], [ENGLISH, "123", "?!"]),
}
ANSWERS = [
    (kind, kwargs, answer, expected)
    for kind, (kwargs, good, bad) in PLAIN.items()
    for answers, expected in ((good, True), (bad, False))
    for answer in answers
]


def test_there_are_25_kinds_and_each_has_examples():
    assert len(known_kinds()) == 25
    assert set(known_kinds()) == set(PLAIN) | set(BY_LANGUAGE)


def test_the_page_about_evaluation_lists_every_kind():
    page = Path(__file__).parents[2] / "docs" / "evaluation.md"
    assert [kind for kind in known_kinds() if f"`{kind}`" not in page.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(("kind", "kwargs", "answer", "expected"), ANSWERS)
def test_a_kind_knows_answers_that_follow_it(kind, kwargs, answer, expected):
    assert check(kind, kwargs, "a prompt", answer) is expected


@needs_langdetect
@pytest.mark.parametrize("kind", BY_LANGUAGE)
def test_a_language_is_known_by_its_text(kind):
    kwargs, good, bad = BY_LANGUAGE[kind]
    assert [check(kind, kwargs, "", answer) for answer in good] == [True] * len(good)
    assert [check(kind, kwargs, "", answer) for answer in bad] == [False] * len(bad)


@needs_langdetect
def test_chinese_is_one_language_unless_a_script_is_asked_for():
    text = "今天天气很好。我们一起去公园散步。然后回家吃饭。大家都很高兴。"
    assert check("language:response_language", {"language": "zh"}, "", text)
    assert check("language:response_language", {"language": "zh-cn"}, "", text)
    assert not check("language:response_language", {"language": "zh-tw"}, "", text)


@pytest.mark.parametrize("kind", known_kinds())
@pytest.mark.parametrize("answer", ["", " \n\t"])
def test_a_blank_answer_follows_nothing(kind, answer):
    kwargs = (PLAIN | BY_LANGUAGE)[kind][0]
    assert check(kind, kwargs, "", answer) is (False if measured_here(kind) else None)


RELATIONS = {
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency", "WORD"),
    "keywords:frequency": ("relation", "frequency", "key"),
    "keywords:letter_frequency": ("let_relation", "let_frequency", "k"),
    "length_constraints:number_sentences": ("relation", "num_sentences", "Yes."),
    "length_constraints:number_words": ("relation", "num_words", "word"),
}


@pytest.mark.parametrize("kind", RELATIONS)
@given(st.integers(1, 6), st.integers(1, 6))
def test_at_least_includes_the_number_and_less_than_does_not(kind, found, wanted):
    relation, count, unit = RELATIONS[kind]
    others = {"keywords:frequency": {"keyword": "key"}, "keywords:letter_frequency": {"letter": "k"}}.get(kind, {})
    answer = " ".join([unit] * found)
    assert check(kind, {relation: "at least", count: wanted, **others}, "", answer) == (found >= wanted)
    assert check(kind, {relation: "less than", count: wanted, **others}, "", answer) == (found < wanted)


def test_the_prompt_is_what_is_repeated_where_kwargs_name_nothing():
    assert check("combination:repeat_prompt", {}, "Why?", "Why? Because.")
    assert not check("combination:repeat_prompt", {}, "Why?", "Because.")


def test_arguments_that_a_table_filled_in_or_made_floats_are_understood():
    filled = {"num_words": 2.0, "relation": "at least", "keywords": None, "language": None}
    assert check("length_constraints:number_words", filled, "", "two words")


@pytest.mark.parametrize(
    ("kind", "kwargs", "field"),
    [
        (
            "change_case:capital_word_frequency",
            {"capital_relation": "at most", "capital_frequency": 1},
            "capital_re",
        ),
        ("change_case:capital_word_frequency", {"capital_relation": "at least"}, "capital_frequency"),
        ("change_case:english_capital", {"x": 1}, "x"),
        ("change_case:english_lowercase", {"language": "en"}, "language"),
        ("combination:repeat_prompt", {"prompt_to_repeat": 3}, "prompt_to_repeat"),
        ("combination:repeat_prompt", {}, "prompt_to_repeat"),  # the prompt of this test is empty too
        ("combination:two_responses", {"n": 2}, "n"),
        ("detectable_content:number_placeholders", {"num_placeholders": 0}, "num_placeholders"),
        ("detectable_content:postscript", {"postscript_marker": " "}, "postscript_marker"),
        ("detectable_format:constrained_response", {"options": []}, "options"),
        ("detectable_format:json_format", {"indent": 2}, "indent"),
        (
            "detectable_format:multiple_sections",
            {"section_splitter": "Day", "num_sections": 2},
            "section_splitter",
        ),
        ("detectable_format:multiple_sections", {"num_sections": 2}, "section_spliter"),
        ("detectable_format:number_bullet_lists", {"num_bullets": "3"}, "num_bullets"),
        ("detectable_format:number_bullet_lists", {"num_bullets": True}, "num_bullets"),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1.5}, "num_highlights"),
        ("detectable_format:title", {"title": "x"}, "title"),
        ("keywords:existence", {"keywords": "mother"}, "keywords"),
        ("keywords:existence", {"keywords": []}, "keywords"),
        ("keywords:forbidden_words", {"forbidden_words": ["a", ""]}, "forbidden_words"),
        ("keywords:frequency", {"relation": "at least", "frequency": 1}, "keyword"),
        (
            "keywords:letter_frequency",
            {"let_relation": "at least", "letter": "ab", "let_frequency": 1},
            "letter",
        ),
        ("language:response_language", {}, "language"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "nth_paragraph",
        ),
        ("length_constraints:number_paragraphs", {}, "num_paragraphs"),
        ("length_constraints:number_sentences", {"relation": None, "num_sentences": 3}, "relation"),
        ("length_constraints:number_words", {"relation": "at least", "num_words": -1}, "num_words"),
        ("punctuation:no_comma", {"comma": ","}, "comma"),
        ("startend:end_checker", {"end_phrase": None}, "end_phrase"),
        ("startend:quotation", {"mark": '"'}, "mark"),
    ],
)
def test_wrong_arguments_are_refused_by_kind_and_field(kind, kwargs, field):
    with pytest.raises(DataError, match=f"{kind}: '{field}") as error:
        check(kind, kwargs, "", "an answer")
    assert str(error.value).endswith(".")


@needs_langdetect
def test_a_language_that_cannot_be_told_is_refused():
    with pytest.raises(
        DataError, match=r"response_language: 'language' is 'swahili', which cannot be told; .* sw,"
    ):
        check("language:response_language", {"language": "swahili"}, "", "x")


def test_an_unknown_kind_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="'punctuation:no_commas'; did you mean 'punctuation:no_comma'"):
        check("punctuation:no_commas", {}, "", "x")
    with pytest.raises(DataError, match="no kind of constraint 'x'"):
        measured_here("x")


@pytest.mark.parametrize("kind", sorted(LANGUAGE_KINDS))
def test_without_langdetect_a_language_is_not_measured_and_never_counted(kind, monkeypatch):
    monkeypatch.setattr(language, "available", lambda: False)
    kwargs = BY_LANGUAGE[kind][0]
    assert not measured_here(kind)
    for answer in ("", "x", ENGLISH.upper(), ENGLISH.lower()):
        assert check(kind, kwargs, "", answer) is None
    with pytest.raises(DataError, match=kind):
        check(kind, {"wrong": 1}, "", "x")


NO_COMMA = Constraint("punctuation:no_comma", {})
JSON = Constraint("detectable_format:json_format", {})
TWO_WORDS = Constraint("length_constraints:number_words", {"relation": "less than", "num_words": 3})
CAPITALS = Constraint("change_case:english_capital", {})


@pytest.mark.parametrize(
    ("constraint", "answer"),
    [
        (JSON, "Sure, here it is:\n[1]"),
        (JSON, "[1]\nI hope this helps!"),
        (JSON, "Sure!\n\n[1]\n\nBye!"),
        (JSON, "**[1]**"),
        (JSON, "Sure!\n**[1]**\nBye!"),
        (TWO_WORDS, "Hello, you!\nTwo words."),
    ],
)
def test_loose_forgives_a_first_line_a_last_line_and_asterisks(constraint, answer):
    assert followed([constraint], "", answer) == [False]
    assert followed([constraint], "", answer, loose=True) == [True]


@pytest.mark.parametrize("answer", ["Sure!\nreally!\n[1]", "_[1]_", "Sure, [1]", "Sure!"])
def test_loose_forgives_no_more(answer):
    assert followed([JSON], "", answer, loose=True) == [False]


@given(st.text(st.sampled_from('a*, \n."[1]'), max_size=30))
def test_what_is_followed_strictly_is_followed_loosely(answer):
    constraints = [Constraint(kind, kwargs) for kind, (kwargs, *_) in PLAIN.items()]
    strict, loose = followed(constraints, "", answer), followed(constraints, "", answer, loose=True)
    assert all(wide for tight, wide in zip(strict, loose, strict=True) if tight)


def test_a_report_counts_prompts_and_instructions_strictly_and_loosely():
    cases = [
        ("p", [NO_COMMA, TWO_WORDS], "two words"),  # both
        ("p", [NO_COMMA, TWO_WORDS], "three little words"),  # one of two
        ("p", [JSON], "Sure:\n[1]"),  # only loosely
    ]
    report = constraint_report(cases)
    assert report.prompt_strict == pytest.approx(1 / 3)
    assert report.prompt_loose == pytest.approx(2 / 3)
    assert report.instruction_strict == pytest.approx(3 / 5)
    assert report.instruction_loose == pytest.approx(4 / 5)
    assert (report.prompts, report.instructions, report.prompts_not_measured) == (3, 5, 0)
    assert report.per_kind[TWO_WORDS.instruction_id] == 0.5
    assert report.not_measured == {}
    json.dumps(asdict(report), allow_nan=False)


def test_a_report_counts_a_prompt_only_if_all_of_it_was_measured(monkeypatch):
    monkeypatch.setattr(language, "available", lambda: False)
    report = constraint_report([("p", [NO_COMMA, CAPITALS], "x"), ("p", [CAPITALS], "X"), ("p", [NO_COMMA], ",")])
    assert (report.prompts, report.prompts_not_measured) == (1, 2)
    assert report.prompt_strict == report.prompt_loose == 0.0
    assert (report.instructions, report.instruction_strict) == (2, 0.5)
    assert report.not_measured == {"change_case:english_capital": 2}
    assert "change_case:english_capital" not in report.per_kind


def test_a_report_of_nothing_measured_has_no_accuracies(monkeypatch):
    monkeypatch.setattr(language, "available", lambda: False)
    report = constraint_report([("p", [CAPITALS], "X")])
    assert report.prompt_strict is report.prompt_loose is report.instruction_strict is None
    assert report.instruction_loose is None


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("punctuation:no_comma", "expected a constraint"),
        ({"id": "punctuation:no_comma", "arguments": {}}, "expected a constraint"),
        ({"kwargs": {}}, "the id of a constraint is None"),
        ({"id": "punctuation:no_comma", "kwargs": []}, "no_comma: 'kwargs' is"),
    ],
)
def test_a_constraint_of_another_form_is_refused(entry, reason):
    with pytest.raises(DataError, match=reason):
        Constraint.read(entry)
    assert Constraint.read({"id": "punctuation:no_comma"}) == NO_COMMA


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("Hi", 1),
        ("Hi. There", 2),
        ("Dr. Smith met J. R. Brown. He won.", 2),
        ("It costs 3.5 dollars. OK?", 2),
        ("Wait... what?!", 2),
        ("1. Boil water.\n2. Drink it", 2),
        ("Needed:\n1. Water\n2. Tea", 3),
        ('He said "no." Then he left!', 2),
        ("Pens, ink, etc. are sold.", 1),
        ("Pens, ink, etc. We sell it.", 2),
        ("At 5 p.m. we go to the U.S. Army.", 1),
        ("It was I. Nobody knew.", 2),
        ("all small. no capitals. yes", 3),
        ("**Bold.** Next.", 2),
        ("你好。再见\uff01", 2),
        ("See www.example.com for more", 1),
    ],
)
def test_sentences_are_counted(text, count):
    assert count_sentences(text) == count


@given(st.lists(st.sampled_from(["One.", "Two words!", "Really?", "Who knows…"]), max_size=8))
def test_plain_sentences_add_up(sentences):
    assert count_sentences(" ".join(sentences)) == len(sentences)


def rows():
    with IFEVAL.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def cases(row):
    pairs = zip(row["instruction_id_list"], row["kwargs"], strict=True)
    return [Constraint(kind, kwargs) for kind, kwargs in pairs]


@needs_ifeval
@pytest.mark.timeout(120)
def test_every_prompt_of_ifeval_can_be_checked():
    answer = '"<<Title>>\n\n* *First* point, with [a name].\n***\nP.S. My answer is yes."'
    report = constraint_report([(row["prompt"], cases(row), answer) for row in rows()])
    assert report.prompts + report.prompts_not_measured == 541
    assert report.instructions + sum(report.not_measured.values()) == 834
    assert 0 < report.instruction_strict < report.instruction_loose < 1
    if language.available():
        assert set(report.per_kind) == set(known_kinds())


CAPITAL_POEM = """STITCH by STITCH I mend the ROAD you TOOK
EVERY TRIP you TRIPPED and TORE your SLEEVE
I CLOSE what FALLS OPEN and LEAVE NO GAP
SO WHAT AM I"""
SATISFYING = {
    2820: CAPITAL_POEM,
    2341: "YES, PRAYING FOR THE HEALTH OF SOMEONE YOU LOVE IS A GOOD IDEA BECAUSE IT GIVES COMFORT TO PEOPLE.",
    1051: "my dear friend, i hope that you are well. please go and vote this week, because every voice counts.",
    3563: "What is the name of the actor who played Gandalf in Lord of the Rings? His name is Ian McKellen.",
    3263: "Yes, Jiang is a Chinese family name.\n******\nSimilar names are Jian, Zhang and Jiao.",
    3743: "[name] told Zoe on [date] that bubbles never pop in [city]. Zoe burst out laughing, and so did they.",
    2396: "Ten years of drums, ten years of rain,\nand no one knows for whom.\n\nP.P.S. The drums have stopped.",
    3755: "My answer is maybe.",
    3223: '{"name": "Lionel Messi", "born": 1987, "country": "Argentina", "world_cups": [2022]}',
    2925: "SECTION 1\nTwo anarchists walk into Tulsa.\nSECTION 2\nNobody leads.\nSECTION 3\nBoth arrive.",
    2314: "* Domino\n* Oreo\n* Panda",
    2752: "The opposite of youth is not age but *settled habit*, and its friend is *wonder*.",
    3057: "<<Undo me>>\nI take you back to where you came from, one to one. What am I?",
    2662: "Tonight the whole country engages with hope. Tread lightly, dream boldly.",
    2811: "I rap all night and the rhymes come quick, my beat is steady and the bass is thick.",
    3091: "Q1: Is a bit an elephant? Q2: How many bits weigh an elephant? Q3: Can an elephant store one?",
    3478: "Leyton, we sing your nights,\nyour rivers, your riverside lights.",
    2299: SWAHILI,
    3073: "Firms are fine today, and so am I.\n\nThe sun is out.\n\nWork goes well.\n\nThank you for asking.",
    2467: "I fell once.\n***\nThe abyss fell back.\n***\nWe rhymed in the dark.\n***\nNow it echoes me.",
    2780: "I cannot see live timetables. Please ask the railway's own site. It knows the next train.",
    1092: "Tokyo was loud, Kyoto was quiet, and the train between them was on time.",
    3615: "I carry her name and six letters more or less. Who is Camilla to me?",
    3198: "I would be glad to join you, and I bring ten years of care. Call me at 631-481-4867",
    219: '"Yes, she is a good actor, above all in her quieter films."',
}


@needs_ifeval
@needs_langdetect
def test_answers_written_for_prompts_of_every_kind_satisfy_them():
    chosen = [row for row in rows() if row["key"] in SATISFYING]
    assert {kind for row in chosen for kind in row["instruction_id_list"]} == set(known_kinds())
    for row in chosen:
        marks = followed(cases(row), row["prompt"], SATISFYING[row["key"]])
        assert all(marks), (row["key"], row["instruction_id_list"], marks)
