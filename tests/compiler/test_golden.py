"""Golden data: recorded from whole forwards of the reference, written and read again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.errors import ArtifactError
from llmc.compiler.golden import GOLDEN, STEPS, TOP, Golden, load_golden, log_sum_exp, record_golden

VOCABULARY = 300
PROMPTS = [[5, 6, 7], [250], [1, 2, 3, 4, 5]]


class Reference:
    """A session whose next token depends on every token before it; from a cache it goes on with another one."""

    info = SimpleNamespace(vocab_size=VOCABULARY)

    def __init__(self) -> None:
        self.held: list[int] = []
        self.calls: list[list[int]] = []

    def reset(self, batch: int, capacity: int) -> None:
        assert batch == 1
        self.held, self.capacity = [], capacity

    def forward(self, input_ids: Any) -> Any:
        tokens = input_ids[0].tolist()
        assert input_ids.dtype == np.int64
        assert len(tokens) <= self.capacity
        values = np.stack([logits_of(tokens[: end + 1], -1.0 if self.held else 1.0) for end in range(len(tokens))])
        self.calls.append(tokens)
        self.held = self.held + tokens
        return SimpleNamespace(host=lambda: values[None])


def logits_of(tokens: list[int], sign: float = 1.0) -> Any:
    made = np.random.default_rng(tokens).standard_normal(VOCABULARY).astype(np.float32)
    return sign * 5 * made


def record() -> tuple[Golden, Reference]:
    reference: Any = Reference()
    return record_golden(reference, PROMPTS), reference


def test_every_token_comes_from_all_before_it() -> None:
    golden, reference = record()
    assert golden.tokens.shape == (3, STEPS)
    for row, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        for step in range(STEPS):
            logits = logits_of(tokens)
            assert golden.tokens[row, step] == golden.top_ids[row, step, 0] == logits.argmax()
            np.testing.assert_array_equal(golden.top_logits[row, step], np.sort(logits)[::-1][:TOP])
            np.testing.assert_array_equal(logits[golden.top_ids[row, step]], golden.top_logits[row, step])
            assert golden.log_sum_exp[row, step] == pytest.approx(np.log(np.exp(logits).sum()), abs=1e-4)
            tokens.append(int(logits.argmax()))
    assert [len(call) for call in reference.calls] == [len(p) + step for p in PROMPTS for step in range(STEPS)]


def test_prompts_are_padded_on_the_right() -> None:
    golden, _ = record()
    assert golden.lengths.tolist() == [3, 1, 5]
    assert [row[:n].tolist() for row, n in zip(golden.prompts, golden.lengths, strict=True)] == PROMPTS
    assert golden.vocab_size == VOCABULARY


def test_written_and_read_again(tmp_path: Path) -> None:
    golden, _ = record()
    golden.save(tmp_path)
    first = (tmp_path / GOLDEN).read_bytes()
    golden.save(tmp_path)
    assert (tmp_path / GOLDEN).read_bytes() == first
    again = load_golden(tmp_path)
    assert again is not None
    for name, value in vars(golden).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert load_golden(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"not a file of numpy", b"PK\x03\x04broken"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / GOLDEN).write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_golden(tmp_path)


def test_log_sum_exp_of_large_logits() -> None:
    assert log_sum_exp(np.asarray([1000.0, 1000.0], np.float32)) == pytest.approx(1000 + np.log(2))
