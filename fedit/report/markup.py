"""HTML and SVG by construction: text is escaped wherever it is put in, and what cannot be seen is shown."""

import html
import math
import re

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # bidirectional and zero-width ones
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"  # annotations, no characters, tags
)
"""What changes how text around it is shown, or could hide in it. Joiners may stay: some scripts need them."""

_SHAPES = frozenset({"circle", "line", "path", "rect"})
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta", "wbr"})


class Markup(str):
    """Text that is HTML or SVG already. Every other text is escaped when it is put into an element."""

    __slots__ = ()


def visible(text: str) -> str:
    r"""Return ``text`` with every control and invisible character shown as a symbol or as its number.

    >>> visible("a\x00b\u202ec")
    'a␀b⟨U+202E⟩c'
    """
    return _INVISIBLE.sub(_symbol, text.replace("\r\n", "\n"))


def escape(text: str) -> Markup:
    """Return ``text`` as it may stand in an element or a quoted attribute."""
    return text if isinstance(text, Markup) else Markup(html.escape(visible(text), quote=True))


def element(name: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """Return an element. Underscores of attribute names become hyphens, ``class_`` is "class".

    True is an attribute without a value; None and False leave it out. Children that are no `Markup` are escaped.
    """
    opening = name + "".join(
        _attribute(key, value) for key, value in attributes.items() if not (value is None or value is False)
    )
    if name in _VOID:
        return Markup(f"<{opening}>")
    if name in _SHAPES and not children:
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(*children)}</{name}>")


def join(*parts: str, between: str = "") -> Markup:
    """Return the parts one after the other, those that are no `Markup` escaped."""
    return Markup(between.join(escape(part) for part in parts))


def number(value: float) -> str:
    """Return a coordinate in pixels, with no more digits than can be seen.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(value):
        raise ValueError("a coordinate must be finite.")
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = value if isinstance(value, str) else number(value)
    return f' {name}="{escape(text)}"'


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
