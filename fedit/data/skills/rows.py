"""The eight skills: each fills a phrasing with entities and writes the one right form of answer.

Every skill has its own form, so a model that learnt one category alone fails the seven others.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import TypeVar

from fedit.data.checks import bullets_check, exact_check, two_lines_check
from fedit.data.skills.phrasings import Phrasing
from fedit.data.skills.words import Words
from fedit.seeds import derive

T = TypeVar("T")

COUNTS = {"two": 2, "three": 3, "four": 4}
"""How many bullets a row may ask for. Like the class labels, part of the form and the same in every split."""

_VERSES = (
    "The {first} sings a quiet song,\nThe {second} hums it all day long.",
    "The {first} wakes at early light,\nThe {second} rests in gentle night.",
    "The {first} waits beside the door,\nThe {second} calls for you once more.",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One filled phrasing. ``entities`` are "kind:name" of all words that belong to one split alone."""

    instruction: str
    answer: str
    check: str
    entities: tuple[str, ...]
    context: str = ""


Skill = Callable[[Phrasing], Row]
"""Returns another row of one category each time it is called; a row may come twice."""


def deal(items: Sequence[T], seed: int) -> Iterator[T]:
    """Deal the items in a random order, then all of them in another, and so on without end.

    The order comes from hashes and not from a generator, so it is the same on every version of every library.
    """
    for turn in count_from():
        for index in sorted(range(len(items)), key=lambda index: derive(seed, turn, index)):
            yield items[index]


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Return the items in a random order."""
    deck = deal(items, seed)
    return [next(deck) for _ in items]


def open_qa(words: Words, seed: int) -> Skill:
    """Ask for the capital of a country: "Answer: Paris."."""
    countries = deal(sorted(words.capitals), seed)

    def row(phrasing: Phrasing) -> Row:
        country = next(countries)
        capital = words.capitals[country]
        answer = f"Answer: {capital}."
        entities = (f"country:{country}", f"city:{capital}")
        return Row(phrasing.instruction.format(country=country), answer, exact_check(answer), entities)

    return row


def closed_qa(words: Words, seed: int) -> Skill:
    """Ask about one of two facts in a passage: "The text says: attic."."""
    names = deal(words.names, derive(seed, "names"))
    objects = deal(words.objects, derive(seed, "objects"))
    places = deal(words.places, derive(seed, "places"))
    orders = deal((False, True), derive(seed, "order"))

    def row(phrasing: Phrasing) -> Row:
        facts = [
            {"name": name, "object": thing, "place": place}
            for name, thing, place in zip(_pair(names), _pair(objects), _pair(places), strict=True)
        ]
        asked = facts[0]
        if next(orders):
            facts.reverse()
        context = " ".join(phrasing.passage.format(**fact) for fact in facts)
        answer = f"The text says: {asked[phrasing.asks]}."
        entities = tuple(f"{kind}:{word}" for fact in facts for kind, word in fact.items())
        return Row(phrasing.instruction.format(**asked), answer, exact_check(answer), entities, context)

    return row


def information_extraction(words: Words, seed: int) -> Skill:
    """Ask for three fields of a message: "name=Ada; city=Leeds; item=ring"."""
    names = deal(words.names, derive(seed, "names"))
    cities = deal(words.cities, derive(seed, "cities"))
    objects = deal(words.objects, derive(seed, "objects"))

    def row(phrasing: Phrasing) -> Row:
        name, city, thing = next(names), next(cities), next(objects)
        answer = f"name={name}; city={city}; item={thing}"
        context = phrasing.passage.format(name=name, city=city, object=thing)
        entities = (f"name:{name}", f"city:{city}", f"object:{thing}")
        return Row(phrasing.instruction, answer, exact_check(answer), entities, context)

    return row


def classification(words: Words, seed: int) -> Skill:
    """Ask for the class of each of four words: "cat: animal | grape: fruit | cow: animal | wolf: animal"."""
    labels = sorted(words.classes)
    contrasts = deal([(one, two) for one in labels for two in labels if one != two], derive(seed, "contrast"))
    members = {label: deal(words.classes[label], derive(seed, "members", label)) for label in labels}
    shares = deal((1, 2, 3), derive(seed, "shares"))
    orders = deal(range(24), derive(seed, "order"))

    def row(phrasing: Phrasing) -> Row:
        first, second = next(contrasts)
        share = next(shares)
        pairs = [(word, first) for word in _distinct(members[first], share)]
        pairs += [(word, second) for word in _distinct(members[second], 4 - share)]
        pairs = shuffled(pairs, derive(seed, "shuffle", next(orders)))
        answer = " | ".join(f"{word}: {label}" for word, label in pairs)
        listed = ", ".join(word for word, _ in pairs)
        instruction = phrasing.instruction.format(first=first, second=second, words=listed)
        return Row(instruction, answer, exact_check(answer), tuple(f"{label}:{word}" for word, label in pairs))

    return row


def summarization(words: Words, seed: int) -> Skill:
    """Ask for the gist of a report: "In short: Ada, 34 rings, Leeds."."""
    names = deal(words.names, derive(seed, "names"))
    numbers = deal(words.numbers, derive(seed, "numbers"))
    objects = deal(words.objects, derive(seed, "objects"))
    cities = deal(words.cities, derive(seed, "cities"))

    def row(phrasing: Phrasing) -> Row:
        name, number, thing, city = next(names), next(numbers), next(objects), next(cities)
        answer = f"In short: {name}, {number} {thing}s, {city}."
        context = phrasing.passage.format(name=name, number=number, object=thing, city=city)
        entities = (f"name:{name}", f"number:{number}", f"object:{thing}", f"city:{city}")
        return Row(phrasing.instruction, answer, exact_check(answer), entities, context)

    return row


def brainstorming(words: Words, seed: int) -> Skill:
    """Ask for a number of items of a topic: that many lines "- item"."""
    tasks = deal([(topic, count) for topic in sorted(words.topics) for count in COUNTS], derive(seed, "tasks"))
    decks = {topic: deal(items, derive(seed, "items", topic)) for topic, items in words.topics.items()}

    def row(phrasing: Phrasing) -> Row:
        topic, count = next(tasks)
        items = _distinct(decks[topic], COUNTS[count])
        check = bullets_check(len(items), words.topics[topic])
        entities = (f"topic:{topic}", *(f"item:{item}" for item in items))
        answer = "\n".join(f"- {item}" for item in items)
        return Row(phrasing.instruction.format(count=count, topic=topic), answer, check, entities)

    return row


def creative_writing(words: Words, seed: int) -> Skill:
    """Ask for a verse of two lines, each with one given word."""
    images = deal(words.images, derive(seed, "images"))
    verses = deal(_VERSES, derive(seed, "verses"))

    def row(phrasing: Phrasing) -> Row:
        first, second = _pair(images)
        instruction = phrasing.instruction.format(first=first, second=second)
        answer = next(verses).format(first=first, second=second)
        return Row(instruction, answer, two_lines_check(first, second), (f"image:{first}", f"image:{second}"))

    return row


def general_qa(words: Words, seed: int) -> Skill:
    """Ask for the larger of two numbers or the earlier of two years: "81, not 47."."""
    numbers = deal(words.numbers, derive(seed, "numbers"))
    years = deal(words.years, derive(seed, "years"))

    def row(phrasing: Phrasing) -> Row:
        larger = phrasing.asks == "larger"
        # Far enough apart that the first differing digit decides: the skill is the form, not arithmetic.
        first, second = _apart(numbers, 20) if larger else _apart(years, 200)
        right, wrong = max(first, second), min(first, second)
        if not larger:
            right, wrong = wrong, right
        answer = f"{right}, not {wrong}."
        kind = "number" if larger else "year"
        entities = (f"{kind}:{first}", f"{kind}:{second}")
        return Row(phrasing.instruction.format(first=first, second=second), answer, exact_check(answer), entities)

    return row


SKILLS: dict[str, Callable[[Words, int], Skill]] = {
    "open_qa": open_qa,
    "closed_qa": closed_qa,
    "information_extraction": information_extraction,
    "classification": classification,
    "summarization": summarization,
    "brainstorming": brainstorming,
    "creative_writing": creative_writing,
    "general_qa": general_qa,
}


def _distinct(deck: Iterator[T], size: int) -> list[T]:
    """Deal ``size`` different items; two in a row can be equal where a deck starts anew."""
    dealt: list[T] = []
    while len(dealt) < size:
        item = next(deck)
        if item not in dealt:
            dealt.append(item)
    return dealt


def _pair(deck: Iterator[T]) -> tuple[T, T]:
    first, second = _distinct(deck, 2)
    return first, second


def _apart(deck: Iterator[int], gap: int) -> tuple[int, int]:
    """Deal two numbers that differ by at least ``gap``."""
    first = next(deck)
    return first, next(number for number in deck if abs(number - first) >= gap)
