"""A server's answer, byte for byte as it comes: HTTP/1.1 in, events with the moment of each out.

In: bytes and when they came. Out: :class:`AnswerReader`: the status, and the ``data:`` of each server-sent event
(WHATWG HTML, section 9.2) or the body. It knows no socket and no clock, so that it is tested without either, and does
as little as possible for each piece: what is inside the events is read once the answer is complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DONE = "[DONE]"
_MOST_HEAD = 1 << 16


class BrokenAnswerError(Exception):
    """What a server sends is no HTTP, or ends too soon."""


@dataclass
class AnswerReader:
    """The state of one answer.

    Attributes:
        status: Of HTTP; 0 before it is known.
        events: Moment and data of each event.
        body: Of an answer that is no stream of events.
        is_complete: Nothing more belongs to it.
    """

    status: int = 0
    events: list[tuple[float, str]] = field(default_factory=list)
    body: bytes = b""
    is_complete: bool = False
    _headers: dict[str, str] = field(default_factory=dict)
    _raw: bytes = b""
    _line: bytes = b""
    _data: list[str] = field(default_factory=list)
    _stage: Literal["head", "size", "chunk", "chunk end", "trailer", "length", "all"] = "head"
    _left: int = 0

    @property
    def is_stream(self) -> bool:
        """Whether it is one of events."""
        return self.status == 200 and self._headers.get("content-type", "").startswith("text/event-stream")

    @property
    def is_done(self) -> bool:
        """Whether the events say that they are all."""
        return bool(self.events) and self.events[-1][1] == DONE

    def feed(self, data: bytes, moment: float) -> None:
        """Take what came.

        Raises:
            BrokenAnswerError: it is no HTTP.
        """
        self._raw += data
        while not self.is_complete and self._advance(moment):
            pass

    def end(self) -> None:
        """The server has closed the connection.

        Raises:
            BrokenAnswerError: something was to follow.
        """
        if self.is_complete or self._stage == "all" or self.is_done:
            self.is_complete = True
            return
        raise BrokenAnswerError("the connection was closed before the answer was complete")

    def _advance(self, moment: float) -> bool:
        """Read one part, if all of it is there."""
        if self._stage in ("chunk", "length"):
            taken, self._raw = self._raw[: self._left], self._raw[self._left :]
            self._left -= len(taken)
            self._take(taken, moment)
            if not self._left:
                self.is_complete = self._stage == "length"
                self._stage = "chunk end"
            return bool(taken)
        if self._stage == "all":
            taken, self._raw = self._raw, b""
            self._take(taken, moment)
            return False
        if self._stage == "head":
            return self._read_head()
        line, end, rest = self._raw.partition(b"\r\n")
        if not end:
            return False
        self._raw = rest
        self._read_frame(line)
        return True

    def _read_frame(self, line: bytes) -> None:
        """A line between chunks."""
        if self._stage == "chunk end":
            self._stage = "size"
        elif self._stage == "trailer":
            self.is_complete = not line
        else:
            try:
                self._left = int(line.partition(b";")[0], 16)
            except ValueError as error:
                raise BrokenAnswerError(f"a chunk's size is {line[:20]!r}") from error
            self._stage = "chunk" if self._left else "trailer"

    def _read_head(self) -> bool:
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end:
            if len(self._raw) > _MOST_HEAD:
                raise BrokenAnswerError("its head does not end")
            return False
        self._raw = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split()
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise BrokenAnswerError(f"it begins with {first[:40]!r}, which is no HTTP/1.1")
        if (status := int(words[1])) < 200:  # an interim answer: the one that counts follows
            return True
        self.status = status
        self._headers = {
            name.strip().lower(): value.strip() for name, _, value in (it.partition(":") for it in lines)
        }
        if "chunked" in self._headers.get("transfer-encoding", "").lower():
            self._stage = "size"
        elif (length := self._headers.get("content-length", "")).isdigit():
            self._stage, self._left = "length", int(length)
            self.is_complete = not self._left
        else:
            self._stage = "all"
        return True

    def _take(self, data: bytes, moment: float) -> None:
        """A part of the body."""
        if not self.is_stream:
            self.body += data
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            text = line.rstrip(b"\r")
            if text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" ").decode("utf-8", "replace"))
            elif not text and self._data:
                self.events.append((moment, "\n".join(self._data)))
                self._data = []
