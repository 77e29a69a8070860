"""Golden data recorded: the reference continues a few prompts greedily, and what it says is kept.

In: a session of the reference (transformers, eager attention, float32). Out: :class:`Golden`.

The whole vocabulary would take megabytes a prompt; the :data:`TOP` largest logits of each position hold nearly all of
the probability, and the rest enters through the log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.artifact.golden import FloatArray, Golden
from llmc.compiler.base.errors import VerificationError
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import Session
from llmc.runtimes.session.padding import pad_prompts

TOP = 256
STEPS = 16
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a programmer who believed that every machine could be understood. One morning",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
)


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
    cache_ranges: Callable[[], tuple[FloatArray, FloatArray] | None] | None
    cache_ranges = getattr(reference, "cache_ranges", None)  # what the cache reached, where it can tell
    for prompt in prompts:
        rows.append(_continue(reference, list(prompt)))
        ranges.append(None if cache_ranges is None else cache_ranges())
    padded, lengths = pad_prompts(prompts)
    tokens, ids, logits, sums = (np.stack([row[i] for row in rows]) for i in range(4))
    known = [pair for pair in ranges if pair is not None]
    keys, values = (np.max([pair[i] for pair in known], axis=0) if len(known) == len(rows) else None for i in (0, 1))
    return Golden(padded, lengths, tokens, ids, logits, sums, reference.info.vocab_size, keys, values)


def _continue(reference: Session, prompt: list[int]) -> tuple[Any, ...]:
    """The reference's own continuation; every token from one forward over all before it.

    Not from its cache: some models of transformers compute a token otherwise when they go on from a cache, and what a
    model says is what it says about a whole text.
    """
    tokens: list[int] = []
    kept: list[tuple[Any, ...]] = []

    def watch(position: int, logits: FloatArray) -> None:
        length = position + len(logits)
        if length == len(prompt) + len(tokens):
            kept.append(_largest(logits[-1].astype(np.float64), length))

    for _ in range(STEPS):
        request = Request([*prompt, *tokens], 1, watch=watch)
        Batch.of(reference, [request]).run()
        tokens += request.tokens
    return np.asarray(tokens, np.int64), *(np.asarray(column) for column in zip(*kept, strict=True))


def _largest(logits: npt.NDArray[np.float64], length: int) -> tuple[Any, ...]:
    """Ids and values of the :data:`TOP` largest logits after ``length`` tokens, and the log-sum-exp of all."""
    if np.isnan(logits).any():
        raise VerificationError(
            f"the model's own logits after {length} tokens are not numbers (NaN), so nothing can be compared with "
            "them: look at the checkpoint's weights, or export with --verify off"
        )
    top = np.argsort(-logits, kind="stable")[:TOP]
    return top, logits[top].astype(np.float32), np.float32(log_sum_exp(logits))


def log_sum_exp(values: npt.NDArray[Any]) -> float:
    """ln Σ exp(v), in float64."""
    wide = values.astype(np.float64)
    largest = wide.max()
    return float(largest + np.log(np.exp(wide - largest).sum()))
