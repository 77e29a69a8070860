import json

import pytest

from llmc.runtimes.bench.load.answer import error_text, read_answer


def events(*values: object) -> list[tuple[float, str]]:
    return [(float(at), it if isinstance(it, str) else json.dumps(it)) for at, it in enumerate(values)]


def text(content: str) -> dict[str, object]:
    return {"choices": [{"text": content}]}


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"delta": fields}], "usage": None}


def test_completions() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}
    ending = {"choices": [{"text": "", "finish_reason": "length"}]}
    answer = read_answer(
        events(text("a b"), text(" c"), ending, {"choices": [], "usage": usage}, "[DONE]", text("d"))
    )
    assert answer.chunk_s == [0.0, 1.0], "chunks that hold nothing, and what comes afterwards, are none"
    assert (answer.text, answer.finish) == ("a b c", "length")
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (4, 5, 3)


def test_reasoning_is_told_from_the_answer_and_a_call_of_a_tool_is_one() -> None:
    answer = read_answer(
        events(
            delta(role="assistant", content=""),
            delta(reasoning_content="hm"),
            delta(reasoning="so"),
            delta(content="a"),
            delta(reasoning_content="?"),
            delta(tool_calls=[{"index": 0}]),
        )
    )
    assert answer.chunk_s == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert answer.reasoning_chunks == 2
    assert answer.text == "hmsoa?"


def test_without_usage_nobody_counted() -> None:
    answer = read_answer(events(text("a"), {"choices": [], "usage": {"prompt_tokens": True}}))
    assert (answer.prompt_tokens, answer.output_tokens, answer.cached_tokens) == (None, None, None)


def test_usage_in_every_event_is_the_last_ones() -> None:
    parts = [{**text("a"), "usage": {"prompt_tokens": 2, "completion_tokens": count}} for count in (1, 2, 3)]
    assert read_answer(events(*parts)).output_tokens == 3


def test_errors_in_a_stream_are_named() -> None:
    answer = read_answer(events(text("a"), {"error": {"message": "out of\nmemory"}}))
    assert answer.error == "error in the stream: out of memory"
    assert read_answer(events(text("a"), "{")).error == "an event is no JSON object"
    assert read_answer(events([1])).error


@pytest.mark.parametrize("strange", [{}, {"choices": None}, {"choices": [7]}, {"choices": [{"text": 5}]}, delta()])
def test_strange_events_are_no_chunks(strange: object) -> None:
    assert read_answer(events(strange)).chunk_s == []


def test_errors_come_in_several_forms() -> None:
    assert error_text({"error": {"message": "a"}}) == "a"
    assert error_text({"error": "b"}) == "b"
    assert error_text({"detail": [{"msg": "c"}]}) == "[{'msg': 'c'}]"
    assert len(error_text("x" * 1000)) == 200
