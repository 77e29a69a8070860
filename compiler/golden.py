"""Golden data: what the model says on a few prompts, kept with every artifact made from it.

In: a session of the reference (transformers, eager attention, float32).
Out: ``golden.npz``: prompts, greedy continuations, and for each predicted token the largest logits and the
log-sum-exp over all, so that an engine can be compared with the model wherever it runs, with its runtime alone.

The whole vocabulary would take megabytes a prompt; the :data:`TOP` largest logits of each position hold nearly all of
the probability, and the rest enters through the log-sum-exp.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.errors import ArtifactError, VerificationError
from llmc.runtimes.engine import Session
from llmc.runtimes.padding import pad_prompts

GOLDEN = "golden.npz"
TOP = 256
STEPS = 16
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a programmer who believed that every machine could be understood. One morning",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
)

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """The reference's answers.

    Attributes:
        prompts: [prompts, longest] int64, right-padded.
        lengths: Tokens of each prompt.
        tokens: Greedy continuation of each prompt, [prompts, steps] int64.
        top_ids: Tokens with the largest logits before each predicted token, [prompts, steps, top] int64.
        top_logits: Their logits, float32.
        log_sum_exp: Over the whole vocabulary, [prompts, steps] float32.
        vocab_size: Width of the reference's logits.
        key_ranges: Largest magnitude of each channel of the keys over all prompts, [layers, kv_heads * head_dim]
            float32; None where layers differ in shape or the cache holds something else.
        value_ranges: The same of the values.
    """

    prompts: IntArray
    lengths: IntArray
    tokens: IntArray
    top_ids: IntArray
    top_logits: FloatArray
    log_sum_exp: FloatArray
    vocab_size: int
    key_ranges: FloatArray | None = None
    value_ranges: FloatArray | None = None

    @property
    def cache_ranges(self) -> tuple[FloatArray, FloatArray] | None:
        """Ranges of keys and values, where they are known."""
        if self.key_ranges is None or self.value_ranges is None:
            return None
        return self.key_ranges, self.value_ranges

    def save(self, directory: Path) -> None:
        """Write ``golden.npz``; equal data gives equal bytes."""
        with zipfile.ZipFile(directory / GOLDEN, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in sorted(vars(self).items()):
                if value is None:
                    continue
                # A fixed date: np.savez would write the time of day.
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w") as file:
                    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)


def load_golden(directory: Path) -> Golden | None:
    """The artifact's golden data; None when it carries none.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = directory / GOLDEN
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays: dict[str, Any] = {name: data[name] for name in data.files}
        return Golden(**{**arrays, "vocab_size": int(arrays["vocab_size"])})
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path} is damaged ({error}); compile the model again") from error


def random_prompts(vocab_size: int) -> list[list[int]]:
    """Prompts for a model that comes without a tokenizer."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, vocab_size, length).tolist() for length in (6, 23, 14)]


def record_golden(reference: Session, prompts: Sequence[Sequence[int]]) -> Golden:
    """Let the reference continue ``prompts`` greedily, and keep what it said.

    Raises:
        VerificationError: its logits are not numbers.
    """
    rows, ranges = [], []
    for prompt in prompts:
        rows.append(_continue(reference, list(prompt)))
        ranges.append(_cache_ranges(reference))
    padded, lengths = pad_prompts(prompts)
    tokens, ids, logits, sums = (np.stack([row[i] for row in rows]) for i in range(4))
    known = [pair for pair in ranges if pair is not None]
    keys, values = (np.max([pair[i] for pair in known], axis=0) if len(known) == len(rows) else None for i in (0, 1))
    return Golden(padded, lengths, tokens, ids, logits, sums, reference.info.vocab_size, keys, values)


def _cache_ranges(reference: Session) -> tuple[FloatArray, FloatArray] | None:
    """What the reference's cache reached, where it can tell."""
    read = getattr(reference, "cache_ranges", None)
    ranges: tuple[FloatArray, FloatArray] | None = read() if read is not None else None
    return ranges


def _continue(reference: Session, prompt: list[int]) -> tuple[Any, ...]:
    """The reference's own continuation; every token from one forward over all before it.

    Not from its cache: some models of transformers compute a token otherwise when they go on from a cache, and what a
    model says is what it says about a whole text.
    """
    tokens: list[int] = []
    ids, tops, sums = [], [], []
    for _ in range(STEPS):
        reference.reset(1, len(prompt) + STEPS)
        logits = reference.forward(np.asarray([[*prompt, *tokens]], np.int64))
        last = np.array(logits.host()[0, -1], np.float64)
        if np.isnan(last).any():
            raise VerificationError(
                f"the model's own logits after {len(prompt) + len(tokens)} tokens are not numbers (NaN), so nothing "
                "can be compared with them: look at the checkpoint's weights, or export with --verify off"
            )
        top = np.argsort(-last, kind="stable")[:TOP]
        tokens.append(int(top[0]))
        ids.append(top)
        tops.append(last[top].astype(np.float32))
        sums.append(np.float32(log_sum_exp(last)))
    return np.asarray(tokens, np.int64), np.asarray(ids, np.int64), np.asarray(tops), np.asarray(sums)


def log_sum_exp(values: npt.NDArray[Any]) -> float:
    """ln Σ exp(v), in float64."""
    wide = values.astype(np.float64)
    largest = wide.max()
    return float(largest + np.log(np.exp(wide - largest).sum()))
