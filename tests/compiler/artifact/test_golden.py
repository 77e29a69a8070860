"""Golden data: recorded from whole forwards of the reference, written and read again."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.golden import GOLDEN, Golden, load_golden
from llmc.compiler.base.errors import ArtifactError, VerificationError
from llmc.compiler.driver.golden_recording import STEPS, TOP, log_sum_exp, random_prompts, record_golden

VOCABULARY = 300
PROMPTS = [[5, 6, 7], [250], [1, 2, 3, 4, 5]]


class Reference:
    """A session whose next token depends on every token before it; from a cache it goes on with another one."""

    info = SimpleNamespace(vocab_size=VOCABULARY, max_context=1 << 20, max_batch=None, profiles=(), logits="all")
    rows = chooser = None

    def __init__(self) -> None:
        self.held: list[int] = []
        self.calls: list[list[int]] = []

    @property
    def lengths(self) -> Any:
        return np.array([len(self.held)], np.int64)

    def reset(self, batch: int, capacity: int) -> None:
        assert batch == 1
        self.held, self.capacity = [], capacity

    def forward(self, input_ids: Any, lengths: Any = None) -> Any:
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


def test_a_model_whose_own_logits_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one token that the model would never choose, after the second token of a continuation."""

    def damaged(tokens: list[int], sign: float = 1.0) -> Any:
        values = logits(tokens, sign)
        if len(tokens) == 5:
            values[values.argmin()] = np.nan
        return values

    logits = logits_of
    monkeypatch.setitem(globals(), "logits_of", damaged)
    with pytest.raises(VerificationError, match=r"the model's own logits after 5 tokens are not numbers \(NaN\)"):
        record()


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


class Undecided(Reference):
    """All tokens are equally likely."""

    def forward(self, input_ids: Any, lengths: Any = None) -> Any:
        return SimpleNamespace(host=lambda: np.zeros((1, input_ids.shape[1], VOCABULARY), np.float32))


def test_of_equal_logits_the_first_token_is_chosen_as_argmax_does() -> None:
    reference: Any = Undecided()
    golden = record_golden(reference, PROMPTS)
    assert not golden.tokens.any()
    np.testing.assert_array_equal(golden.top_ids, np.broadcast_to(np.arange(TOP), (3, STEPS, TOP)))


def test_the_sum_is_over_the_whole_vocabulary() -> None:
    """Of equally likely tokens, those that are not kept make a large part."""
    reference: Any = Undecided()
    np.testing.assert_allclose(record_golden(reference, PROMPTS).log_sum_exp, np.log(VOCABULARY), rtol=1e-6)


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
    assert isinstance(again.vocab_size, int)
    assert load_golden(tmp_path / "none") is None


def test_the_time_of_day_is_not_in_the_file(tmp_path: Path) -> None:
    record()[0].save(tmp_path)
    with zipfile.ZipFile(tmp_path / GOLDEN) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("content", [b"", b"not a file of numpy", b"PK\x03\x04broken"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / GOLDEN).write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_golden(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": None},
        {"tokens": None},
        {"of_another_version": np.zeros(1)},
        {"tokens": np.asarray([{}], object)},
    ],
    ids=["no vocabulary", "no tokens", "an unknown array", "an object"],
)
def test_arrays_that_are_not_golden_data(tmp_path: Path, change: dict[str, Any]) -> None:
    """Nothing is unpickled: a file from elsewhere could run anything."""
    arrays = {**vars(record()[0]), **change}
    np.savez(tmp_path / GOLDEN, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(ArtifactError, match="is damaged"):
        load_golden(tmp_path)


def test_log_sum_exp_of_large_logits_is_in_double_precision() -> None:
    assert log_sum_exp(np.asarray([1000.0, 1000.0], np.float32)) == pytest.approx(1000 + np.log(2), abs=1e-9)
    assert log_sum_exp(np.asarray([-1000.0, -1001.0])) == pytest.approx(-1000 + np.log1p(np.exp(-1)), abs=1e-9)


@pytest.mark.parametrize("vocabulary", [1, 2, 50000])
def test_random_prompts_are_the_same_each_time(vocabulary: int) -> None:
    """Of unequal lengths, so that a comparison pads; of tokens that there are."""
    prompts = random_prompts(vocabulary)
    assert prompts == random_prompts(vocabulary)
    assert len({len(prompt) for prompt in prompts}) == len(prompts) == 3
    assert {token for prompt in prompts for token in prompt} <= set(range(vocabulary))


# --- ranges of keys and values --------------------------------------------------------------------------------------

LAYERS, CHANNELS = 2, 6


class CachingReference(Reference):
    """Keys of channel c reach c times the largest token of the text; values the longest text's length."""

    def __init__(self, silent: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.silent = silent

    def cache_ranges(self) -> tuple[Any, Any] | None:
        if self.calls[-1][0] in self.silent:
            return None
        channels = np.arange(LAYERS * CHANNELS, dtype=np.float32).reshape(LAYERS, CHANNELS)
        return channels * max(self.calls[-1]), np.full_like(channels, len(self.held))


def record_ranges(silent: tuple[int, ...] = ()) -> tuple[Golden, CachingReference]:
    reference: Any = CachingReference(silent)
    return record_golden(reference, PROMPTS), reference


def test_ranges_are_the_largest_of_all_prompts() -> None:
    golden, reference = record_ranges()
    assert golden.cache_ranges is not None
    keys, values = golden.cache_ranges
    channels = np.arange(LAYERS * CHANNELS, dtype=np.float32).reshape(LAYERS, CHANNELS)
    # What the cache holds after the last forward of each prompt.
    lasts = [reference.calls[(row + 1) * STEPS - 1] for row in range(len(PROMPTS))]
    np.testing.assert_array_equal(keys, channels * max(map(max, lasts)))
    np.testing.assert_array_equal(values, np.full_like(channels, max(map(len, lasts))))
    assert max(map(len, lasts)) == max(map(len, PROMPTS)) + STEPS - 1


def test_ranges_of_some_prompts_alone_are_none() -> None:
    golden, _ = record_ranges(silent=(250,))
    assert golden.cache_ranges is None
    assert (golden.key_ranges, golden.value_ranges) == (None, None)


def test_a_reference_without_a_cache_has_no_ranges() -> None:
    assert record()[0].cache_ranges is None


@pytest.mark.parametrize("missing", ["key_ranges", "value_ranges"])
def test_ranges_of_keys_or_values_alone_are_none(missing: str) -> None:
    change: dict[str, Any] = {missing: None}
    assert replace(record_ranges()[0], **change).cache_ranges is None


def test_ranges_are_written_and_read_again(tmp_path: Path) -> None:
    golden, _ = record_ranges()
    golden.save(tmp_path)
    first = (tmp_path / GOLDEN).read_bytes()
    golden.save(tmp_path)
    assert (tmp_path / GOLDEN).read_bytes() == first
    again = load_golden(tmp_path)
    assert again is not None
    assert again.cache_ranges is not None
    assert golden.cache_ranges is not None
    for read, recorded in zip(again.cache_ranges, golden.cache_ranges, strict=True):
        np.testing.assert_array_equal(read, recorded)
        assert read.dtype == np.float32


def test_a_file_without_ranges_is_read(tmp_path: Path) -> None:
    """As it was written before there were any, and where a model's layers differ."""
    record()[0].save(tmp_path)
    with np.load(tmp_path / GOLDEN) as data:
        assert not {"key_ranges", "value_ranges"} & set(data.files)
    again = load_golden(tmp_path)
    assert again is not None
    assert again.cache_ranges is None
