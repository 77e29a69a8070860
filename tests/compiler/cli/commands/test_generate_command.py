"""generate: one prompt, a batch, a chat turn, a conversation; on a session that counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from llmc.compiler.base.errors import EngineError, LlmcError
from llmc.runtimes.generation import text_engine
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.generation.text_engine import TextEngine
from llmc.runtimes.session.engine import EngineInfo, FloatArray, Int64Array

Run = Callable[..., Result]

WORDS = ["<end>", "user", "system", "assistant", *(f"w{i}" for i in range(4, 40))]
TURNS = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}assistant{% endif %}"


class CountingLogits:
    """The token after the last one is the next word."""

    def __init__(self, tokens: Int64Array) -> None:
        self._next = (tokens + 1) % len(WORDS)

    def host(self) -> FloatArray:
        values = np.zeros((len(self._next), 1, len(WORDS)), np.float32)
        values[np.arange(len(self._next)), 0, self._next] = 50
        return values

    def argmax(self) -> Int64Array:
        return self._next


class CountingSession:
    """Says w5 after w4, w6 after w5 …; may be interrupted after some forward calls."""

    rows = chooser = None

    def __init__(self, max_context: int = 64) -> None:
        self.info = EngineInfo("fake", len(WORDS), 1, max_context, "last", "shared", 8, 8, "fp32", 1)
        self.lengths = np.zeros(0, np.int64)
        self.interrupt_at: int | None = None
        self.calls = 0
        self.prompts: list[list[list[int]]] = []
        self.closed = False

    def reset(self, batch: int, capacity: int) -> None:
        self.lengths = np.zeros(batch, np.int64)
        self._last = np.zeros(batch, np.int64)

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> CountingLogits:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        valid = np.full(len(input_ids), input_ids.shape[1]) if lengths is None else lengths
        if input_ids.shape[1] > 1:
            self.prompts.append([row[:n].tolist() for row, n in zip(input_ids, valid, strict=True)])
        self._last = np.where(valid > 0, input_ids[np.arange(len(valid)), np.maximum(valid, 1) - 1], self._last)
        self.lengths += valid
        return CountingLogits(self._last)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def tokenizer() -> TextTokenizer:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(backend, chat_templates={"default": TEMPLATE}, eos_ids=[0])


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tokenizer: TextTokenizer) -> CountingSession:
    made = CountingSession()

    def open_engine(directory: Path, threads: int | None) -> TextEngine:
        made.opened = (directory, threads)
        return TextEngine(made, tokenizer)

    monkeypatch.setattr(TextEngine, "open", open_engine)
    return made


def test_one_prompt(llmc: Run, session: CountingSession) -> None:
    result = llmc("generate", "dir", "-p", "w4 w5", "--max-tokens", 3, "--threads", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "w6 w7 w8\n"
    assert result.stderr.startswith("TTFT ")
    assert ", 3 tokens, " in result.stderr
    assert result.stderr.endswith(" tok/s\n")
    assert session.opened == (Path("dir"), 2)
    assert session.closed


def test_text_comes_piece_by_piece(
    llmc: Run, session: CountingSession, monkeypatch: pytest.MonkeyPatch, tokenizer: TextTokenizer
) -> None:
    """Each piece is flushed before the next token is computed."""
    import sys

    seen: list[str] = []
    forward = session.forward

    def watched(input_ids: Int64Array, lengths: Int64Array | None = None) -> CountingLogits:
        seen.append(sys.stdout.buffer.getvalue().decode())
        return forward(input_ids, lengths)

    session.forward = watched
    llmc("generate", "dir", "-p", "w4 w5", "--max-tokens", 3)
    assert seen == ["", "w6", "w6 w7"]


def test_quiet_is_the_text_alone(llmc: Run, session: CountingSession) -> None:
    result = llmc("generate", "dir", "-p", "w4", "--max-tokens", 2, "--quiet")
    assert (result.stdout, result.stderr) == ("w5 w6\n", "")


def test_the_prompt_can_come_from_stdin(llmc: Run, session: CountingSession) -> None:
    assert llmc("generate", "dir", "-p", "-", "--max-tokens", 2, input="w8 w9\n").stdout == "w10 w11\n"
    twice = llmc("generate", "dir", "-p", "-", "-p", "-")
    assert twice.exit_code == 2
    assert "stdin can be read once" in twice.stderr


def test_it_ends_at_the_end_token_or_a_stop_string(llmc: Run, session: CountingSession) -> None:
    assert llmc("generate", "dir", "-p", "w38").stdout == "w39\n"
    assert llmc("generate", "dir", "-p", "w4", "--stop", "w9", "--stop", " w7").stdout == "w5 w6\n"


def test_without_max_tokens_the_context_decides(llmc: Run, session: CountingSession) -> None:
    session.info = EngineInfo("fake", len(WORDS), 1, 12, "last", "shared", 8, 8, "fp32", 1)
    result = llmc("generate", "dir", "-p", "w4 w5", "--json")
    assert len(json.loads(result.stdout)["results"][0]["tokens"]) == 10
    full = llmc("generate", "dir", "-p", " ".join(["w4"] * 12))
    assert full.exit_code == 2
    assert "the prompt has 12 tokens and the engine's context is 12" in full.stderr


def test_sampling_options(llmc: Run, session: CountingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    reply = TextEngine.reply

    def spy(self: TextEngine, prompts: Any, sampling: Any, stop: Any, max_tokens: Any) -> Any:
        given.append(sampling)
        return reply(self, prompts, sampling, stop, max_tokens)

    monkeypatch.setattr(TextEngine, "reply", spy)
    options = ("--temperature", 0.7, "--top-k", 5, "--top-p", 0.9, "--min-p", 0.1, "--repetition-penalty", 1.2)
    llmc("generate", "dir", "-p", "w4", "--max-tokens", 1, *options, "--seed", 3)
    llmc("generate", "dir", "-p", "w4", "--max-tokens", 1)
    first, default = given
    assert (first.temperature, first.top_k, first.top_p, first.min_p) == (0.7, 5, 0.9, 0.1)
    assert (first.repetition_penalty, first.seed) == (1.2, 3)
    assert default.greedy


def test_a_bad_sampling_option_fails_before_the_engine_is_opened(llmc: Run, session: CountingSession) -> None:
    result = llmc("generate", "dir", "-p", "w4", "--top-p", 1.5)
    assert result.exit_code == 2
    assert not hasattr(session, "opened")


def test_a_batch_is_labelled(llmc: Run, session: CountingSession) -> None:
    result = llmc("generate", "dir", "-p", "w4 w5", "-p", "w30", "--max-tokens", 2)
    assert result.stdout.split("\n") == ["[1] w4 w5", "w6 w7", "", "[2] w30", "w31 w32", "", ""]
    assert session.prompts == [[[4, 5], [30]]]
    assert ", 4 tokens, " in result.stderr


def test_json(llmc: Run, session: CountingSession) -> None:
    result = llmc("generate", "dir", "-p", "w4", "-p", "w38", "--max-tokens", 2, "--json")
    assert result.stderr == ""
    value = json.loads(result.stdout)
    assert value["results"] == [
        {"prompt": "w4", "text": "w5 w6", "tokens": [5, 6], "finished": "length"},
        {"prompt": "w38", "text": "w39", "tokens": [39, 0], "finished": "eos"},
    ]
    assert value["tokens"] == 4
    assert value["ttft_s"] > 0


def test_one_turn_of_a_chat(llmc: Run, session: CountingSession) -> None:
    assert llmc("generate", "dir", "-p", "w9", "--chat", "--max-tokens", 1).exit_code == 0
    llmc("generate", "dir", "-p", "w9", "--system", "w20", "--max-tokens", 1)
    asked = [[WORDS[token] for token in prompts[0]] for prompts in session.prompts]
    assert asked == [["user", "w9", "assistant"], ["system", "w20", "user", "w9", "assistant"]]


def test_a_conversation_remembers(llmc: Run, session: CountingSession) -> None:
    typed = "w9\n\n/reset\nw10\nw11\n/exit\nw12\n"
    result = llmc("generate", "dir", "--chat", "--system", "w20", "--max-tokens", 2, input=typed)
    assert result.exit_code == 0, result.stderr
    asked = [" ".join(WORDS[token] for token in prompts[0]) for prompts in session.prompts]
    assert asked == [
        "system w20 user w9 assistant",
        "system w20 user w10 assistant",
        "system w20 user w10 assistant w4 w5 user w11 assistant",
    ]
    assert result.stdout == "w4 w5\n" * 3
    assert session.closed


def test_a_conversation_ends_with_the_input(llmc: Run, session: CountingSession) -> None:
    assert llmc("generate", "dir", "--chat", "--max-tokens", 1, input="w9").exit_code == 0


def test_a_full_conversation_says_so_and_goes_on(llmc: Run, session: CountingSession) -> None:
    session.info = EngineInfo("fake", len(WORDS), 1, 8, "last", "shared", 8, 8, "fp32", 1)
    result = llmc("generate", "dir", "--chat", "--max-tokens", 2, input="w9\nw10\n/reset\nw11\n")
    assert result.exit_code == 0, result.stderr
    assert "or /reset" in result.stderr
    assert result.stdout == "w4 w5\n" * 2


def test_a_chat_without_a_template_fails(llmc: Run, session: CountingSession, tokenizer: TextTokenizer) -> None:
    tokenizer._chat_templates.clear()
    result = llmc("generate", "dir", "--chat", input="w9\n")
    assert result.exit_code == 2
    assert "no chat template" in result.stderr


def test_nothing_to_write_from(llmc: Run, session: CountingSession) -> None:
    assert "give a prompt with -p TEXT" in llmc("generate", "dir").stderr
    assert llmc("generate", "dir", "--chat", "--json").exit_code == 2


def test_interrupt_ends_cleanly(llmc: Run, session: CountingSession) -> None:
    session.interrupt_at = 4
    result = llmc("generate", "dir", "-p", "w4 w5", "--max-tokens", 20)
    assert result.exit_code == 130
    assert result.stdout == "w6 w7 w8\n"
    assert ", 3 tokens" in result.stderr
    assert "Traceback" not in result.stderr
    assert session.closed


@pytest.mark.parametrize("options", [("-p", "w30"), ("--json",)], ids=["a batch", "JSON"])
def test_what_was_written_until_an_interrupt_is_shown(
    llmc: Run, session: CountingSession, options: tuple[str, ...]
) -> None:
    session.interrupt_at = 3
    result = llmc("generate", "dir", "-p", "w4 w5", "--max-tokens", 20, *options)
    assert result.exit_code == 130
    assert "w6 w7" in result.stdout
    assert "w8" not in result.stdout


def test_an_engine_without_a_tokenizer_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    session = CountingSession()
    monkeypatch.setattr(text_engine, "open_session", lambda directory, threads: session)
    with pytest.raises(LlmcError):
        TextEngine.open(tmp_path, None)
    assert session.closed
    assert session.calls == 0


def test_interrupt_in_a_conversation_stops_the_answer_only(llmc: Run, session: CountingSession) -> None:
    session.interrupt_at = 2
    result = llmc("generate", "dir", "--chat", "--max-tokens", 2, input="w9\nw10\n")
    assert result.exit_code == 0
    assert result.stdout == "w4\nw4 w5\n"


def test_an_engine_that_fails(llmc: Run, session: CountingSession) -> None:
    def forward(*arguments: object) -> None:
        raise EngineError("ONNX Runtime failed: no memory")

    session.forward = forward
    result = llmc("generate", "dir", "-p", "w4")
    assert result.exit_code == 9
    assert result.stderr == "llmc: error: ONNX Runtime failed: no memory\n"
    assert session.closed


def test_a_directory_that_is_not_there(llmc: Run, tmp_path: Path) -> None:
    result = llmc("generate", tmp_path / "nothing", "-p", "w4")
    assert result.exit_code == 7
    assert "does not exist" in result.stderr


def test_the_longest_prompt_of_a_batch_has_to_fit(llmc: Run, session: CountingSession) -> None:
    session.info = EngineInfo("fake", len(WORDS), 1, 12, "last", "shared", 8, 8, "fp32", 1)
    result = llmc("generate", "dir", "-p", "w4", "-p", " ".join(["w4"] * 12))
    assert result.exit_code == 2
    assert "the prompt has 12 tokens" in result.stderr


@pytest.fixture
def marked(session: CountingSession, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> CountingSession:
    """The end token is one that the tokenizer finds in texts; there is a second template."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    backend.add_special_tokens(["<end>"])
    templates = {"default": TEMPLATE, "short": "assistant {{ messages[-1].content }}"}
    ours = TextTokenizer(backend, chat_templates=templates, eos_ids=[0])
    monkeypatch.setattr(TextEngine, "open", lambda *_: TextEngine(session, ours))
    return session


