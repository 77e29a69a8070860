"""Text from outside never becomes markup, and what is made is well-formed XML."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmc.runtimes.charts.markup import Markup, coordinate, element, escape, join


def test_an_element_with_attributes_and_children() -> None:
    made = element("p", "a < b", None, element("br"), class_="x", aria_label='say "no"', title=None, width=1.0)
    assert made == '<p class="x" aria-label="say &quot;no&quot;" width="1">a &lt; b<br/></p>'


def test_elements_without_children_close_as_html_wants_it() -> None:
    assert element("td") == "<td></td>"
    assert element("rect", x=1) == '<rect x="1"/>'
    assert element("rect", element("title", "t")) == "<rect><title>t</title></rect>"


def test_only_markup_is_left_as_it_is() -> None:
    assert join(["<b>", Markup("<b/>"), None]) == "&lt;b&gt;<b/>"


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\ud800", "\u202e", "\u2066", "\ufffe", "\r", "\x85"])
def test_harmful_characters_are_replaced(text: str) -> None:
    assert "\ufffd" in escape(text)
    assert not set(escape(text)) & set(text.rstrip("[31m"))


@given(st.text(st.characters()))
def test_any_text_comes_back_from_a_parser(text: str) -> None:
    tree = ElementTree.fromstring(element("p", text, title=text).encode())
    shown = escape(text)
    assert ElementTree.fromstring(f"<p>{shown}</p>").text == (tree.text or None)
    assert len(tree) == 0
    if text.isascii() and text.isprintable():
        assert (tree.text or "") == text == tree.get("title")


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (1.256, "1.26"), (0.0, "0"), (-0.001, "0"), (100.0, "100"), (-3.5, "-3.5")]
)
def test_coordinates(value: float, text: str) -> None:
    assert coordinate(value) == text
