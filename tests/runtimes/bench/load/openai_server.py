"""A server with OpenAI's interface that computes nothing: it answers when, and how, it is told to.

``python -m`` runs it as a process of its own, for measuring the generator: ``openai_server.py PORT FIRST_MS GAP_MS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Handler = asyncio.StreamWriter


@dataclass
class Behaviour:
    """How it answers.

    Attributes:
        first_s, gap_s: Before the first chunk, and between chunks.
        per_chunk: Tokens in a chunk.
        reasoning: So many of the first chunks are reasoning (chat).
        usage: Whether the last event counts tokens; ``cached`` of the prompt's are said to come from a cache.
        refuses: Fields for which it answers 400.
        status: Of its answers; a number of them, then 200.
        breaks_after: It closes the connection after so many chunks.
        error_after: It sends an error after so many chunks.
        silent: It sends no chunk that holds anything.
        hangs: It never answers.
        framing: How a body ends.
        stream: Whether it streams at all.
        split: It sends each byte of an event by itself.
        models: That it has.
    """

    first_s: float = 0.0
    gap_s: float = 0.0
    per_chunk: int = 1
    reasoning: int = 0
    usage: bool = True
    cached: int | None = None
    refuses: tuple[str, ...] = ()
    status: list[int] = field(default_factory=list)
    breaks_after: int | None = None
    error_after: int | None = None
    silent: bool = False
    hangs: bool = False
    framing: str = "chunked"
    stream: bool = True
    split: bool = False
    models: tuple[str, ...] = ("only",)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)


async def serve_one(behaviour: Behaviour, reader: asyncio.StreamReader, writer: Handler) -> None:
    """One connection, one request."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await _answer(behaviour, reader, writer)
    with contextlib.suppress(ConnectionError):
        writer.close()


async def _answer(behaviour: Behaviour, reader: asyncio.StreamReader, writer: Handler) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    behaviour.headers.append(headers)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, path, _ = first.split()
    if method == "GET":
        return _plain(writer, 200, {"data": [{"id": name} for name in behaviour.models]})
    request = json.loads(body)
    behaviour.requests.append(request)
    if behaviour.hangs:
        await asyncio.sleep(60)
    if refused := [name for name in behaviour.refuses if name in request]:
        return _plain(writer, 400, {"error": {"message": f"unknown field {refused[0]}"}})
    if behaviour.status and (status := behaviour.status.pop(0)) != 200:
        return _plain(writer, status, {"error": {"message": "too busy: come back"}})
    if not behaviour.stream:
        return _plain(writer, 200, {"choices": [{"text": "all at once"}]})
    await _stream(behaviour, request, path.endswith("/chat/completions"), writer)


def _plain(writer: Handler, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def _stream(behaviour: Behaviour, request: dict[str, Any], is_chat: bool, writer: Handler) -> None:
    chunked = behaviour.framing == "chunked"
    framing = "Transfer-Encoding: chunked\r\n" if chunked else ""
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n{framing}\r\n".encode())
    async for text in _events(behaviour, request, is_chat):
        data = f"data: {text}\n\n".encode()
        for piece in [data[at : at + 1] for at in range(len(data))] if behaviour.split else [data]:
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" if chunked else piece)
            await writer.drain()
    if chunked and behaviour.breaks_after is None:
        writer.write(b"0\r\n\r\n")


async def _events(behaviour: Behaviour, request: dict[str, Any], is_chat: bool) -> AsyncIterator[str]:
    tokens, sent = request["max_tokens"], 0
    if is_chat:
        yield json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None})
    await asyncio.sleep(behaviour.first_s)
    for number in range(-(-tokens // behaviour.per_chunk)):
        if number:
            await asyncio.sleep(behaviour.gap_s)
        if number == behaviour.error_after:
            yield json.dumps({"error": {"message": "out of memory"}})
            return
        if number == behaviour.breaks_after:
            return
        count = min(behaviour.per_chunk, tokens - sent)
        sent += count
        text = "" if behaviour.silent else " word" * count
        name = "reasoning_content" if number < behaviour.reasoning else "content"
        yield json.dumps({"choices": [{"delta": {name: text}} if is_chat else {"text": text}]})
    ending = {"finish_reason": "length"}
    yield json.dumps({"choices": [{"delta": {}, **ending} if is_chat else {"text": "", **ending}]})
    if behaviour.usage and request.get("stream_options", {}).get("include_usage"):
        details = {} if behaviour.cached is None else {"prompt_tokens_details": {"cached_tokens": behaviour.cached}}
        prompt = request.get("prompt") or request["messages"][-1]["content"]
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": tokens, **details}
        yield json.dumps({"choices": [], "usage": usage})
    yield "[DONE]"


@contextlib.contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The server in a thread; its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(lambda r, w: serve_one(behaviour, r, w), "127.0.0.1", 0, limit=1 << 24)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def main(port: int, first_ms: float, gap_ms: float) -> None:
    """The server alone."""
    behaviour = Behaviour(first_s=first_ms / 1e3, gap_s=gap_ms / 1e3)
    server = await asyncio.start_server(lambda r, w: serve_one(behaviour, r, w), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
