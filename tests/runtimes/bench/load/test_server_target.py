"""A server that answers when it is told to, over real sockets: what is measured is what it did."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.load.course import Course, OpenStarts, Window
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.server_target import ServerTarget
from llmc.runtimes.bench.load.target import Exchange
from llmc.runtimes.bench.load.workload import Work, Workload

from .openai_server import Behaviour, serving

CHAT = [{"role": "user", "content": "say something now"}]


def constant(work: Work) -> Workload:
    return lambda point, number: work


@contextlib.contextmanager
def opened(behaviour: Behaviour, work: Work, **fields: Any) -> Iterator[tuple[ServerTarget, tuple[str, ...]]]:
    options = fields.pop("options", LoadOptions())
    with serving(behaviour) as url:
        target = ServerTarget(url, "server", **fields)
        yield target, target.open(options, constant(work), [work])


def ask(behaviour: Behaviour, work: Work | None = None, count: int = 1, **fields: Any) -> list[Exchange]:
    """Requests that arrive together, after the target was opened on the behaviour as it was meant to be."""
    work = work or Work("one two three", 6)
    with opened(Behaviour(**fields.pop("first", {})), work, **fields) as (target, _), serving(behaviour) as url:
        again = ServerTarget(url, "server", target.model, target.api, target.tokenizer, target.key, target.body)
        again._options, again._left_out = target._options, target._left_out
        course = Course(OpenStarts(iter([0.0] * count)), Window(0.0, 60.0), lambda _: work, again.prepare, most=count)
        return again.run(course, lambda now: None).exchanges


def test_figures_are_what_the_server_did() -> None:
    (one,) = ask(Behaviour(first_s=0.2, gap_s=0.1), Work("one two three", 4))
    assert (one.outcome, one.finish, one.counted_by) == ("ok", "length", "usage")
    assert (one.prompt_tokens, one.output_tokens, len(one.chunk_s)) == (3, 4, 4)
    # No chunk is ever early; how late one is depends on who else computes here.
    assert [moment >= 0.2 + 0.1 * number for number, moment in enumerate(one.chunk_s)] == [True] * 4
    assert one.chunk_s[-1] < 5.0


def test_two_hundred_streams_at_a_time() -> None:
    found = ask(Behaviour(first_s=0.2, gap_s=0.05), Work("a", 5), count=200)
    assert [one.outcome for one in found] == ["ok"] * 200
    assert {len(one.chunk_s) for one in found} == {5}
    assert sum(one.chunk_s[0] for one in found) / 200 < 5.0


def test_several_tokens_come_in_a_chunk_and_bytes_one_by_one() -> None:
    (one,) = ask(Behaviour(per_chunk=4, split=True, cached=2), Work("a b", 10))
    assert (len(one.chunk_s), one.output_tokens, one.cached_tokens) == (3, 10, 2)


def test_chats_may_reason_and_begin_with_an_empty_chunk() -> None:
    (one,) = ask(Behaviour(reasoning=2), Work(CHAT, 5))
    assert (len(one.chunk_s), one.reasoning_chunks, one.prompt_tokens) == (5, 2, 3)


def test_a_body_may_end_with_the_connection() -> None:
    (one,) = ask(Behaviour(framing="close"))
    assert (one.outcome, len(one.chunk_s)) == ("ok", 6)


@pytest.mark.parametrize(
    ("behaviour", "error", "chunks"),
    [
        (Behaviour(status=[503]), "HTTP 503: too busy: come back", 0),
        (Behaviour(breaks_after=2), "broken answer: the connection was closed before the answer was complete", 2),
        (Behaviour(error_after=3), "error in the stream: out of memory", 3),
        (Behaviour(silent=True), "no token: the answer is empty", 0),
        (Behaviour(stream=False), "not a stream: the server answered without text/event-stream", 0),
    ],
)
def test_failures_are_named_and_what_came_is_kept(behaviour: Behaviour, error: str, chunks: int) -> None:
    (one,) = ask(behaviour)
    assert (one.outcome, one.error, len(one.chunk_s)) == ("failed", error, chunks)
    assert one.ended_s is not None


def test_a_server_that_never_answers_is_given_up() -> None:
    (one,) = ask(Behaviour(hangs=True), options=LoadOptions(timeout=0.3))
    assert (one.outcome, one.error) == ("failed", "timed out after 0.3 s")


def test_a_server_that_went_away_is_a_failure_of_each_request() -> None:
    work = Work("a", 2)
    with opened(Behaviour(), work) as (target, _):
        pass
    course = Course(OpenStarts(iter([0.0, 0.0])), Window(0.0, 60.0), lambda _: work, target.prepare, most=2)
    found = target.run(course, lambda now: None).exchanges
    assert [one.error.partition(":")[0] for one in found] == ["ConnectionRefusedError"] * 2


def test_what_is_asked() -> None:
    behaviour = Behaviour()
    options = LoadOptions(temperature=0.5, seed=3)
    with opened(behaviour, Work("a b", 20), body={"top_k": 7}, key="secret", options=options) as (target, warnings):
        assert warnings == ()
        assert target.subject().info == {"runtime": "OpenAI completions", "model": "only"}
        assert "secret" not in repr(target)
    (asked,) = behaviour.requests
    assert asked == {
        "model": "only",
        "prompt": "a b",
        "max_tokens": 8,
        "temperature": 0.5,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "top_k": 7,
    }
    assert behaviour.headers[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("refused", ["ignore_eos", "stream_options", "seed"])
def test_a_field_that_the_server_refuses_is_left_out_and_named(refused: str) -> None:
    behaviour = Behaviour(refuses=(refused,))
    with opened(behaviour, Work("a", 2)) as (target, warnings):
        assert f"server does not take {refused}; it was left out" in warnings
        assert refused.encode() not in target.prepare(Work("a", 2))


def test_end_tokens_are_heeded_where_that_is_asked() -> None:
    behaviour = Behaviour()
    with opened(behaviour, Work("a", 2), options=LoadOptions(ignore_eos=False)):
        assert "ignore_eos" not in behaviour.requests[0]


class Letters:
    """Every letter is a token."""

    vocab_size = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [0] * len(text)


@pytest.mark.parametrize(("tokenizer", "tokens", "by"), [(None, 6, "chunks"), (Letters(), 30, "tokenizer")])
def test_without_usage_a_tokenizer_counts_or_chunks_do(tokenizer: Any, tokens: int, by: str) -> None:
    (one,) = ask(Behaviour(usage=False), tokenizer=tokenizer, first={"usage": False})
    assert (one.output_tokens, one.counted_by) == (tokens, by)
    with opened(Behaviour(usage=False), Work("a", 2), tokenizer=tokenizer) as (_, warnings):
        assert "does not say how many tokens" in warnings[0]


@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (lambda: opened(Behaviour(models=("a", "b")), Work("a", 2)), UsageError, "one of a, b with --model"),
        (lambda: opened(Behaviour(status=[500]), Work("a", 2)), EngineError, "HTTP 500: too busy"),
        (lambda: opened(Behaviour(), Work(CHAT, 2), api="completions"), UsageError, "--api chat"),
    ],
)
def test_what_cannot_be_measured_is_said_first(make: Callable[[], Any], kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=reason), make():
        pass


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a/v1", "http://", "http://a:b/v1", "http://a/v1?b=c"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        ServerTarget(url, "server")


def test_a_server_that_is_not_there() -> None:
    with serving(Behaviour()) as url:
        pass
    with pytest.raises(EngineError, match="does not answer"):
        ServerTarget(url, "server").open(LoadOptions(), constant(Work("a", 2)), [])
