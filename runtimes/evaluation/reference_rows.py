"""A reference's logits, small enough to keep: one byte for each token of the vocabulary.

In: logits of some positions. Out: :class:`ReferenceRows`, and what a candidate's logits diverge from them.

    token      0   1   2   3   4  …              of each position, natural logarithms of probabilities
    log p    -9.1 -0.7 -14 -30 -2.3 …
               │    │   │   │   └───┐
    levels     3    ·   2   0       ·            a byte: 0 is no probability, 1 to 255 a uniform scale
    largest    1: -0.7, 4: -2.3, …               the :data:`LARGEST` most likely tokens in float32

What rounding to a byte does to a divergence, a mean of ``log p - log q``, is kept small: the mean is taken under the
rounded probabilities, scaled to the mass that the rest had, while ``log p`` is that of the whole logits, whose mean
is stored. So what rounding changes is weights that are right on average, of differences that are small for a good
candidate: a divergence of zero stays zero, and a mean is right to 1e-5 (a test says so). The most likely and the
following token are stored exactly: perplexity, top-1 agreement and delta-p are those of the whole logits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.evaluation.perplexity import NOT_FINITE, Float64, Quality, ScoreCollection, Tokens, log_softmax
from llmc.runtimes.session.engine import FloatArray

LARGEST = 1024
"""Tokens of a position that are kept in float32; of smaller vocabularies all."""
STEPS = 254
"""Steps between the levels 1 and 255."""
DEPTH = 24.0
"""A token e to this power less likely than the likeliest that is rounded has no probability."""
BLOCK_ROWS = 32
"""Positions that are computed at a time."""


@dataclass(frozen=True)
class ReferenceRows:
    """What is kept of a reference's logits at some positions.

    Attributes:
        levels: [positions, vocab] uint8; 0 at the :attr:`largest`.
        scale: [positions, 2] float64: the logarithm of the probability that level 1 stands for, and a step.
        largest: [positions, at most LARGEST] int32, the most likely tokens.
        log_largest: Their logarithms of probabilities, float32.
        mean_log_p: The mean of log p under the probabilities that are kept, [positions] float64.
        top: The most likely token, [positions] int64.
        targets: The token that follows, [positions] int64.
        log_target: The logarithm of its probability, [positions] float64.
    """

    levels: npt.NDArray[np.uint8]
    scale: Float64
    largest: npt.NDArray[np.int32]
    log_largest: FloatArray
    mean_log_p: Float64
    top: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    log_target: Float64

    def __getitem__(self, part: slice) -> ReferenceRows:
        """Some of the positions."""
        return ReferenceRows(*(getattr(self, item.name)[part] for item in fields(self)))

    def __len__(self) -> int:
        return len(self.levels)

    @classmethod
    def of(cls, logits: FloatArray, targets: Tokens) -> ReferenceRows:
        """Keep ``logits`` [positions, vocab], which the tokens ``targets`` [positions] follow.

        Raises:
            UsageError: logits that are not finite.
        """
        parts = [_encode(logits[at : at + BLOCK_ROWS], targets[at : at + BLOCK_ROWS]) for at in _blocks(len(logits))]
        return cls.join(parts)

    @classmethod
    def join(cls, parts: list[ReferenceRows]) -> ReferenceRows:
        """Positions one after the other."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """By name, for a file."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def _blocks(count: int) -> range:
    return range(0, count, BLOCK_ROWS)


def _encode(logits: FloatArray, targets: Tokens) -> ReferenceRows:
    log_p = log_softmax(logits)
    rows, vocab = log_p.shape
    kept = min(LARGEST, vocab)
    largest = np.argpartition(log_p, vocab - kept, axis=1)[:, vocab - kept :].astype(np.int32)
    log_largest = np.take_along_axis(log_p, largest, axis=1)
    levels, scale = _round(log_p, largest, log_largest.min(axis=1))
    top, index = logits.argmax(axis=1), np.arange(rows)
    result = ReferenceRows(
        levels,
        scale,
        largest,
        log_largest.astype(np.float32),
        np.zeros(rows),
        top,
        np.asarray(targets, np.int64),
        log_p[index, targets],
    )
    # By the sums that a candidate's mean is computed with: of equal logits it is the same to the last bit.
    relative, log_sum = _relative(logits, top)
    return replace(result, mean_log_p=_mean_logits(result, relative) - log_sum)


