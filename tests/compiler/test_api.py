"""compile, open and generate on a tiny model: the texts are those of the token ids, and errors are llmc's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import llmc
from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.base.progress import NoProgress

from ..shared import Shared
from .tiny_text_model import WORDS, text_model


class Stages(NoProgress):
    """Remembers what was done."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        self.names.append(stage)


@pytest.fixture(scope="module")
def engine_directory() -> Path:
    shared = Shared.current()
    options = CompileOptions(ExportOptions(verify="off"))
    return shared.make("tiny-text-engine", lambda path: llmc.compile(text_model(shared), path, options))


@pytest.fixture
def engine(engine_directory: Path) -> llmc.Engine:
    return llmc.open(engine_directory, threads=1)


def greedy(engine: llmc.Engine, tokens: list[int], count: int) -> list[int]:
    """The most likely tokens, each from a cache that is filled anew."""
    session, tokens = engine._text_engine.session, list(tokens)
    for _ in range(count):
        session.reset(1, len(tokens))
        tokens.append(int(session.forward(np.array([tokens], np.int64)).host()[0, -1].argmax()))
    return tokens[-count:]


def test_compile_makes_a_directory_and_tells_how_far_it_is(tmp_path: Path, shared: Shared) -> None:
    stages = Stages()
    model, output = text_model(shared), tmp_path / "engine"
    report = llmc.compile(str(model), str(output), CompileOptions(ExportOptions(verify="off")), progress=stages)
    assert (output / "llmc.json").is_file()
    assert (report.manifest.kind, report.verification) == ("engine", None)
    assert {"Reading checkpoint", "Building engine"} <= set(stages.names)
    with pytest.raises(llmc.LlmcError, match="exists"):
        llmc.compile(model, output, CompileOptions(ExportOptions(verify="off")))


def test_a_text_is_the_most_likely_one(engine: llmc.Engine) -> None:
    with engine:
        tokens = engine.tokens("w7 w8 w9")
        assert tokens == [7, 8, 9]
        expected = greedy(engine, tokens, 6)
        assert engine.generate("w7 w8 w9", max_tokens=6).split() == [WORDS[token] for token in expected]
        pieces = list(engine.stream("w7 w8 w9", max_tokens=6))
        assert "".join(pieces) == engine.generate("w7 w8 w9", max_tokens=6)
        assert len(pieces) > 2


def test_a_chat_goes_through_the_template(engine: llmc.Engine) -> None:
    with engine:
        chat = [{"role": "user", "content": "w10"}]
        assert [WORDS[token] for token in engine.tokens(chat)] == ["user", "w10", "assistant"]
        assert engine.generate(chat, max_tokens=3) == engine.generate("user w10 assistant", max_tokens=3)


def test_sampling_and_stop(engine: llmc.Engine) -> None:
    with engine:
        drawn = [
            engine.generate("w7", llmc.SamplingParams(temperature=2.0, seed=seed), max_tokens=8) for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        words = engine.generate("w7 w8 w9", max_tokens=6).split()
        assert engine.generate("w7 w8 w9", max_tokens=6, stop=[words[2]]).split() == words[:2]


def test_a_newer_text_ends_the_one_before(engine: llmc.Engine) -> None:
    with engine:
        older = engine.stream("w7", max_tokens=8)
        next(older)
        engine.generate("w8", max_tokens=2)
        with pytest.raises(EngineError, match="ended by a newer one"):
            list(older)


def test_logits_are_those_after_the_prompt(engine: llmc.Engine) -> None:
    with engine:
        logits = engine.logits("w7 w8 w9")
        assert (logits.shape, logits.dtype) == ((1, 160), np.float32)
        assert [int(logits[0].argmax())] == greedy(engine, [7, 8, 9], 1)
        np.testing.assert_array_equal(engine.logits([7, 8, 9]), logits)
        np.testing.assert_array_equal(
            engine.logits([{"role": "user", "content": "w9"}]), engine.logits("user w9 assistant")
        )
        assert np.abs(engine.logits([7, 8]) - logits).max() > 0.1
        kept = logits.copy()
        engine.logits([9])
        np.testing.assert_array_equal(logits, kept, err_msg="they are the caller's")
        for prompt, words in (([], "is empty"), ([7] * 3000, "context"), ([160], "vocabulary")):
            with pytest.raises(UsageError, match=words):
                engine.logits(prompt)


def test_logits_of_every_token(shared: Shared, engine: llmc.Engine) -> None:
    options = CompileOptions(ExportOptions(verify="off"), OptimizeOptions(logits="all"))
    path = shared.make("tiny-text-engine-all", lambda path: llmc.compile(text_model(shared), path, options))
    with engine, llmc.open(path, threads=1) as every:
        logits = every.logits("w7 w8 w9")
        expected = [engine.logits([7, 8, 9][:count])[0] for count in (1, 2, 3)]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_an_engine_for_one_text(engine_directory: Path, engine: llmc.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine:
        expected = engine.generate("w7", max_tokens=4)
    closed: list[bool] = []
    monkeypatch.setattr(llmc.Engine, "close", lambda self: closed.append(True))
    assert llmc.generate(engine_directory, "w7", max_tokens=4, threads=1) == expected
    with pytest.raises(UsageError):
        llmc.generate(engine_directory, [], max_tokens=4)
    assert closed == [True, True]


def test_errors_are_llmcs(engine: llmc.Engine, tmp_path: Path) -> None:
    with pytest.raises(llmc.LlmcError, match="nothing"):
        llmc.open(tmp_path / "nothing")
    with pytest.raises(llmc.LlmcError):
        llmc.compile(tmp_path / "no-model", tmp_path / "out")
    with engine, pytest.raises(UsageError, match="the prompt has"):
        engine.stream("w7 " * (engine.info.max_context + 1))


def test_leaving_the_block_frees_the_engine(engine: llmc.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(engine._text_engine.session, "close", lambda: closed.append(True), raising=False)
    with pytest.raises(KeyError), engine:
        raise KeyError("the user's own")
    assert closed == [True]
