"""An OpenAI-compatible server as the target of a load.

In: a URL and a model's name. Out: :class:`ServerTarget`. Answers are streamed. Tokens are those that the server
counts (``usage``), or a tokenizer, or, with a warning, chunks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from llmc.compiler.base.errors import EngineError, UsageError, first_line
from llmc.runtimes.bench.load.answer import Answer, error_text, read_answer
from llmc.runtimes.bench.load.course import Course
from llmc.runtimes.bench.load.http_stream import AnswerReader, BrokenAnswerError
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.server_loop import ServerLoop
from llmc.runtimes.bench.load.stream_client import Address, exchange
from llmc.runtimes.bench.load.target import Exchange, Traffic, Watch
from llmc.runtimes.bench.load.words import RandomText
from llmc.runtimes.bench.load.workload import Work, Workload
from llmc.runtimes.bench.results import SubjectRecord
from llmc.runtimes.generation.text import TextTokenizer

Api: TypeAlias = Literal["completions", "chat"]
PATHS: Mapping[Api, str] = {"completions": "/completions", "chat": "/chat/completions"}
_OPTIONAL = ("ignore_eos", "stream_options", "seed")
"""Fields that a server may refuse, in the order in which it is asked without them."""
_TRY_TIMEOUT_S, _TRY_TOKENS = 300.0, 8
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(eq=False)
class ServerTarget:
    """A server that is measured.

    Attributes:
        url, label: Where it is, and what it is called.
        model: That is asked for; empty: the only one that it has.
        api: Which of its interfaces; None: chat for prompts that are messages, else completions.
        tokenizer: Of its model.
        key: Its API key; empty: none is sent.
        body: Further fields of each request.
    """

    url: str
    label: str
    model: str = ""
    api: Api | None = None
    tokenizer: TextTokenizer | None = None
    key: str = field(default="", repr=False)
    body: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    joins: bool | None = None
    _options: LoadOptions = field(default_factory=LoadOptions)
    _left_out: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._address = Address.parse(self.url)
        self._texts = RandomText(self.tokenizer)

    def subject(self) -> SubjectRecord:
        """What is known from outside."""
        info = {"runtime": f"OpenAI {self.api}", "model": self.model}
        return SubjectRecord(self.label, self.url, info, None, None)

    def check(self) -> None:
        """See that somebody answers there, whatever it is."""
        self._read("GET", "/models", b"")

    def open(self, options: LoadOptions, workload: Workload, works: Sequence[Work]) -> tuple[str, ...]:
        """Ask once, and find out which of the optional fields it refuses."""
        self._options = options
        self.model = self.model or self._only_model()
        first = workload(0, 0)
        if any(not work.pieces and not isinstance(work.prompt, str) for work in works):
            if self.api == "completions":
                raise UsageError("prompts that are messages need --api chat")
            self.api = "chat"
        self.api = self.api or "completions"
        answer = self._try(Work(first.prompt, min(_TRY_TOKENS, first.output)))
        warnings = [f"{self.label} does not take {name}; it was left out" for name in sorted(self._left_out)]
        if answer.output_tokens is None:
            counted = (
                "the tokenizer counts them" if self.tokenizer else "chunks are counted; --tokenizer DIR counts tokens"
            )
            warnings.append(f"{self.label} does not say how many tokens it wrote: {counted}")
        if self._address.host not in _LOCAL:
            warnings.append(f"{self._address.host} is another machine: the network is inside all latencies")
        return tuple(warnings)

    def _only_model(self) -> str:
        status, value = self._ask("GET", "/models", b"")
        names = [it.get("id") for it in value.get("data", [])] if isinstance(value, dict) else []
        if status != 200 or len(names) != 1 or not isinstance(names[0], str):
            known = f" of {', '.join(map(str, names))}" if names else ""
            raise UsageError(f"{self.url} does not have one model alone; name one{known} with --model")
        return names[0]

    def _try(self, work: Work) -> Answer:
        """The first answer, without the fields that the server refuses."""
        while True:
            reader = self._read("POST", PATHS[self.api or "completions"], self._fields(work))
            refusable = [name for name in _OPTIONAL if name not in self._left_out]
            if reader.status not in (400, 422) or not refusable:
                break
            named = [name for name in refusable if name.encode() in reader.body]
            self._left_out.add((named or refusable)[0])
        answer = read_answer(reader.events)
        if problem := _problem(reader, answer):
            raise EngineError(f"{self.label}, asked once before anything is measured: {problem}")
        return answer

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        reader = self._read(method, path, body)
        try:
            return reader.status, json.loads(reader.body)
        except ValueError:
            return reader.status, None

    def _read(self, method: str, path: str, body: bytes) -> AnswerReader:
        """One answer, waited for."""
        reader = AnswerReader()

        async def ask() -> None:
            async with asyncio.timeout(_TRY_TIMEOUT_S):
                await exchange(self._address, self._request(method, path, body), reader, lambda: 0.0)

        try:
            asyncio.run(ask())
        except (OSError, BrokenAnswerError) as error:  # a TimeoutError is an OSError
            why = first_line(error) if str(error) else f"no answer in {_TRY_TIMEOUT_S:.0f} s"
            raise EngineError(f"{self.url} does not answer ({why}); start the server, or name its URL") from error
        return reader

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        return self._address.request(method, path, body, {"Authorization": f"Bearer {self.key}"} if self.key else {})

    def _fields(self, work: Work) -> bytes:
        """The body of a request."""
        prompt = self._texts.of(work.pieces) if work.pieces else work.prompt
        fields: dict[str, Any] = {"model": self.model, "max_tokens": work.output, "stream": True}
        fields |= {"temperature": self._options.temperature, "seed": self._options.seed}
        fields["stream_options"] = {"include_usage": True}
        if self._options.ignore_eos:
            fields["ignore_eos"] = True
        if self.api == "chat":
            fields["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        else:
            fields["prompt"] = prompt
        kept = {name: value for name, value in fields.items() if name not in self._left_out}
        return json.dumps(kept | dict(self.body)).encode()

    def prepare(self, work: Work) -> bytes:
        """The whole HTTP request."""
        return self._request("POST", PATHS[self.api or "completions"], self._fields(work))

    def run(self, course: Course[bytes], watch: Watch) -> Traffic:
        """Send a course's requests."""
        return asyncio.run(ServerLoop(self._send, self._options.timeout).run(course, watch))

    async def _send(self, one: Exchange, clock: Callable[[], float]) -> None:
        """One request to its end; whatever it comes to is written down."""
        reader, problem = AnswerReader(), ""
        try:
            await exchange(self._address, one.job.payload, reader, clock)
        except BrokenAnswerError as error:
            problem = f"broken answer: {error}"
        except OSError as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
        finally:  # cancelled: what had come is kept
            answer = read_answer(reader.events)
            self._write_down(one, answer)
        if problem := problem or _problem(reader, answer):
            one.fail(problem, clock())
        else:
            one.outcome, one.ended_s = "ok", clock()

    def _write_down(self, one: Exchange, answer: Answer) -> None:
        one.chunk_s, one.reasoning_chunks, one.finish = answer.chunk_s, answer.reasoning_chunks, answer.finish
        one.prompt_tokens, one.cached_tokens = answer.prompt_tokens, answer.cached_tokens
        if answer.output_tokens is not None:
            one.output_tokens, one.counted_by = answer.output_tokens, "usage"
        elif self.tokenizer is not None:
            one.output_tokens = len(self.tokenizer.encode(answer.text, add_special_tokens=False))
            one.counted_by = "tokenizer"
        else:
            one.output_tokens, one.counted_by = len(answer.chunk_s), "chunks"

    def close(self) -> None:
        """Nothing is held open."""


def _problem(reader: AnswerReader, answer: Answer) -> str:
    """What is wrong with a complete answer; empty: nothing. What stands before a colon is its kind."""
    if reader.status != 200:
        try:
            said = error_text(json.loads(reader.body))
        except ValueError:
            said = " ".join(reader.body.decode("utf-8", "replace").split())[:200]
        return f"HTTP {reader.status}: {said or 'no reason'}"
    if not reader.is_stream:
        return "not a stream: the server answered without text/event-stream"
    return answer.error or ("" if answer.chunk_s else "no token: the answer is empty")
