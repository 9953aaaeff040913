"""The 25 kinds of IFEval: what each asks for, and whether an answer does it.

Written from what the paper and its prompts ask for. Words, paragraphs and substrings are counted as the paper's
program counts them, so that accuracies compare; where the two differ on purpose, the rule says so.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedit.errors import DataError, did_you_mean
from fedit.evaluation.constraints import language
from fedit.evaluation.constraints.arguments import Arguments
from fedit.evaluation.constraints.sentences import count_sentences

Rule = Callable[[str], bool]

CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""What ``detectable_format:constrained_response`` lets answer."""

_WORD = re.compile(r"\w+")
_JOINED_WORD = re.compile(r"\w+(?:[-'\u2019.]\w+)*")
_OPENING = "\"'\u201c\u2018*_"
_PUNCTUATION = re.compile(r"[.,?!:;'\"\u2019\u201d*_]")
_BULLET = re.compile(r"^[ \t]*[*-][ \t]+\S", re.MULTILINE)
_RULED_LINE = re.compile(r"^[ \t]*(?:[*-][ \t]*){3,}$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*(?!\s)[^\n*]+\*\*|\*(?!\s)[^\n*]+\*")
_PLACEHOLDER = re.compile(r"\[([^\[\]\n]+)\]")
_TITLE = re.compile(r"<<([^\n<>]+)>>")


def known_kinds() -> tuple[str, ...]:
    """Return the ids of all kinds, sorted."""
    return tuple(sorted(_KINDS))


def measured_here(instruction_id: str) -> bool:
    """Return whether this kind can be checked on this machine: three need langdetect, the extra ``ifeval``.

    Raises:
        DataError: the kind is not known.
    """
    return not _kind(instruction_id).needs_language or language.available()


def rule(instruction_id: str, kwargs: Mapping[str, object], prompt: str = "") -> Rule | None:
    """Return the test of an answer; None for a kind that cannot be checked on this machine.

    Args:
        instruction_id: one of `known_kinds`.
        kwargs: its arguments, as in IFEval's file; those that are None count as absent.
        prompt: the instruction that is answered; ``combination:repeat_prompt`` repeats it where ``kwargs`` has
            no ``prompt_to_repeat``.

    Raises:
        DataError: the kind is not known, or an argument is missing, wrong or not one of its own.
    """
    kind = _kind(instruction_id)
    given = {name: value for name, value in kwargs.items() if value is not None}
    arguments = Arguments(instruction_id, given, prompt)
    arguments.refuse_others(kind.arguments)
    test = kind.make(arguments)
    if not measured_here(instruction_id):
        return None
    return lambda answer: bool(answer.strip()) and test(answer)


def check(instruction_id: str, kwargs: Mapping[str, object], prompt: str, answer: str) -> bool | None:
    """Return whether ``answer`` as it stands follows one constraint; None if that cannot be told here; see `rule`.

    An answer that is blank follows nothing.

    >>> check("length_constraints:number_words", {"relation": "less than", "num_words": 4}, "", "Not many words.")
    True
    """
    test = rule(instruction_id, kwargs, prompt)
    return None if test is None else test(answer)


@dataclass(frozen=True, slots=True)
class _Kind:
    make: Callable[[Arguments], Rule]
    arguments: tuple[str, ...] = ()
    needs_language: bool = False


def _kind(instruction_id: str) -> _Kind:
    if instruction_id not in _KINDS:
        near = did_you_mean(instruction_id, _KINDS)
        raise DataError(
            f"there is no kind of constraint '{instruction_id}'{near} Known: {', '.join(known_kinds())}."
        )
    return _KINDS[instruction_id]


def _keywords(arguments: Arguments) -> Rule:
    """All keywords occur, in any case, also inside words."""
    keywords = [keyword.lower() for keyword in arguments.texts("keywords")]
    return lambda answer: all(keyword in answer.lower() for keyword in keywords)


def _keyword_frequency(arguments: Arguments) -> Rule:
    """A keyword occurs so often, in any case, also inside words."""
    enough, keyword = arguments.comparison("relation", "frequency"), arguments.text("keyword").strip().lower()
    return lambda answer: enough(answer.lower().count(keyword))


def _forbidden_words(arguments: Arguments) -> Rule:
    """None of the words occurs as a word of its own, in any case."""
    any_of = "|".join(re.escape(word) for word in arguments.texts("forbidden_words"))
    pattern = re.compile(rf"(?<!\w)(?:{any_of})(?!\w)", re.IGNORECASE)
    return lambda answer: pattern.search(answer) is None


