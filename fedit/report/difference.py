"""What one answer says that another does not, word by word."""

import re
from difflib import SequenceMatcher

from fedit.report.document import Piece, ShownAnswer

_LEAST_COMMON = 0.4
"""Of two answers with less in common nearly every word would be marked, which shows nothing."""

_MOST_WORDS = 2_000
"""Longer answers are not compared: the time to do so grows with the product of their lengths."""


def compared(
    arm: str, text: str, base: str | None, right: bool | None = None, score: float | None = None
) -> ShownAnswer:
    """Return an answer with the words marked that the base's answer does not have; None: there is no base."""
    whole = (Piece(text),)
    if base is None:
        return ShownAnswer(arm, whole, right, score)
    mine, theirs = _words(text), _words(base)
    words, others = [word for _, word in mine], [word for _, word in theirs]
    if words == others:
        return ShownAnswer(arm, whole, right, score, "same")
    if len(mine) + len(theirs) > _MOST_WORDS:
        return ShownAnswer(arm, whole, right, score)
    matcher = SequenceMatcher(None, others, words, autojunk=False)
    if matcher.ratio() < _LEAST_COMMON:
        return ShownAnswer(arm, whole, right, score, "rewritten")
    pieces: list[Piece] = []
    for kind, _, _, start, end in matcher.get_opcodes():
        if end > start:
            spaces, first = mine[start]
            run = first + "".join(space + word for space, word in mine[start + 1 : end])
            pieces += [Piece(spaces), Piece(run, new=kind != "equal")]
    pieces.append(Piece(text[sum(len(piece.text) for piece in pieces) :]))
    return ShownAnswer(arm, tuple(piece for piece in pieces if piece.text), right, score, "changed")


def _words(text: str) -> list[tuple[str, str]]:
    """Return words and signs, each with the space before it; space at the end of the text is in none."""
    return re.findall(r"(\s*)(\w+|[^\w\s])", text)
