"""A text in windows: even, whole, and with what every text begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.calibration.windows import text_windows


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A token for each letter; texts begin with ``<s>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 2)}
    made = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, **letters}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_windows_lie_evenly_and_each_begins_as_a_text(tokenizer: Path) -> None:
    windows = text_windows(tokenizer, "abcdefghijklmnopqrstuvwxyz", 3, 5, "a text")
    assert windows.tolist() == [[1, 2, 3, 4, 5], [1, 13, 14, 15, 16], [1, 24, 25, 26, 27]]


def test_a_tokenizer_without_a_beginning_adds_none(tokenizer: Path) -> None:
    from tokenizers import Tokenizer, processors

    plain = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    plain.post_processor = processors.TemplateProcessing(single="$A")
    plain.save(str(tokenizer / "tokenizer.json"))
    assert text_windows(tokenizer, "abcdefgh", 1, 8, "a text").tolist() == [list(range(2, 10))]


def test_a_shorter_text_gives_fewer_windows_and_says_so(tokenizer: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert text_windows(tokenizer, "abcdefghij", 8, 5, "my.txt").shape == (2, 5)
    assert "my.txt has 10 tokens: 2 windows of 5 instead of 8" in caplog.text


def test_a_text_that_fills_no_window_is_refused(tokenizer: Path) -> None:
    with pytest.raises(UsageError, match=r"my.txt has 3 tokens, which fill no window of 5; give a longer text"):
        text_windows(tokenizer, "abc", 8, 5, "my.txt")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"without a tokenizer .*--effort fast"):
        text_windows(tmp_path, "abc", 8, 5, "my.txt")
