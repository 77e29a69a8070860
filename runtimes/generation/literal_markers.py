"""Special tokens that a user's text spells out stay text: ``<|im_end|>`` typed by a person ends no turn.

A tokenizer knows a special token by its text, wherever that comes from. So there is a second one, in which the same
tokens with the same ids are spelled otherwise, with a character that no text holds (here ``#``):

    messages            He wrote <|im_end|> here.                                   what was typed is put aside,
    with what was typed He wrote #-1# here.                                         the template writes its own,
    rendered            <|im_start|>user\\nHe wrote #-1# here.<|im_end|>             these get the other spelling,
    in the second's     #0#user\\nHe wrote <|im_end|> here.#1#                       and what was typed comes back
    spelling

All else of the tokenizer is the same, so the rest of the text has the tokens that it would have without the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BRACKETS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode's noncharacters, which are no part of any text that is passed on."""


class LiteralMarkers:
    """The special tokens of a tokenizer, and ways around them.

    Args:
        tokenizer: It is not changed.
        ids: Of the special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._texts = tuple(text for token in sorted(ids) if (text := tokenizer.id_to_token(token)))
        self._respelled: dict[str, Tokenizer] = {}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # Of those that begin at one place the longest, as the tokenizer does.
        ordered = sorted(filter(None, self._texts), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def within(self, value: object) -> tuple[str, ...]:
        """The special tokens that a text, or any text inside lists and objects, spells out; each once."""
        if isinstance(value, str):
            return tuple(dict.fromkeys(self._pattern.findall(value)))
        return tuple(dict.fromkeys(text for item in _items(value) for text in self.within(item)))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``, of which all is text; ``add_special_tokens``: with what texts begin and end with."""
        tokenizer = self._second(_bracket(text))
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def aside(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
        """A bracket, and the messages with what was typed put aside in it; roles stay."""
        bracket = _bracket(messages)
        return bracket, [
            {key: value if key == "role" else self._shield(value, bracket) for key, value in message.items()}
            for message in messages
        ]

    def encode_rendered(self, rendered: str, bracket: str) -> list[int]:
        """Token ids of a prompt rendered of messages :meth:`aside`: its own special tokens, and what was typed."""
        marked = self._pattern.sub(lambda match: self._spelled(match[0], bracket), rendered)
        text = re.sub(f"{bracket}-([0-9]+){bracket}", lambda match: self._texts[int(match[1])], marked)
        return list(self._second(bracket).encode(text, add_special_tokens=False).ids)

    def _shield(self, value: Any, bracket: str) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda match: f"{bracket}-{self._texts.index(match[0])}{bracket}", value)
        if isinstance(value, Mapping):
            return {key: self._shield(item, bracket) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._shield(item, bracket) for item in value]
        return value

    def _spelled(self, text: str, bracket: str) -> str:
        return f"{bracket}{self._texts.index(text)}{bracket}"

    def _second(self, bracket: str) -> Tokenizer:
        """The tokenizer with the other spelling, made when it is first needed."""
        if bracket not in self._respelled:
            from tokenizers import Tokenizer

            names = {text: self._spelled(text, bracket) for text in self._texts}
            content = json.loads(self._tokenizer.to_str())
            for token in content["added_tokens"]:
                token["content"] = names.get(token["content"], token["content"])
            _respell_model(content["model"], names)
            self._respelled[bracket] = Tokenizer.from_str(json.dumps(content))
        return self._respelled[bracket]


def _respell_model(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename in the vocabulary too, of which a piece may be found without being an added token."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        pairs = ((pair, pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"])
        model["merges"] = [pair for pair, parts in pairs if not names.keys() & {*parts, "".join(parts)}]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _bracket(value: object) -> str:
    """A character that is nowhere in ``value``, so that nobody can write the other spelling."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    free = next((character for character in _BRACKETS if character not in text), None)
    if free is None:
        raise UsageError("the text holds all of Unicode's noncharacters U+FDD0 to U+FDEF; leave one out")
    return free


def _items(value: object) -> Sequence[object]:
    if isinstance(value, Mapping):
        return [item for key, item in value.items() if key != "role"]
    return value if isinstance(value, list | tuple) else ()
