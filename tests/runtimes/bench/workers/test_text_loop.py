"""The loop that users run, with a clock around it: what stands inside and what is counted."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import ArtifactError, EngineError, UsageError
from llmc.runtimes.bench.workers import text_loop
from llmc.runtimes.bench.workers.text_loop import answer_texts
from llmc.runtimes.bench.workers.worker import SessionTarget
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.session.sampling_params import SamplingParams

GREEDY = SamplingParams()


@pytest.fixture
def directory(tmp_path: Path, byte_level: Any) -> Path:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def session(fake_session: Any, byte_level: Any) -> Any:
    return fake_session(vocab_size=byte_level.get_vocab_size())


def test_every_token_has_a_reading(session: Any, directory: Path) -> None:
    first, second = answer_texts(session, directory, ["abc", "what is it?"], 6, GREEDY)
    tokenizer = TextTokenizer.from_directory(directory)
    assert (first["prompt_tokens"], second["prompt_tokens"]) == (3, len(tokenizer.encode("what is it?")))
    for answer in (first, second):
        assert answer["tokens"] == 6
        assert len(answer["ticks"]) == 2 + 6
        assert all(sooner < later for sooner, later in itertools.pairwise(answer["ticks"]))
        assert answer["first_text"] is None or 2 <= answer["first_text"] < 8


def test_tokenization_and_text_stand_inside_the_clock(
    session: Any, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time passes only in the tokenizer and the stream: 100 for a text, 7 for a token's text."""
    now = SimpleNamespace(at=0)

    def spends(function: Any, cost: int) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            now.at += cost
            return function(*given, **named)

        return run

    monkeypatch.setattr(text_loop, "time", SimpleNamespace(perf_counter_ns=lambda: now.at))
    monkeypatch.setattr(TextTokenizer, "encode", spends(TextTokenizer.encode, 100))
    monkeypatch.setattr(text_loop.Reply, "__iter__", spends(text_loop.Reply.__iter__, 3))
    (answer,) = answer_texts(session, directory, ["abc"], 2, GREEDY)
    begin, encoded, *rest = answer["ticks"]
    assert encoded - begin == 100
    assert rest[0] - encoded == 3


def test_the_same_seed_gives_the_same_text(session: Any, directory: Path) -> None:
    sampling = SamplingParams(0.9, seed=3)
    once, again = (answer_texts(session, directory, ["abc"], 8, sampling)[0] for _ in range(2))
    assert once["characters"] == again["characters"]


def test_a_chat_needs_a_template(session: Any, directory: Path) -> None:
    chat = [{"role": "user", "content": "hm"}]
    with pytest.raises(UsageError, match="no chat template"):
        answer_texts(session, directory, [chat], 2, GREEDY)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    (answer,) = answer_texts(session, directory, [chat], 2, GREEDY)
    assert answer["prompt_tokens"] == 3


def test_a_directory_without_a_tokenizer(session: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no tokenizer"):
        answer_texts(session, tmp_path, ["abc"], 2, GREEDY)


def test_a_worker_answers_with_its_engines_tokenizer(session: Any, directory: Path) -> None:
    target = SessionTarget(lambda path, threads: session)
    with pytest.raises(EngineError, match="before open"):
        target.text(["abc"], 2, 0, 0.0)
    target.open(str(directory), None)
    (answer,) = target.text(["abc"], gen=2, seed=0, temperature=0.0)
    assert answer["tokens"] == 2
