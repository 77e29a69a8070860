"""Tokens of a running generation in, text out as early as it is certain.

token ─▶ window of the last few tokens ─▶ whole characters ─▶ nothing that may begin a stop string ─▶ text
"""

from __future__ import annotations

from collections.abc import Sequence

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.request import Request
from llmc.runtimes.generation.text import TextTokenizer

_REPLACEMENT = "\ufffd"
_MAX_PENDING = 16  # a character has at most 4 bytes, so this many tokens without a whole one are not text


class StreamDecoder:
    """Text of one row, token by token, as early as it is certain.

    Detokenizing one token by itself is wrong: a character may be spread over tokens, and a word's leading space may
    depend on what stands before. So the last tokens that gave text are decoded again together with the new ones, and
    what goes beyond their text is given out (the technique of text-generation-inference's prefix and read offsets).
    The window is a few tokens long whatever the length of the text.

    Concatenating everything that :meth:`push` and :meth:`finish` return gives ``decode`` of all the tokens, cut
    before the first stop string. (Exception: byte-fallback tokens that form no text. There ``decode`` takes back
    characters that it had already shown, and a stream cannot.)
    """

    def __init__(
        self, tokenizer: TextTokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True
    ) -> None:
        """Begin a row.

        Args:
            tokenizer: Decodes.
            stop: Strings that end the text; they are not given out. Of several, the one complete first counts, and
                of those complete at once, the longest.
            skip_special_tokens: Leave special tokens out.

        Raises:
            UsageError: a stop string is empty.
        """
        if not all(stop):
            raise UsageError("a stop string is empty: it must hold at least one character")
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._skip = skip_special_tokens
        self._window: list[int] = []
        self._context = 0  # tokens of the window whose text has been taken out whole
        self._taken = 0  # characters of the window's text that have been taken out
        self._held = ""  # text taken out of the window that may be the start of a stop string
        self.stop_string: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stop_string is not None

    def take(self, request: Request) -> str:
        """The text that a request's newest token makes certain, no end token's; the last gives all that is left."""
        text = "" if request.finished == "eos" else self.push(request.tokens[-1])
        return text if request.finished is None else text + self.finish()

    def push(self, token: int) -> str:
        """Append a token; return the text that has become certain, often empty."""
        if self.stopped or not self._tokenizer.is_visible(token, skip_special_tokens=self._skip):
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):  # the last token may end within a character
            whole = max(len(text.rstrip(_REPLACEMENT)), self._taken)
            fresh, self._taken = text[self._taken : whole], whole
            if len(self._window) - self._context > _MAX_PENDING:
                fresh += self._split(text)
            return self._release(fresh)
        fresh = text[self._taken :]
        self._slide()
        return self._release(fresh)

    def finish(self) -> str:
        """End the text; return what was held back."""
        text = self._release(self._decode(self._window)[self._taken :]) if self._window else ""
        text += self._held
        self._held = ""
        self._window.clear()
        self._context = self._taken = 0
        return text

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip)

    def _slide(self) -> None:
        """Keep as context only the tokens that have just given text."""
        self._window = self._window[self._context :]
        self._context, self._taken = len(self._window), len(self._decode(self._window))

    def _split(self, text: str) -> str:
        """Take out undecodable text up to the last place where cutting the tokens does not change it."""
        for cut in range(len(self._window) - 1, self._context, -1):
            head, tail = self._decode(self._window[:cut]), self._decode(self._window[cut:])
            if head + tail == text:
                fresh = head[self._taken :]
                self._window, self._context, self._taken = self._window[cut:], 0, max(0, self._taken - len(head))
                return fresh
        return ""

    def _release(self, fresh: str) -> str:
        """Pass text on, but for a stop string and what may be the start of one."""
        text = self._held + fresh
        hits = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if hits:
            _, start, self.stop_string = min(hits)
            self._held = ""
            self._window.clear()
            return text[:start]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, and not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