def _letter_frequency(arguments: Arguments) -> Rule:
    """A character occurs so often, in any case."""
    enough, letter = arguments.comparison("let_relation", "let_frequency"), arguments.text("letter").lower()
    if len(letter) != 1:
        raise arguments.error("letter", f"is {letter!r} and must be one character")
    return lambda answer: enough(answer.lower().count(letter))


def _response_language(arguments: Arguments) -> Rule:
    """The answer is in a language; one in which no language can be told is not."""
    code = arguments.text("language")
    known = language.languages() if language.available() else []
    if known and not any(_is_language(name, code) for name in known):
        raise arguments.error("language", f"is '{code}', which cannot be told; known: {', '.join(known)}")
    return lambda answer: _is_language(language.language_of(answer), code)


def _is_language(name: str | None, code: str) -> bool:
    """Whether the detector's ``name`` is the language ``code``; zh-cn and zh-tw are both zh."""
    return name is not None and code in (name, name.split("-")[0])


def _sentences(arguments: Arguments) -> Rule:
    enough = arguments.comparison("relation", "num_sentences")
    return lambda answer: enough(count_sentences(answer))


def _words(arguments: Arguments) -> Rule:
    """Words are runs of letters, digits and underscores: "don't" has two."""
    enough = arguments.comparison("relation", "num_words")
    return lambda answer: enough(len(_WORD.findall(answer)))


def _paragraphs(arguments: Arguments) -> Rule:
    """Exactly so many paragraphs with "***" between them; none in the middle is blank."""
    wanted = arguments.count("num_paragraphs")

    def test(answer: str) -> bool:
        parts = [part.strip() for part in answer.split("***")]
        inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
        return all(inner) and len(inner) == wanted

    return test


def _first_word_of_paragraph(arguments: Arguments) -> Rule:
    """Exactly so many paragraphs with a blank line between them, and the first word of one of them."""
    wanted, nth = arguments.count("num_paragraphs"), arguments.count("nth_paragraph")
    first = arguments.text("first_word").lower()
    if nth > wanted:
        raise arguments.error("nth_paragraph", f"is {nth}, and there are only {wanted} paragraphs")

    def test(answer: str) -> bool:
        parts = [part.strip() for part in answer.split("\n\n") if part.strip()]
        if len(parts) != wanted:
            return False
        word = parts[nth - 1].split()[0].lstrip(_OPENING).lower()
        return re.split(_PUNCTUATION, word)[0] == first

    return test


def _placeholders(arguments: Arguments) -> Rule:
    """At least so many placeholders such as [name]."""
    wanted = arguments.count("num_placeholders")
    return lambda answer: sum(bool(name.strip()) for name in _PLACEHOLDER.findall(answer)) >= wanted


def _postscript(arguments: Arguments) -> Rule:
    """The marker occurs, in any case, and something follows it; in "P.P.S." there is no "P.S."."""
    marker = arguments.text("postscript_marker").strip()
    spaced = r"\.\s?".join(re.escape(part) for part in marker.split("."))
    pattern = re.compile(rf"(?<![\w.]){spaced}\W*\w", re.IGNORECASE)
    return lambda answer: pattern.search(answer) is not None


def _bullets(arguments: Arguments) -> Rule:
    """Exactly so many lines that start with "* " or "- ".

    Unlike the paper's program, "---" and a line that starts with *emphasis* are no bullets.
    """
    wanted = arguments.count("num_bullets")
    return lambda answer: len(_BULLET.findall(_RULED_LINE.sub("", answer))) == wanted


def _constrained(arguments: Arguments) -> Rule:
    """One of `CHOICES` occurs, letter for letter."""
    return lambda answer: any(choice in answer for choice in CHOICES)


def _highlights(arguments: Arguments) -> Rule:
    """At least so many parts like *this* or **this**, each within a line."""
    wanted = arguments.count("num_highlights")
    return lambda answer: len(_HIGHLIGHT.findall(answer)) >= wanted


def _sections(arguments: Arguments) -> Rule:
    """At least so many sections, each marked by the splitter and a number."""
    wanted, splitter = arguments.count("num_sections"), arguments.text("section_spliter").strip()
    pattern = re.compile(rf"(?<!\w){re.escape(splitter)}\s?\d+")
    return lambda answer: len(pattern.findall(answer)) >= wanted


