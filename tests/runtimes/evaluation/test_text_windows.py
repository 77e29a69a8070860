"""Texts in windows: where they are cut, and what begins each."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation.text_windows import leading_token, text_windows
from llmc.runtimes.generation.text import TextTokenizer

WORDS = [f"w{number}" for number in range(40)]


def tokenizer(template: str | None = None) -> TextTokenizer:
    """Words are tokens; a template may put ``<s>`` (40) or ``</s>`` (41) around them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate([*WORDS, "<s>", "</s>", "a", "?"])}
    made: Any = Tokenizer(models.WordLevel(ids, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<s>", "</s>"])
    if template is not None:
        made.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
        )
    return TextTokenizer(made)


TEXT = " ".join(WORDS[:22])


def test_a_text_without_a_leading_token_is_cut_as_it_is() -> None:
    windows = text_windows(tokenizer(), [TEXT], 5)
    assert windows.tolist() == [list(range(start, start + 5)) for start in (0, 5, 10, 15)]


def test_a_leading_token_begins_the_text_and_takes_each_windows_first_place() -> None:
    """As llama-perplexity has it: the text moves by one token once, and what a window begins with is overwritten."""
    windows = text_windows(tokenizer("<s> $A </s>"), [TEXT], 5)
    assert windows.tolist() == [[40, *range(start, start + 4)] for start in (0, 5, 10, 15)]


@pytest.mark.parametrize(
    ("template", "token"), [(None, None), ("<s> $A", 40), ("<s> $A </s>", 40), ("$A </s>", None), ("$A", None)]
)
def test_what_begins_a_text(template: str | None, token: int | None) -> None:
    assert leading_token(tokenizer(template)) == token


def test_documents_are_one_text() -> None:
    assert text_windows(tokenizer(), ["w1 w2 w3", "w4 w5"], 4).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(("tokens", "count"), [(None, 4), (22, 4), (19, 3), (5, 1)])
def test_no_more_tokens_than_asked_for(tokens: int | None, count: int) -> None:
    assert len(text_windows(tokenizer(), [TEXT], 5, tokens=tokens)) == count


def test_what_is_too_short() -> None:
    with pytest.raises(UsageError, match="22 tokens make no window of 23"):
        text_windows(tokenizer(), [TEXT], 23)
    with pytest.raises(UsageError, match="4 at least"):
        text_windows(tokenizer(), [TEXT], 3)
