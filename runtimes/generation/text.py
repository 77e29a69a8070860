"""Text in, tokens out, and back: the tokenizer of an artifact directory, with the ``tokenizers`` package alone.

    directory ── tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json, config.json
        ▼
    TextTokenizer ── encode, decode, render_chat, eos_ids

Text of a running generation, token by token, is :mod:`llmc.runtimes.generation.stream_decoder`'s.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.base.json_record import read_object
from llmc.runtimes.generation.chat import Message, render_chat
from llmc.runtimes.generation.literal_markers import LiteralMarkers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ANSWER = "llmc-answer"


class TextTokenizer:
    """The tokenizer and chat template of one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        config: Mapping[str, Any] | None = None,
        chat_templates: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
    ) -> None:
        """Wrap a tokenizer; :meth:`from_directory` is the usual way.

        Args:
            tokenizer: A ``tokenizers.Tokenizer``; its padding and truncation are switched off.
            config: What ``tokenizer_config.json`` holds.
            chat_templates: Jinja sources by name; ``default`` is the one for plain chats.
            eos_ids: Tokens that end a text, as the model's configuration lists them.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        config = config or {}
        self._tokenizer = tokenizer
        self._chat_templates = dict(chat_templates or {})
        self.special_tokens = {name: text for name in _NAMED_TOKENS if (text := _token_text(config.get(name)))}
        self._special_ids = frozenset(
            token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special
        )
        self.eos_ids = self._all_eos_ids(eos_ids)
        ends = frozenset(self.eos_ids) & tokenizer.get_added_tokens_decoder().keys()
        # As transformers: such a tokenizer reads special tokens nowhere, in prompts that a template wrote neither.
        splits = tokenizer.encode_special_tokens = config.get("split_special_tokens") is True
        self._markers = LiteralMarkers(tokenizer, ends - self._special_ids if splits else self._special_ids | ends)

    @classmethod
    def from_directory(cls, directory: str | Path) -> TextTokenizer:
        """Load ``tokenizer.json`` and what stands beside it.

        Raises:
            ArtifactError: there is no ``tokenizer.json``, or a file is damaged.
        """
        from tokenizers import Tokenizer

        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ArtifactError(f"no tokenizer.json in {directory}: copy the model's tokenizer there")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise ArtifactError(f"{path} is not a tokenizer that this version can read: {error}") from error
        config = read_object(directory / "tokenizer_config.json")
        eos_ids = _eos_ids(read_object(directory / "generation_config.json"))
        return cls(
            tokenizer,
            config=config,
            chat_templates=_read_templates(directory, config),
            eos_ids=eos_ids or _eos_ids(read_object(directory / "config.json")),
        )

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, added ones included; the model's logits may be wider."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text in the vocabulary, or None."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any text.
            add_special_tokens: Add what a text begins and ends with, such as ``bos``, by the rule in
                ``tokenizer.json``. (Like transformers 5, this does not read ``add_bos_token`` of
                ``tokenizer_config.json`` where there is a ``tokenizer.json``.)
            parse_special: Special tokens that the text spells out are what they stand for, as in transformers (and
                text where ``tokenizer_config.json`` says ``split_special_tokens``); else they are text.
        """
        if not parse_special and self._markers.within(text):
            return self._markers.encode(text, add_special_tokens=add_special_tokens)
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids that the vocabulary does not have are left out."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def is_visible(self, token: int, *, skip_special_tokens: bool = True) -> bool:
        """Whether :meth:`decode` reads ``token`` at all."""
        if skip_special_tokens and token in self._special_ids:
            return False
        return self._tokenizer.id_to_token(token) is not None

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`render_chat` can be used."""
        return bool(self._chat_templates)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """Write a conversation as the model's prompt (see :func:`llmc.runtimes.generation.chat.render_chat`).

        Args:
            messages: The conversation.
            add_generation_prompt: End with the header of the assistant's turn.
            tools: JSON schemas of functions, for templates that list them.
            template: Name of one of the model's templates; None: ``tool_use`` for tools where there is one, else
                ``default``.
            variables: What the template may name besides.

        Raises:
            UsageError: the model has no such chat template, or the template refuses the messages.
        """
        name = template or ("tool_use" if tools and "tool_use" in self._chat_templates else "default")
        if name not in self._chat_templates:
            raise self._no_template(name)
        return render_chat(
            self._chat_templates[name],
            messages,
            variables={**self.special_tokens, **variables},
            add_generation_prompt=add_generation_prompt,
            tools=tools,
        )

    def _no_template(self, name: str) -> UsageError:
        if not self._chat_templates:
            return UsageError("this model has no chat template: give it a plain prompt")
        names = ", ".join(sorted(self._chat_templates))
        return UsageError(f"this model has no chat template {name!r}: name one of {names} with --chat-template")

    def encode_chat(self, messages: Sequence[Message], *, parse_special: bool = False, **options: Any) -> list[int]:
        """Token ids of :meth:`render_chat`'s text, with the same options and errors.

        Special tokens that a message spells out stay text, so that nobody ends a turn by writing how it ends; with
        ``parse_special`` they are what they stand for, as in transformers.
        """
        if parse_special or not self._markers.within(list(messages)):
            return self.encode(self.render_chat(messages, **options), add_special_tokens=False)
        bracket, shielded = self._markers.aside(messages)
        return self._markers.encode_rendered(self.render_chat(shielded, **options), bracket)

    def special_within(self, text: str) -> tuple[str, ...]:
        """The special tokens that a text spells out; each once."""
        return self._markers.within(text)

    def _all_eos_ids(self, eos_ids: Sequence[int]) -> tuple[int, ...]:
        """The model's end tokens and the one that ends an assistant's turn, ascending; else the tokenizer's."""
        found = {*eos_ids, *self._end_of_turn()}
        if not found and (token := self.token_id(self.special_tokens.get("eos_token", ""))) is not None:
            found.add(token)
        return tuple(sorted(found))

    def _end_of_turn(self) -> tuple[int, ...]:
        """The special token that the chat template writes after an assistant's answer, if there is one."""
        if "default" not in self._chat_templates:
            return ()
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
        try:
            rendered = self.render_chat(chat, add_generation_prompt=False)
        except UsageError as error:
            log.debug("no end-of-turn token read from the chat template: %s", error)
            return ()
        after = self.encode(rendered.rpartition(_ANSWER)[2].lstrip(), add_special_tokens=False)
        return tuple(after[:1]) if after and after[0] in self._special_ids else ()


def _token_text(value: object) -> str:
    """A special token of ``tokenizer_config.json``: its text, or an object with its text as ``content``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _eos_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """``eos_token_id`` of a configuration, which is absent, null, one id or a list of them."""
    value = config.get("eos_token_id")
    if isinstance(value, int):
        return (value,)
    return tuple(int(token) for token in value) if isinstance(value, list) else ()


def _read_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: those of the configuration; ``chat_template.jinja`` is the default one."""
    path, value = directory / "chat_template.jinja", config.get("chat_template")
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value or []
    try:
        templates = {str(entry["name"]): str(entry["template"]) for entry in entries}
        default = path.read_text(encoding="utf-8") if path.is_file() else None
    except (TypeError, KeyError, OSError, ValueError) as error:
        raise ArtifactError(
            f"the chat templates of {directory} cannot be read ({error}); copy the model's"
        ) from error
    return templates if default is None else {**templates, "default": default}
