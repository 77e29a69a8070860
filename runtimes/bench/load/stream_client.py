"""One request over one connection, read as it comes.

In: an address and a whole HTTP request. Out: an :class:`~.http_stream.AnswerReader` that is fed. Each request has a
connection of its own, whose making is inside its clock: on this machine a tenth of a millisecond, and no request
waits for another one's connection. Bytes are stamped where the event loop hands them over.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.load.http_stream import AnswerReader, BrokenAnswerError


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host, port: Of its socket.
        path: Before ``/completions``, as ``/v1``.
        is_https: Whether it speaks TLS.
    """

    host: str
    port: int
    path: str
    is_https: bool = False

    @classmethod
    def parse(cls, url: str) -> Address:
        """Of ``http://127.0.0.1:8000/v1``.

        Raises:
            UsageError: it is no such URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"--url {url!r} is no URL ({error}); write it as http://127.0.0.1:8000/v1") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise UsageError(f"--url {url!r} is no server's URL; write it as http://127.0.0.1:8000/v1")
        is_https = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if is_https else 80), parts.path.rstrip("/"), is_https)

    def request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        """A whole HTTP request for a path below this one's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        fields = {"Host": f"{host}:{self.port}", "Connection": "close", "Accept-Encoding": "identity", **headers}
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))} if body else {}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {self.path}{path} HTTP/1.1\r\n{head}\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """Writes one request, feeds what comes."""

    def __init__(self, request: bytes, reader: AnswerReader, clock: Callable[[], float]) -> None:
        self._request, self._reader, self._clock = request, reader, clock
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send it."""
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer."""
        try:
            self._reader.feed(data, self._clock())
        except BrokenAnswerError as error:
            self._end(error)
        if self._reader.is_complete:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        """See whether it was all."""
        try:
            self._reader.end()
            self._end(None)
        except BrokenAnswerError as broken:
            self._end(error or broken)

    def _end(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


async def exchange(address: Address, request: bytes, reader: AnswerReader, clock: Callable[[], float]) -> None:
    """Send a request and feed the reader until the answer is complete.

    Raises:
        OSError: no connection, or it broke.
        BrokenAnswerError: the answer is none.
    """
    context = ssl.create_default_context() if address.is_https else None
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(
        lambda: _Connection(request, reader, clock), address.host, address.port, ssl=context
    )
    try:
        await connection.ended
    finally:
        transport.abort()