def test_a_typed_end_of_turn_is_text(llmc: Run, marked: CountingSession, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    spy = TextTokenizer.encode_chat
    monkeypatch.setattr(TextTokenizer, "encode_chat", lambda self, *a, **k: (seen.append(k), spy(self, *a, **k))[1])
    llmc("generate", "dir", "--chat", "-p", "w4 <end> w5", "--max-tokens", 1)
    llmc("generate", "dir", "--chat", "-p", "w4 <end> w5", "--max-tokens", 1, "--parse-special")
    assert [options["parse_special"] for options in seen] == [False, True]


def test_a_plain_prompt_that_spells_special_tokens_says_how_they_were_read(
    llmc: Run, marked: CountingSession
) -> None:
    said = "<end> in the prompt is text; --parse-special makes tokens of it"
    assert said in llmc("generate", "dir", "-p", "w4 <end> w5", "--max-tokens", 1).stderr
    assert said not in llmc("generate", "dir", "-p", "w4 <end> w5", "--max-tokens", 1, "--parse-special").stderr
    assert said not in llmc("generate", "dir", "-p", "w4 w5", "--max-tokens", 1).stderr


def test_a_chat_template_is_taken_by_name(llmc: Run, marked: CountingSession) -> None:
    llmc("generate", "dir", "--chat", "-p", "w4", "--max-tokens", 1, "--chat-template", "short")
    assert marked.prompts[0] == [[3, 4]]
    refused = llmc("generate", "dir", "--chat", "-p", "w4", "--chat-template", "long")
    assert refused.exit_code == 2
    assert "no chat template 'long': name one of default, short" in refused.stderr


def test_a_conversation_takes_the_template_and_the_reading(llmc: Run, marked: CountingSession) -> None:
    llmc("generate", "dir", "--chat", "--max-tokens", 1, "--chat-template", "short", input="w4\nw9\n")
    assert [prompts[0] for prompts in marked.prompts if len(prompts[0]) > 1] == [[3, 4], [3, 9]]
