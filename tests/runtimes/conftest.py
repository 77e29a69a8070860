"""A session without a runtime, a tiny recurrent "model" in NumPy; and two small tokenizers.

The tokenizers are made here: byte-level BPE as of GPT-2, and SentencePiece-like BPE with byte fallback as of Llama 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.session.capabilities import RowEditor
from llmc.runtimes.session.engine import EngineInfo, FloatArray, Int64Array, Session

from . import fake_worker
from .fake_nvml import FakeNvml

INFO = EngineInfo(
    runtime="fake",
    vocab_size=50,
    num_layers=1,
    max_context=256,
    logits="all",
    cache="shared",
    cache_bytes_per_token=4,
    weight_bytes=4,
    precision="fp32",
    threads=1,
)


class FakeLogits:
    def __init__(self, values: FloatArray, last: Int64Array) -> None:
        self.values = values
        self.last = last
        self.host_calls = 0

    def host(self) -> FloatArray:
        self.host_calls += 1
        return self.values

    def argmax(self) -> Int64Array:
        return self.values[np.arange(len(self.last)), self.last].argmax(axis=-1)


class FakeEditor:
    """Releases rows of a fake session; ``released`` says which, in their order."""

    def __init__(self, *, mixes_lengths: bool) -> None:
        self.mixes_lengths = mixes_lengths
        self.session: FakeSession
        self.released: list[int] = []

    def release(self, row: int) -> None:
        self.truncate(row, 0)
        self.released.append(row)

    def truncate(self, row: int, length: int) -> None:
        assert length == 0, "the fake's state does not go back"
        self.session._state[row], self.session._lengths[row] = 0, 0

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        assert length == self.session._lengths[source]
        self.session._state[target], self.session._lengths[target] = self.session._state[source], length


class FakeSession(Session):
    """The next token depends on every token before it, in order: a lost, doubled or misplaced one changes the text.

    Each token of a row is computed by itself, so batching and chunking change no bit. Logits of what is not valid are
    NaN. ``calls`` records the shape and the lengths of each forward call.
    """

    def __init__(self, info: EngineInfo = INFO, editor: FakeEditor | None = None) -> None:
        self._editor = editor
        if editor is not None:
            editor.session = self
        random = np.random.default_rng(7)
        self._info = info
        self._embedding = random.standard_normal((info.vocab_size, 16))
        self._mix = random.standard_normal((16, 16)) * 0.4
        self._head = random.standard_normal((16, info.vocab_size)) * 2
        self._state = np.zeros((0, 16))
        self._lengths = np.zeros(0, dtype=np.int64)
        self._capacity = 0
        self.calls: list[tuple[tuple[int, ...], list[int] | None]] = []
        self.outputs: list[FakeLogits] = []

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def lengths(self) -> Int64Array:
        return self._lengths.copy()

    @property
    def rows(self) -> RowEditor | None:
        return self._editor

    def reset(self, batch: int, capacity: int) -> None:
        if capacity > self._info.max_context:
            raise EngineError("capacity")
        self._state = np.zeros((batch, 16))
        self._lengths = np.zeros(batch, dtype=np.int64)
        self._capacity = capacity

    def forward(self, input_ids: Int64Array, lengths: Int64Array | None = None) -> FakeLogits:
        assert input_ids.dtype == np.int64
        assert input_ids.flags.c_contiguous
        batch, width = input_ids.shape
        self.calls.append((input_ids.shape, None if lengths is None else lengths.tolist()))
        chunk = np.full(batch, width) if lengths is None else lengths.copy()
        if bool((self._lengths + chunk > self._capacity).any()):
            raise EngineError("full")
        values = np.full((batch, width, self._info.vocab_size), np.nan, dtype=np.float32)
        for row in range(batch):
            for position in range(int(chunk[row])):
                values[row, position] = self._next(row, int(input_ids[row, position]))
        self._lengths += chunk
        last = np.maximum(chunk, 1) - 1
        if self._info.logits == "last":
            values = values[np.arange(batch), last][:, None]
            last = np.zeros_like(last)
        self.outputs.append(FakeLogits(values, last))
        return self.outputs[-1]

    def close(self) -> None:
        self._state = np.zeros((0, 16))

    def _next(self, row: int, token: int) -> FloatArray:
        self._state[row] = np.tanh(self._mix @ self._state[row] + self._embedding[token])
        return (self._state[row] @ self._head).astype(np.float32)


@pytest.fixture
def fake_session() -> Callable[..., FakeSession]:
    """Make a session; ``editor`` gives it one that mixes lengths or not, keywords replace EngineInfo's fields."""

    def make(*, editor: bool | None = None, **fields: object) -> FakeSession:
        return FakeSession(replace(INFO, **fields), None if editor is None else FakeEditor(mixes_lengths=editor))

    return make


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module fake_worker, for tests that use its session in this process."""
    return fake_worker


@pytest.fixture
def nvml() -> FakeNvml:
    """A stand-in for pynvml with one device."""
    return FakeNvml()


CORPUS = [
    "The engine reads the prompt and writes the answer, token by token.",
    "Der schöne Fluß fließt über die Brücke; 日本語のテキストも少し。",
    "stop stopped stopping at the end of the turn, then the next turn begins",
] * 4


@pytest.fixture(scope="session")
def byte_level() -> Any:
    """Every byte is a token, so any text has tokens and many token sequences are no text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def sentencepiece_like() -> Any:
    """Spaces are U+2581, a space begins every text and is taken off again, unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([line for text in CORPUS for line in text.split(" ")], trainer)
    content = json.loads(tokenizer.to_str())
    for value in range(256):
        content["model"]["vocab"][f"<0x{value:02X}>"] = len(content["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.fixture
def tokenizer_directory(tmp_path: Path) -> Callable[..., Path]:
    """Write a directory as transformers does: the tokenizer, its configuration's fields, the model's end tokens."""

    def write(tokenizer: Any, *, eos_token_id: Any = None, **fields: Any) -> Path:
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **fields).save_pretrained(tmp_path)
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_id}))
        return tmp_path

    return write