def _json(arguments: Arguments) -> Rule:
    """The whole answer is JSON, with or without a Markdown fence."""

    def test(answer: str) -> bool:
        text = answer.strip()
        if text.startswith("```") and text.endswith("```"):
            text = text[3:-3]
            text = text[4:] if text[:4].lower() == "json" else text
        try:
            json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        return True

    return test


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is no JSON")


def _title(arguments: Arguments) -> Rule:
    """A title <<like this>> on one line."""
    return lambda answer: any(title.strip() for title in _TITLE.findall(answer))


def _two_responses(arguments: Arguments) -> Rule:
    """Two different responses with "******" between them."""

    def test(answer: str) -> bool:
        parts = [part.strip() for part in answer.split("******")]
        inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
        return all(inner) and len(inner) == 2 and inner[0] != inner[1]

    return test


def _repeat_prompt(arguments: Arguments) -> Rule:
    """The answer starts with the prompt, in any case."""
    asked = arguments.values.get("prompt_to_repeat", arguments.prompt)
    if not isinstance(asked, str) or not asked.strip():
        raise arguments.error("prompt_to_repeat", f"is {asked!r} and must be text")
    start = asked.strip().lower()
    return lambda answer: answer.strip().lower().startswith(start)


def _ends_with(arguments: Arguments) -> Rule:
    """The answer ends with a phrase, in any case, perhaps inside quotation marks."""
    phrase = arguments.text("end_phrase").strip().lower()
    return lambda answer: answer.strip().strip('"').rstrip().lower().endswith(phrase.strip('"'))


def _quotation(arguments: Arguments) -> Rule:
    """The whole answer stands in double quotation marks."""

    def test(answer: str) -> bool:
        stripped = answer.strip()
        return len(stripped) > 1 and stripped[0] == stripped[-1] == '"'

    return test


def _capital(arguments: Arguments) -> Rule:
    """English without small letters. The language is told from small letters: langdetect skips capitals."""
    return lambda answer: answer.isupper() and language.language_of(answer.lower()) == "en"


def _lowercase(arguments: Arguments) -> Rule:
    """English without capital letters."""
    return lambda answer: answer.islower() and language.language_of(answer) == "en"


def _capital_words(arguments: Arguments) -> Rule:
    """So many words without small letters; hyphens and apostrophes join ("WELL-KNOWN" is one), "I" is one."""
    enough = arguments.comparison("capital_relation", "capital_frequency")
    return lambda answer: enough(sum(word.isupper() for word in _JOINED_WORD.findall(answer)))


def _no_comma(arguments: Arguments) -> Rule:
    return lambda answer: "," not in answer


_KINDS: Mapping[str, _Kind] = {
    "change_case:capital_word_frequency": _Kind(_capital_words, ("capital_relation", "capital_frequency")),
    "change_case:english_capital": _Kind(_capital, needs_language=True),
    "change_case:english_lowercase": _Kind(_lowercase, needs_language=True),
    "combination:repeat_prompt": _Kind(_repeat_prompt, ("prompt_to_repeat",)),
    "combination:two_responses": _Kind(_two_responses),
    "detectable_content:number_placeholders": _Kind(_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": _Kind(_postscript, ("postscript_marker",)),
    "detectable_format:constrained_response": _Kind(_constrained),
    "detectable_format:json_format": _Kind(_json),
    "detectable_format:multiple_sections": _Kind(_sections, ("section_spliter", "num_sections")),
    "detectable_format:number_bullet_lists": _Kind(_bullets, ("num_bullets",)),
    "detectable_format:number_highlighted_sections": _Kind(_highlights, ("num_highlights",)),
    "detectable_format:title": _Kind(_title),
    "keywords:existence": _Kind(_keywords, ("keywords",)),
    "keywords:forbidden_words": _Kind(_forbidden_words, ("forbidden_words",)),
    "keywords:frequency": _Kind(_keyword_frequency, ("relation", "keyword", "frequency")),
    "keywords:letter_frequency": _Kind(_letter_frequency, ("let_relation", "letter", "let_frequency")),
    "language:response_language": _Kind(_response_language, ("language",), needs_language=True),
    "length_constraints:nth_paragraph_first_word": _Kind(
        _first_word_of_paragraph, ("num_paragraphs", "nth_paragraph", "first_word")
    ),
    "length_constraints:number_paragraphs": _Kind(_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_sentences": _Kind(_sentences, ("relation", "num_sentences")),
    "length_constraints:number_words": _Kind(_words, ("relation", "num_words")),
    "punctuation:no_comma": _Kind(_no_comma),
    "startend:end_checker": _Kind(_ends_with, ("end_phrase",)),
    "startend:quotation": _Kind(_quotation),
}