def _round(log_p: Float64, largest: npt.NDArray[np.int32], high: Float64) -> tuple[npt.NDArray[np.uint8], Float64]:
    """Levels of all but the ``largest`` tokens, none of which is likelier than ``high`` [positions]; their scale."""
    rest = np.exp(log_p)
    np.put_along_axis(rest, largest, 0, axis=1)
    low = np.maximum(high - DEPTH, log_p.min(axis=1))
    step = (high - low) / STEPS
    exact = (log_p - low[:, None]) / np.where(step > 0, step, 1)[:, None] + 1
    levels = np.rint(np.clip(exact, 0, STEPS + 1)).astype(np.uint8)
    np.put_along_axis(levels, largest, 0, axis=1)
    mass, rounded = rest.sum(axis=1), _rest(np.stack([low, step], axis=1), levels).sum(axis=1)
    some = rounded > 0
    low = low + np.log(np.where(some, mass, 1) / np.where(some, rounded, 1))
    return levels, np.stack([low, step], axis=1)


def _rest(scale: Float64, levels: npt.NDArray[np.uint8]) -> Float64:
    """The probabilities that ``levels`` [positions, vocab] stand for."""
    values = np.exp(scale[:, :1] + np.arange(-1, STEPS + 1) * scale[:, 1:])
    values[:, 0] = 0
    rest: Float64 = np.take_along_axis(values, levels.astype(np.intp), axis=1)
    return rest


def _relative(logits: FloatArray, top: npt.NDArray[np.int64]) -> tuple[FloatArray, Float64]:
    """Logits less the largest, so that nothing overflows and sums stay small, and the logarithm of their sum.

    Raises:
        UsageError: logits that are not finite.
    """
    relative = logits - logits[np.arange(len(top)), top][:, None]
    log_sum = np.log(np.exp(relative).sum(axis=1, dtype=np.float64))
    if not np.isfinite(log_sum).all() or not np.isfinite(relative).all():
        raise UsageError(NOT_FINITE)
    return relative, log_sum


class RowsComparison:
    """Compares a candidate with a reference that was kept, a few positions at a time."""

    def __init__(self) -> None:
        self._scores = ScoreCollection()

    def update(self, reference: ReferenceRows, candidate: FloatArray) -> None:
        """Add positions: the reference's, and the candidate's logits [positions, vocab] of the same.

        Raises:
            UsageError: another vocabulary or number of positions, or logits that are not finite.
        """
        if reference.levels.shape != candidate.shape:
            raise UsageError(
                f"the reference has {list(reference.levels.shape)} logits, the candidate {list(candidate.shape)}: "
                "they are not the same model"
            )
        for at in _blocks(len(reference)):
            self._add(reference[at : at + BLOCK_ROWS], candidate[at : at + BLOCK_ROWS])

    def _add(self, reference: ReferenceRows, candidate: FloatArray) -> None:
        top = candidate.argmax(axis=1)
        relative, log_sum = _relative(candidate, top)
        kl = reference.mean_log_p - (_mean_logits(reference, relative) - log_sum)
        self._scores.add(kl, reference.top == top)
        log_q = relative[np.arange(len(top)), reference.targets] - log_sum
        self._scores.add_targets(reference.log_target, log_q)

    def result(self) -> Quality:
        """The statistics of everything added so far.

        Raises:
            UsageError: nothing was added.
        """
        return self._scores.result(None)


def _mean_logits(reference: ReferenceRows, logits: FloatArray) -> Float64:
    """The mean of ``logits`` [positions, vocab] under the probabilities that are kept, [positions]."""
    rest = _rest(reference.scale, reference.levels).astype(np.float32)
    kept = np.take_along_axis(logits, reference.largest.astype(np.intp), axis=1).astype(np.float64)
    largest = np.exp(reference.log_largest, dtype=np.float64)
    sums: Float64 = np.einsum("ij,ij->i", largest, kept)
    sums += np.matmul(rest[:, None, :], logits[:, :, None])[:, 0, 0]
    return sums
