"""How many sentences a text has."""

import re

_END = re.compile(
    r"[.!?\u2026]++[\"'\u201d\u2019)\]*_]*+(?=\s|\Z)"
    r"|[\u3002\uff01\uff1f\u0964]+[\"'\u201d\u2019\u300d\u300f)\]]*"  # Chinese, Japanese, Hindi: no space needed
    r"|\n(?=[ \t]*[0-9]+[.)]\s)"  # before "2. Boil"
    r"|\Z"
)
_LAST_WORD = re.compile(r"[^\s\"'\u201c\u2018(\[*_]*\Z")
_LONGEST = 12
"""Characters to look back for an abbreviation: more than the longest has, so that no cut word looks like one."""

_NEVER_LAST = re.compile(
    r"mrs?|ms|dr|prof|rev|hon|st|gen|col|maj|capt|lt|sgt|sen|rep|gov|pres|vs|e\.g|i\.e|cf|fig|eq|nos?|vol|pp|ca|"
    r"approx|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|u\.s|u\.k|u\.n"
)
"""Abbreviations that something always follows."""

_MAYBE_LAST = re.compile(r"etc|inc|ltd|co|corp|jr|sr|[ap]\.m|d\.c|ph\.d|m\.d|[bm]\.a|al|dept|est|ave|blvd")
"""Abbreviations that can end a sentence: they do unless a small letter follows."""


def count_sentences(text: str) -> int:
    """Return the number of sentences: they end at ., !, ?, … and their like, and before a numbered list item.

    The full stop of an abbreviation, an initial ("J. Smith") or a list's number at the start of a line ("2. Boil")
    is no end. A heading or bullet without any such mark belongs to the sentence after it.
    """
    count, start = 0, 0
    for end in _END.finditer(text):
        if _is_end(text, end):
            count += re.search(r"\w", text[start : end.end()]) is not None  # marks alone are no sentence
            start = end.end()
    return count


def _is_end(text: str, end: re.Match[str]) -> bool:
    if end[0] != ".":
        return True
    word = _LAST_WORD.findall(text, max(0, end.start() - _LONGEST), end.start())[0].lower()
    line_before = text[: end.start() - len(word)].rpartition("\n")[2]
    if word.isdecimal() and not line_before.strip(" \t*_>#-"):
        return False
    if _NEVER_LAST.fullmatch(word) or (len(word) == 1 and word.isalpha() and word != "i"):
        return False
    return not (_MAYBE_LAST.fullmatch(word) and text[end.end() :].lstrip()[:1].islower())
