"""ROUGE-L, and plain numbers about texts: diversity, repetition, length. None needs a model or a judge."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Return the runs of letters and digits of ``text``, lowercase.

    For ASCII text these are the tokens of Google's rouge-score without its stemmer, which drops all other letters.
    """
    return _WORD.findall(text.lower())


def lcs_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö, 2004, "Bit-parallel LCS-length computation revisited"): a whole row of the table is one
    integer with a bit for each item of ``first``, so a row costs len(first) / 64 machine words.
    """
    places: dict[Hashable, int] = {}
    for index, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << index
    every = (1 << len(first)) - 1
    row = every  # a zero where the table grows by one
    for item in second:
        met = row & places.get(item, 0)
        row = (row + met | row - met) & every
    return len(first) - row.bit_count()


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L F1 in [0, 1] over the two texts' words (Lin, 2004); 0 if either has none.

    The sentence-level measure of rouge-score (use_stemmer=False): precision is the longest common subsequence by
    the answer's words, recall by the reference's, F1 their harmonic mean.
    """
    answered, expected = words(answer), words(reference)
    common = lcs_length(answered, expected)
    # 2PR / (P + R), with the fractions cleared
    return 2 * common / (len(answered) + len(expected)) if common else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the different n-grams of words by all n-grams, over all ``texts`` (Li et al., arXiv:1510.03055).

    0 if no text has ``n`` words. More texts repeat more: compare only sets of like size.
    """
    grams = [gram for text in texts for gram in _grams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_rate(text: str) -> float:
    """Return the share of 4-grams of words that occurred earlier in ``text``; 0 if it has fewer than 4 words."""
    grams = _grams(words(text), 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Numbers about a set of answers.

    mean_words:   words an answer.
    empty:        share of answers without any character but whitespace.
    distinct_1:   `distinct_n` of single words, distinct_2 of pairs.
    repetition:   mean `repetition_rate`.
    length_ratio: words of all answers that have a reference by those of the references; None without any.
    rouge_l:      mean `rouge_l` of the answers that have a reference; None without any.
    """

    mean_words: float
    empty: float
    distinct_1: float
    distinct_2: float
    repetition: float
    length_ratio: float | None
    rouge_l: float | None


def text_statistics(answers: Sequence[str], references: Sequence[str | None]) -> TextStatistics:
    """Return what can be said about ``answers`` without a judge.

    references: one an answer; None, or text without a word, where there is none.

    Raises:
        ValueError: there is not one reference (or None) for each answer, or there are no answers.
    """
    if not answers:
        raise ValueError("there are no answers")
    pairs = [(a, r) for a, r in zip(answers, references, strict=True) if r is not None and words(r)]
    answered, expected = (sum(len(words(pair[side])) for pair in pairs) for side in (0, 1))
    return TextStatistics(
        mean_words=sum(len(words(answer)) for answer in answers) / len(answers),
        empty=sum(not answer.strip() for answer in answers) / len(answers),
        distinct_1=distinct_n(answers, 1),
        distinct_2=distinct_n(answers, 2),
        repetition=sum(map(repetition_rate, answers)) / len(answers),
        length_ratio=answered / expected if pairs else None,
        rouge_l=sum(rouge_l(a, r) for a, r in pairs) / len(pairs) if pairs else None,
    )


def _grams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
