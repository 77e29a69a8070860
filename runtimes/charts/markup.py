"""Elements of HTML and SVG as text that is well-formed XML too.

In: a tag, its attributes, its children. Out: :class:`Markup`. Text from outside is a plain ``str`` and is escaped;
only what this module made is markup already.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_EMPTY_TAGS = frozenset({"meta", "br", "hr", "rect", "line", "path", "circle", "polyline", "stop"})
_HARMFUL = frozenset({"Cc", "Cs", "Cf"})
_HARMLESS = frozenset("\n\t\u200d\u00ad")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | Markup | None
Value = str | float | None


def escape(text: str) -> str:
    """Text for an element or an attribute.

    Characters that XML does not allow (controls, lone surrogates, U+FFFE) or that turn a line's direction become
    U+FFFD, so that a name shows what it holds.
    """
    return "".join(map(_plain, text)).translate(_ENTITIES)


def _plain(character: str) -> str:
    if character in _HARMLESS or (character.isascii() and character.isprintable()):
        return character
    bad = unicodedata.category(character) in _HARMFUL or character in "\ufffe\uffff"
    return REPLACEMENT if bad else character


def element(tag: str, *children: Child, **attributes: Value) -> Markup:
    """One element; ``class_`` is ``class``, ``aria_label`` ``aria-label``; None leaves an attribute or child out."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY_TAGS and not any(children):
        return Markup(f"<{tag}{given}/>")
    return Markup(f"<{tag}{given}>{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other, escaped where they are no markup."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child or "") for child in children))


def _attribute(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else coordinate(value)


def coordinate(value: float) -> str:
    """A length with at most two decimals: ``12``, ``3.25``."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text
