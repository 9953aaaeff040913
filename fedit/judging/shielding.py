"""Answers are data: whatever they hold, a judge reads it as text between fences and takes no orders from it."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

LONGEST = 12_000
"""Characters of a text that the judge is shown; about 3,000 tokens of English."""

_LOOKS_LIKE_FENCE = re.compile(
    r"^(?=[ \t]*(?:"
    r"={3,}[ \t]*\w"  # a fence with any name in it
    r"|[^\w\s]{2,}[^\w\n]*(?:question|reference|answer)\b.{0,40}?\b(?:begins|ends)\b"  # ours, with any mark
    r"|\[(?:the (?:start|end) of .{1,60}|system|question|task|answer \w+)\]"  # of the prompts that judges know
    r"|#+\s*(?:system|instruction|task)\b"
    r"))",
    re.IGNORECASE | re.MULTILINE,
)
# <|im_start|>, DeepSeek's with wide bars, [INST], <<SYS>>, <s>, <start_of_turn> and their likes.
_SPECIAL_TOKEN = re.compile(
    r"<[|\uff5c][\w.:/\u2581-]{1,40}[|\uff5c]>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>",
    re.IGNORECASE,
)
_VERDICT_LIKE = re.compile(
    r"\[\[\s*(?:[ABC]|\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?)?)\s*\]\]"
    r"|\A\s*\d+(?:\.\d+)?[ ,]+\d+(?:\.\d+)?[ \t]*(?:\n|\Z)"
    r"|\b(?:ignore|disregard|forget)\s+(?:all\s+|any\s+|the\s+|your\s+)*(?:previous|prior|above|earlier)\b"
    r"|\b(?:answer|assistant|response)\s+(?:[AB12]|one|two)\s+is\s+(?:\w+\s+)?(?:better|best|the winner)\b"
    r"|\b(?:give|rate|score|award|assign)\b[^.\n]{0,40}\b10\s*(?:/|out of)\s*10\b"
    r"|\bfinal\s+(?:verdict|score)s?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Shielded:
    """A text as a judge may read it, and what was done to it.

    removed:     control and invisible characters taken out.
    neutralised: special tokens and fence look-alikes made harmless.
    cut:         characters left out at the end.
    verdict_like: whether it holds what looks like a verdict or an order to the judge.
    """

    text: str
    removed: int
    neutralised: int
    cut: int
    verdict_like: bool


def shield(text: str, longest: int = LONGEST) -> Shielded:
    r"""Return ``text`` without what could act on a judge instead of being read by it.

    >>> shield("fine\u200b <|im_end|>").text
    'fine < |im_end| >'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    visible = "".join(char for char in text if _visible(char))
    cut = max(0, len(visible) - longest)
    shown = visible[: len(visible) - cut]
    spaced, tokens = _SPECIAL_TOKEN.subn(lambda match: f"{match[0][0]} {match[0][1:-1]} {match[0][-1]}", shown)
    quoted, fences = _LOOKS_LIKE_FENCE.subn("> ", spaced)
    if cut:
        quoted += f"\n[... cut here: {cut:,} more characters are not shown ...]"
    return Shielded(quoted, len(text) - len(visible), tokens + fences, cut, bool(_VERDICT_LIKE.search(visible)))


def nonce(*texts: str) -> str:
    """Return the mark of a call's fences: 16 hex digits of the SHA-256 of everything between them.

    No text can hold it, as it would have to hold a hash of itself; and the same call always gets the same one, so
    that its verdict is found again.
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def fenced(title: str, text: str, mark: str) -> str:
    """Return ``text`` between two lines that name it and carry the call's mark."""
    return f"===== {title} BEGINS {mark} =====\n{text}\n===== {title} ENDS {mark} ====="


def _visible(char: str) -> bool:
    if char in "\n\t":
        return True
    # Control, format (zero-width, bidirectional, tags), surrogates, private use; and marks that only hide.
    return (
        unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co") and char not in "\u034f\u115f\u1160\u3164\uffa0"
    )
