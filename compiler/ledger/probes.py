"""A few short texts, and what a graph says about them.

In: golden data, or a vocabulary; a session. Out: logits after each text and after some tokens that follow it.

The texts run as one batch of rows of unequal length: their prompts at once, what follows token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmc.compiler.artifact.golden import Golden
from llmc.runtimes.evaluation.perplexity import log_softmax
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import FloatArray, Session

LONGEST, STEPS, MOST = 32, 6, 4
"""Tokens of a prompt, tokens that follow it, texts; what begins at a greater length is for ``verify`` to find."""
RANDOM_LENGTHS = (6, 23, 14)


@dataclass(frozen=True)
class Probes:
    """Some texts.

    Attributes:
        texts: Token ids of each, more than :data:`STEPS` each.
        random: They are no texts, but tokens drawn at random.
    """

    texts: tuple[tuple[int, ...], ...]
    random: bool = False

    @classmethod
    def of(cls, golden: Golden | None, vocab_size: int, room: int | None = None) -> Probes:
        """The beginnings of golden texts; random tokens where there are none; at most ``room`` of each."""
        rows: list[list[int]] = []
        if golden is not None:
            pairs = zip(golden.prompts, golden.lengths, golden.tokens, strict=True)
            rows = [[*prompt[:length].tolist(), *tokens.tolist()] for prompt, length, tokens in pairs]
        rows = [row for row in rows if len(row) > STEPS]
        drawn = not rows
        if drawn:
            random = np.random.default_rng(0)
            rows = [random.integers(0, vocab_size, length + STEPS).tolist() for length in RANDOM_LENGTHS]
        longest = min(LONGEST + STEPS, room or LONGEST + STEPS)
        return cls(tuple(tuple(row[:longest]) for row in rows[:MOST]), drawn)

    @property
    def by_length(self) -> list[tuple[int, ...]]:
        """The longest text first."""
        return sorted(self.texts, key=len, reverse=True)

    def logits(self, session: Session) -> FloatArray:
        """After each prompt and each token that follows it but the last, [texts * STEPS, vocab_size] float32.

        Raises:
            EngineError: the session failed, or its logits are not finite.
        """
        rows: list[list[FloatArray]] = [[] for _ in self.texts]
        Batch.of(session, [self._led(index, rows[index]) for index in range(len(rows))]).run()
        return np.concatenate([np.stack(row) for row in rows])

    def _led(self, index: int, kept: list[FloatArray]) -> Request:
        text = self.texts[index]
        length = len(text) - STEPS

        def watch(position: int, logits: FloatArray) -> None:
            if position + len(logits) >= length:
                kept.append(logits[-1].copy())

        return Request(text[:length], STEPS, id=index, forced=text[length:], watch=watch)


@dataclass(frozen=True)
class LogitDifference:
    """How far logits are from others.

    Attributes:
        kl: Mean KL divergence, nats.
        top1: Share of positions with the same most likely token.
        error: Largest absolute difference of two logits.
        relative: Largest difference in units of a logit's magnitude and the root mean square of all.
    """

    kl: float
    top1: float
    error: float
    relative: float

    @classmethod
    def between(cls, expected: FloatArray, got: FloatArray) -> LogitDifference:
        """Of logits [positions, vocab_size] of the same positions, in float64."""
        if not np.isfinite(got).all():
            return cls(float("inf"), 0.0, float("inf"), float("inf"))
        log_p, log_q = log_softmax(expected), log_softmax(got)
        difference = np.abs(np.subtract(got, expected, dtype=np.float64))
        magnitude = np.abs(expected) + np.sqrt(np.square(expected, dtype=np.float64).mean())
        return cls(
            # Rounding can leave a sum a little below zero, which no divergence is.
            max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())),
            float((expected.argmax(axis=1) == got.argmax(axis=1)).mean()),
            float(difference.max()),
            float((difference / np.where(magnitude > 0, magnitude, 1)).max()),
        )
