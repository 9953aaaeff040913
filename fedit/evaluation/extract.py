"""What an answer comes to: its final number, the option it chooses."""

import re
from decimal import Decimal

# Atomic groups (?>…) and possessive *+: a number is never cut short to make the rest of a pattern fit, and a long
# run of spaces is looked at once.
_NUMBER = (
    r"(?:(?<![\w)\]])[-\u2212][$€£¥₹]?|[$€£¥₹][-\u2212]?)?(?<!\w)(?<![0-9]\.)"
    r"(?>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_ANY_NUMBER = re.compile(_NUMBER)
_MARKED_NUMBER = re.compile(rf"(?<!#)####[ \t*]*({_NUMBER})(?![.):][ \t]+\S)")
"""Not "#### 2. Add them up", which is a numbered heading."""

# "A" and "I" are words, small letters are parts of lists: they need an end or punctuation after them.
_AND_ANOTHER = r"(?![)\]]?\s*(?:,|/|&|(?:and|or)\b)\s*[(\[]?[A-HJ-Z](?![\w'\u2019]))"
_LETTER = rf"(?:([B-HJ-Z])(?![\w'\u2019+#-])|([AIa-z])(?=[).:,;\]*\"]|\s*(?:\n|\Z))){_AND_ANOTHER}"
_OPEN = r"[\s*_\"'(\[]*+"
_STATED = re.compile(
    rf"\b(?i:answer|option|choice)(?:\s+(?i:is|would be)\b\s*+:?|[*_]*\s*:){_OPEN}(?:(?i:option)\s+)?{_LETTER}"
)
_AT_BEGINNING = re.compile(rf"\A{_OPEN}(?:(?i:option|choice)\s+)?{_LETTER}")
_LISTED = re.compile(r"^[ \t*_(\[]*([A-Z])[).:\]]", re.MULTILINE)
_IN_BRACKETS = re.compile(r"(?<!\w)\(([A-Z])\)")


def final_number(text: str) -> Decimal | None:
    """Return the number a solution ends with: the one after the first "####" if there is one, else the last.

    Commas between thousands, a sign, decimals and a currency sign before the number are understood; digits that
    go on a word (CO2) are no number. A numbered heading ("#### 2. Add them up") is not taken for the result.

    >>> final_number("She pays $1,080.50 each year.")
    Decimal('1080.50')
    >>> final_number("3 + 4 = 7 #### 7, which took 1 line.")
    Decimal('7')
    """
    if marked := _MARKED_NUMBER.search(text):
        return _decimal(marked[1])
    found = _ANY_NUMBER.findall(text)
    return _decimal(found[-1]) if found else None


def as_number(text: str) -> Decimal | None:
    """Return the number that ``text`` is, as `final_number` reads numbers; None if it is anything else."""
    found = _ANY_NUMBER.fullmatch(text.strip())
    return _decimal(found[0]) if found else None


def chosen_letter(text: str) -> str | None:
    """Return the capital letter of the option that an answer chooses; None if it chooses none, or several.

    In this order: the last "answer is B" or "Answer: (B)"; a letter at the very beginning ("B", "B) Rome",
    "Option B"), unless lines begin with several options; "(B)" if no other letter is in brackets. "A good idea"
    and "I think" choose nothing.

    >>> chosen_letter("A tempting one is (C), but the answer is (B)."), chosen_letter("A good idea.")
    ('B', None)
    """
    if stated := _STATED.findall(text):
        return "".join(stated[-1]).upper()
    first = _AT_BEGINNING.match(text)
    if first and len(set(_LISTED.findall(text))) < 2:
        return (first[1] or first[2]).upper()
    bracketed = set(_IN_BRACKETS.findall(text))
    return bracketed.pop() if len(bracketed) == 1 else None


def _decimal(number: str) -> Decimal:
    return Decimal(re.sub(r"[$€£¥₹,]", "", number).replace("\u2212", "-"))
