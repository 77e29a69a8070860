"""Golden data recorded: the reference continues a few prompts greedily and reads a long text; what it says is kept.

In: a session of the reference (transformers, eager attention, float32). Out: :class:`Golden`.

The whole vocabulary would take megabytes a prompt; the :data:`TOP` largest logits of each position hold nearly all of
the probability, and the rest enters through the log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmc.compiler.artifact.golden import FloatArray, Golden, IntArray, Passage
from llmc.compiler.base.errors import VerificationError
from llmc.compiler.driver.golden_passage import SPARE, Reading
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


class Reference(Session, Protocol):
    """A session that reads a text in one forward."""

    def logits_at(self, tokens: IntArray, places: IntArray) -> FloatArray:
        """Logits after the first so many tokens of a text, [places, vocab_size] float32."""


def random_prompts(vocab_size: int) -> list[list[int]]:
    """Prompts for a model that comes without a tokenizer."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, vocab_size, length).tolist() for length in (6, 23, 14)]


def random_text(vocab_size: int, length: int) -> list[int]:
    """A text for a model that comes without a tokenizer."""
    return [int(token) for token in np.random.default_rng(1).integers(0, vocab_size, length)]


def fit_prompts(prompts: Sequence[Sequence[int]], context: int | None) -> tuple[list[list[int]], int]:
    """Prompts, cut to what a context holds beside their continuations, and the tokens of these.

    Args:
        prompts: Token ids of each.
        context: Most tokens of a text; None: any number.

    Returns:
        No prompt where the context holds no token beside another.
    """
    if context is None:
        return [list(prompt) for prompt in prompts], STEPS
    room = max(context - SPARE, min(context, 2))
    steps = min(STEPS, room // 2)
    return [list(prompt[: room - steps]) for prompt in prompts if steps], steps


def record_golden(
    reference: Reference,
    prompts: Sequence[Sequence[int]],
    text: Sequence[int] = (),
    reading: Reading | None = None,
    steps: int = STEPS,
) -> Golden:
    """Let the reference continue ``prompts`` greedily and read ``text``, and keep what it said.

    Args:
        reference: Of all logits.
        prompts: Token ids of each.
        text: Token ids, as many as ``reading`` says.
        reading: Where what it says of the text is kept; None: there is no text.
        steps: Tokens of each continuation.

    Raises:
        VerificationError: its logits are not numbers.
    """
    rows, ranges = [], []
    cache_ranges: Callable[[], tuple[FloatArray, FloatArray] | None] | None
    cache_ranges = getattr(reference, "cache_ranges", None)  # what the cache reached, where it can tell
    for prompt in prompts:
        rows.append(_continue(reference, list(prompt), steps))
        ranges.append(None if cache_ranges is None else cache_ranges())
    passage = None
    if reading is not None:
        passage = _read(reference, np.asarray(text, np.int64), reading)
        ranges.append(None if cache_ranges is None else cache_ranges())
    padded, lengths = pad_prompts(prompts)
    tokens, ids, logits, sums = (np.stack([row[i] for row in rows]) for i in range(4))
    known = [pair for pair in ranges if pair is not None]
    keys, values = (
        np.max([pair[i] for pair in known], axis=0) if len(known) == len(ranges) else None for i in (0, 1)
    )
    vocabulary = reference.info.vocab_size
    return Golden(padded, lengths, tokens, ids, logits, sums, vocabulary, keys, values, passage)


def _read(reference: Reference, text: IntArray, reading: Reading) -> Passage:
    """One forward over the whole text: nothing of what is compared with it is cut into chunks."""
    places = reading.places
    said = [
        _largest(logits.astype(np.float64), place)
        for logits, place in zip(reference.logits_at(text, places), places.tolist(), strict=True)
    ]
    ids, logits, sums = (np.asarray(column) for column in zip(*said, strict=True))
    return Passage(text, reading.prompt, reading.chunk, places, ids.astype(np.int32), logits, sums)


def _continue(reference: Reference, prompt: list[int], steps: int) -> tuple[Any, ...]:
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

    for _ in range(steps):
        request = Request([*prompt, *tokens], 1, watch=watch)
        Batch.of(reference, [request]).run()
        tokens += request.tokens
    return np.asarray(tokens, np.int64), *(np.asarray(column) for column in zip(*kept, strict=True))


def _largest(logits: npt.NDArray[np.float64], length: int) -> tuple[Any, ...]:
    """Ids and values of the :data:`TOP` largest logits after ``length`` tokens, and the log-sum-exp of all.

    A logit of minus infinity is a token that the model never says; any other that is not finite is a fault.
    """
    if not np.isfinite(logits.max()):
        raise VerificationError(
            f"the model's own logits after {length} tokens are not finite numbers, so nothing can be compared with "
            "them: look at the checkpoint's weights, or export with --verify off"
        )
    top = np.argsort(-logits, kind="stable")[:TOP]
    return top, logits[top].astype(np.float32), np.float32(log_sum_exp(logits))


def log_sum_exp(values: npt.NDArray[Any]) -> float:
    """ln Σ exp(v), in float64."""
    wide = values.astype(np.float64)
    largest = wide.max()
    return float(largest + np.log(np.exp(wide - largest).sum()))
