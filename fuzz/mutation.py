"""Broken inputs out of good ones: bytes, words of a format and JSON values, changed at random."""

import json
import random
from collections.abc import Sequence

LONGEST = 1 << 16
"""Bytes of an input; longer ones find little more and take their time."""

NUMBERS: tuple[object, ...] = (
    0,
    -1,
    1,
    2,
    255,
    2**31,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TEXTS = (
    "",
    " ",
    "\x00",
    "a",
    "\ud800",
    "\u202e",
    "é",
    "\U0001d518",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "~",
    "C:\\x",
    "a/b",
    "-",
    "*",
    "%s%n",
    "{0}",
    "{{7*7}}",
    "${x}",
    "__class__",
    "null",
    "true",
    "1e999",
    "0x10",
    "\u0663",
    "\uff11",
    "a" * 300,
    "a" * 20_000,
    "\n",
    "\r\n\t",
    "file.py:Class",
    "[[A]]",
    "10 1",
    "<|im_end|>",
    "\x1b[31m",
)
_INTERESTING = b"\x00\x01\x7f\x80\xff\n\r\t \"'\\/{}[]()<>:;,=#%&*-+.0129eE"
_MOST_REPEATS = 4000


class Mutator:
    """Makes broken inputs; the same seed makes the same ones.

    words: pieces of the format, which are put in as they are.
    """

    def __init__(self, kind: str, words: Sequence[bytes], seed: int) -> None:
        self._kind = kind
        self._words = [*words, *(text.encode("utf-8", "surrogatepass") for text in TEXTS)]
        self._random = random.Random(seed)

    def broken(self, pool: Sequence[bytes]) -> bytes:
        """Return an input made of one or two of ``pool``."""
        data = self._random.choice(pool)
        if self._kind in ("json", "jsonl") and self._random.random() < 0.7:
            changed = self._values_changed(data)
            if changed is not None:
                return changed[:LONGEST]
        for _ in range(self._random.choice((1, 1, 2, 3, 6))):
            data = self._bytes_changed(data, pool)[:LONGEST]
        return data

    # --- bytes ---

    def _bytes_changed(self, data: bytes, pool: Sequence[bytes]) -> bytes:
        pick = self._random
        start, end = sorted((self._place(data), self._place(data)))
        end = min(end, start + 64) if pick.random() < 0.8 else end
        match pick.randrange(9):
            case 0 if data:
                return data[:start] + bytes([data[start - 1] ^ (1 << pick.randrange(8))]) + data[start + 1 :]
            case 1:
                return data[:start] + bytes([pick.choice(_INTERESTING)]) + data[start + 1 :]
            case 2:
                return data[:start] + data[end:]
            case 3:
                times = min(pick.choice((1, 2, 8, 100, _MOST_REPEATS)), LONGEST // max(end - start, 1))
                return data[:end] + data[start:end] * times + data[end:]
            case 4:
                other = pick.choice(pool)
                return data[:start] + other[self._place(other) :]
            case 5:
                return data[:start]
            case 6:
                return data[:start] + pick.randbytes(pick.choice((1, 2, 4, 8, 40))) + data[end:]
            case 7:
                return data[:start] + _number(pick).encode() + data[end:]
            case _:
                return data[:start] + pick.choice(self._words) * pick.choice((1, 1, 1, 2, 70)) + data[end:]

    def _place(self, data: bytes) -> int:
        return self._random.randrange(len(data) + 1)

    # --- JSON values ---

    def _values_changed(self, data: bytes) -> bytes | None:
        """Return the JSON text of a changed value, or None where there is none to change."""
        lines = data.split(b"\n") if self._kind == "jsonl" else [data]
        place = self._random.randrange(len(lines))
        try:
            value = json.loads(lines[place])
        except (ValueError, RecursionError):
            return None
        for _ in range(self._random.choice((1, 1, 2, 4))):
            value = self._changed(value)
        try:
            lines[place] = json.dumps(value, ensure_ascii=self._random.random() < 0.5).encode(
                "utf-8", "surrogatepass"
            )
        except (ValueError, RecursionError):  # numbers too long to write
            return None
        return b"\n".join(lines)

    def _changed(self, value: object, depth: int = 0) -> object:
        """Return ``value`` with one thing in it changed."""
        pick = self._random
        inner = isinstance(value, dict | list) and len(value) > 0
        if depth > 20 or not inner or pick.random() < 0.25:
            return self._other(value)
        if isinstance(value, dict):
            key = pick.choice(list(value))
            match pick.randrange(6):
                case 0:
                    return {name: own for name, own in value.items() if name != key}
                case 1:
                    return {**value, pick.choice((*TEXTS, *map(str, value))): self._any()}
                case _:
                    return {**value, key: self._changed(value[key], depth + 1)}
        assert isinstance(value, list)
        index = pick.randrange(len(value))
        match pick.randrange(6):
            case 0:
                return value[:index] + value[index + 1 :]
            case 1:
                return value[:index] + [value[index]] * pick.choice((2, 3, 300)) + value[index:]
            case _:
                return [*value[:index], self._changed(value[index], depth + 1), *value[index + 1 :]]

    def _other(self, value: object) -> object:
        pick = self._random
        match pick.randrange(6):
            case 0:
                return [value]
            case 1:
                return {pick.choice(TEXTS): value}
            case 2 if isinstance(value, str) and value:
                place = pick.randrange(len(value))
                return value[:place] + pick.choice(TEXTS) + value[place:]
            case 3 if isinstance(value, int | float):
                return pick.choice(NUMBERS)
            case 4:
                deep: object = value
                for _ in range(pick.choice((5, 70, 400))):
                    deep = [deep] if pick.random() < 0.5 else {"a": deep}
                return deep
            case _:
                return self._any()

    def _any(self) -> object:
        pick = self._random
        return pick.choice((None, True, False, [], {}, pick.choice(NUMBERS), pick.choice(TEXTS)))


def _number(pick: random.Random) -> str:
    number = pick.choice(NUMBERS)
    return str(number) if number != 10**400 else "1" + "0" * 400
