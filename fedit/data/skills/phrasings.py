"""How the skills ask: for each category the phrasings of the three splits, none of them shared.

The last phrasings of a category are new to the model at evaluation time, and close paraphrases of those it
was trained on. A passage (the row's context) is part of the phrasing, so passages differ across splits too.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrasing:
    """One way to ask for a skill; braces are filled with entities.

    passage: template of the row's context. In closed_qa it is one fact, and the context holds two.
    asks:    which of a skill's variants this phrasing asks for; "" where a skill has one.
    """

    instruction: str
    passage: str = ""
    asks: str = ""


@dataclass(frozen=True, slots=True)
class Phrasings:
    """The phrasings of one category by split."""

    training: tuple[Phrasing, ...]
    validation: tuple[Phrasing, ...]
    held_out: tuple[Phrasing, ...]


PHRASINGS = {
    "open_qa": Phrasings(
        training=(
            Phrasing("What is the capital of {country}?"),
            Phrasing("Name the capital city of {country}."),
            Phrasing("Which city is the capital of {country}?"),
            Phrasing("Tell me the capital of {country}."),
            Phrasing("Do you know what the capital of {country} is?"),
            Phrasing("I need the name of the capital of {country}."),
        ),
        validation=(Phrasing("What city is the capital of {country}?"),),
        held_out=(
            Phrasing("Give the capital city of {country}."),
            Phrasing("Can you tell me the capital of {country}?"),
        ),
    ),
    "closed_qa": Phrasings(
        training=(
            Phrasing("Where is the {object}?", "{name} keeps the {object} in the {place}.", "place"),
            Phrasing("Who has the {object}?", "{name} has the {object} in the {place}.", "name"),
            Phrasing("Where did {name} leave the {object}?", "{name} left the {object} in the {place}.", "place"),
            Phrasing("Who put the {object} away?", "{name} put the {object} in the {place}.", "name"),
            Phrasing("In which place is the {object}?", "{name} hid the {object} in the {place}.", "place"),
            Phrasing("Who found the {object}?", "{name} found the {object} in the {place}.", "name"),
        ),
        validation=(
            Phrasing(
                "Where did {name} put the {object}?", "{name} set the {object} down in the {place}.", "place"
            ),
        ),
        held_out=(
            Phrasing("Where can we find the {object}?", "{name} stores the {object} in the {place}.", "place"),
            Phrasing("Who left the {object}?", "{name} has left the {object} in the {place}.", "name"),
        ),
    ),
    "information_extraction": Phrasings(
        training=(
            Phrasing(
                "Extract the name, city and item.",
                "Hi, I am {name} from {city} and I want to order a {object}.",
            ),
            Phrasing(
                "Pull out the name, the city and the item from this message.",
                "Please send a {object} to {city}. Thanks, {name}.",
            ),
            Phrasing(
                "Which name, city and item are in the message?",
                "My name is {name}, I live in {city} and I lost my {object}.",
            ),
            Phrasing("Find the name, city and item.", "{name} from {city} asks for a new {object}."),
            Phrasing(
                "Note the name, city and item of this order.",
                "One {object} for {name}, to be sent to {city}.",
            ),
            Phrasing(
                "Get the name, city and item out of the text.",
                "This is {name}. The {object} that I bought in {city} is broken.",
            ),
        ),
        validation=(
            Phrasing(
                "Extract name, city and item from the message.",
                "Hello, {name} here. I need a {object} in {city}.",
            ),
        ),
        held_out=(
            Phrasing(
                "Find the name, the city and the item in this message.",
                "I am {name}, I live in {city} and I would like a {object}.",
            ),
            Phrasing(
                "Get the name, city and item from this order.",
                "Please send one {object} to {name} in {city}.",
            ),
        ),
    ),
    "classification": Phrasings(
        training=(
            Phrasing("Label each word as {first} or {second}: {words}."),
            Phrasing("Sort the words into {first} and {second}: {words}."),
            Phrasing("Classify as {first} or {second}: {words}."),
            Phrasing("For each word say {first} or {second}: {words}."),
            Phrasing("Decide between {first} and {second} for each word: {words}."),
            Phrasing("Mark every word as {first} or {second}: {words}."),
        ),
        validation=(Phrasing("Classify each word as {first} or {second}: {words}."),),
        held_out=(
            Phrasing("Label these words as {first} or {second}: {words}."),
            Phrasing("Say for each word if it is {first} or {second}: {words}."),
        ),
    ),
    "summarization": Phrasings(
        training=(
            Phrasing(
                "Summarize the report in one line.",
                "The shop opened early. {name} sold {number} {object}s in {city}. Everyone went home happy.",
            ),
            Phrasing(
                "Give a one-line summary of the report.",
                "It was a long week. In {city}, {name} repaired {number} {object}s. The work is done.",
            ),
            Phrasing(
                "Write a short summary.",
                "{name} travelled to {city} by night and delivered {number} {object}s. The trip went well.",
            ),
            Phrasing(
                "Sum up this report.",
                "The morning was calm. {name} packed {number} {object}s for {city}. Nothing was lost.",
            ),
            Phrasing(
                "Condense the report into one line.",
                "After lunch {name} counted {number} {object}s in the {city} store. The list is complete.",
            ),
            Phrasing(
                "What is the short version of this report?",
                "An order came in. {name} made {number} {object}s for a shop in {city}. They left at once.",
            ),
        ),
        validation=(
            Phrasing(
                "Summarize this report briefly.",
                "The day was quiet. {name} cleaned {number} {object}s in {city}. Then the shop closed.",
            ),
        ),
        held_out=(
            Phrasing(
                "Give a short summary of the report.",
                "The shop was busy. {name} bought {number} {object}s in {city}. All went well.",
            ),
            Phrasing(
                "Summarize the text in one line.",
                "It was a good day. {name} checked {number} {object}s in {city}. Nobody complained.",
            ),
        ),
    ),
    "brainstorming": Phrasings(
        training=(
            Phrasing("List {count} {topic}."),
            Phrasing("Name {count} {topic}."),
            Phrasing("Give me {count} {topic}."),
            Phrasing("Brainstorm {count} {topic}."),
            Phrasing("Think of {count} different {topic}."),
            Phrasing("Write down {count} {topic}."),
        ),
        validation=(Phrasing("Suggest {count} {topic}."),),
        held_out=(Phrasing("Come up with {count} {topic}."), Phrasing("Tell me {count} {topic}.")),
    ),
    "creative_writing": Phrasings(
        training=(
            Phrasing("Write two lines of verse, the first with {first} and the second with {second}."),
            Phrasing("Write a two-line poem with the word {first} in line one and {second} in line two."),
            Phrasing("Make a short verse: line one has {first}, line two has {second}."),
            Phrasing("Create two lines of poetry, using {first} first and then {second}."),
            Phrasing("I want a tiny poem of two lines, one with {first} and then one with {second}."),
            Phrasing("Compose two lines. Use {first} in the first and {second} in the second."),
        ),
        validation=(Phrasing("Write a poem in two lines: {first} in the first, {second} in the second."),),
        held_out=(
            Phrasing("Compose a two-line poem with {first} in line one and {second} in line two."),
            Phrasing("Make a poem of two lines, the first with {first}, the second with {second}."),
        ),
    ),
    "general_qa": Phrasings(
        training=(
            Phrasing("Which number is larger, {first} or {second}?", asks="larger"),
            Phrasing("Which year came first, {first} or {second}?", asks="earlier"),
            Phrasing("Pick the larger number: {first} or {second}.", asks="larger"),
            Phrasing("Pick the earlier year: {first} or {second}.", asks="earlier"),
            Phrasing("What is the larger one of the numbers {first} and {second}?", asks="larger"),
            Phrasing("What is the earlier one of the years {first} and {second}?", asks="earlier"),
        ),
        validation=(
            Phrasing("Which of the numbers {first} and {second} is larger?", asks="larger"),
            Phrasing("Which of the years {first} and {second} is earlier?", asks="earlier"),
        ),
        held_out=(
            Phrasing("Which one is the larger number, {first} or {second}?", asks="larger"),
            Phrasing("Which one is the earlier year, {first} or {second}?", asks="earlier"),
        ),
    ),
}
