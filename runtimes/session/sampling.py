"""Sampling: the logits of a row and a step in, a token out.

    logits ─▶ repetition penalty ─▶ temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ draw

The filters, their order and their treatment of ties are those of transformers' logits processors
(``transformers/generation/logits_process.py``), against which the tests compare them. How they are computed differs,
because a vocabulary may have 262,144 entries and a step may take a millisecond: nothing is sorted but the tokens that
can still be drawn, and a greedy step reads the logits once and copies nothing.

A draw depends on the seed, the row's id and the step alone (a counter-based generator, Philox 4x64: Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), so a request gives the same text in any batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.session.engine import FloatArray, Int64Array
from llmc.runtimes.session.sampling_params import SamplingParams

_BLOCKS = 64  # maxima over V/64 interleaved columns bound the k-th largest logit from below
_DRAW_BLOCK = 512  # exponentials summed together when the whole vocabulary can be drawn
_FIRST_TOP_P = 128  # candidates first tried for top-p without top-k; eight times as many while they do not suffice


class NotFiniteError(EngineError):
    """Logits hold NaN or infinity."""


def not_finite(row_id: int, step: int) -> NotFiniteError:
    """What is wrong with logits that hold NaN or infinity."""
    return NotFiniteError(
        f"the engine's logits for row {row_id} are not finite at step {step}; "
        "check the engine with `llmc verify`, or compile at a higher precision"
    )


class Sampler:
    """Chooses the tokens of one row, and remembers them for the repetition penalty."""

    def __init__(self, params: SamplingParams, vocab_size: int, row_id: int) -> None:
        """Make a sampler for logits of ``vocab_size``; the row's draws depend on ``row_id``."""
        self._params, self._row_id = params, row_id
        self._penalised = params.repetition_penalty != 1
        self._seen = np.zeros(vocab_size if self._penalised else 0, dtype=np.bool_)
        self._scratch = np.empty(vocab_size if self._penalised else 0, dtype=np.float32)

    def observe(self, tokens: Sequence[int] | Int64Array) -> None:
        """Count ``tokens`` as said: the prompt, and each token that :meth:`sample` returned.

        Ids beyond the vocabulary are ignored, since no logit belongs to them.
        """
        if self._penalised:
            ids = np.asarray(tokens, dtype=np.int64)
            self._seen[ids[ids < self._seen.size]] = True

    def sample(self, logits: FloatArray, step: int) -> int:
        """Choose the token that follows.

        Args:
            logits: [vocab_size] float32, read only.
            step: Index of the token among the generated ones, from 0.

        Returns:
            A token id.

        Raises:
            EngineError: the logits hold NaN or infinity.
        """
        scores = self._penalise(logits) if self._penalised else logits
        if not math.isfinite(float(scores.max())):
            raise not_finite(self._row_id, step)
        if self._params.greedy:
            return int(scores.argmax())
        return self._draw(scores, step)

    def _penalise(self, logits: FloatArray) -> FloatArray:
        penalty = np.float32(self._params.repetition_penalty)
        scores = self._scratch
        np.copyto(scores, logits)
        seen = np.flatnonzero(self._seen)
        values = scores[seen]
        scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        return scores

    def _draw(self, scores: FloatArray, step: int) -> int:
        uniform = random_uniform(self._params.seed, self._row_id, step)
        if self._params.top_k == 0 and self._params.top_p == 1 and self._params.min_p == 0:
            return _draw_from_all(scores, self._params.temperature, uniform)
        tokens, scaled = filter_tokens(scores, self._params)
        cumulative = np.cumsum(np.exp(scaled - scaled.max()), dtype=np.float64)
        return int(tokens[_invert(cumulative, uniform)])


def filter_tokens(logits: FloatArray, params: SamplingParams) -> tuple[Int64Array, FloatArray]:
    """Apply temperature, top-k, top-p and min-p; the temperature must not be 0.

    Args:
        logits: [vocab_size] float32.
        params: The filters.

    Returns:
        The tokens that can be drawn, ascending int64, and their scaled logits, float32; at least one.
    """
    temperature = np.float32(params.temperature)
    if 0 < params.top_k < logits.size:
        tokens = _top_k(logits, params.top_k)
        scaled = logits[tokens] / temperature
        if params.top_p < 1:
            kept = _top_p(scaled, params.top_p, float(np.exp(scaled - scaled.max()).sum(dtype=np.float64)))
            tokens, scaled = tokens[kept], scaled[kept]
    elif params.top_p < 1:
        tokens, scaled = _top_p_of_all(logits / temperature, params.top_p)
    elif params.min_p > 0:
        tokens = np.flatnonzero(logits >= logits.max() + np.float32(math.log(params.min_p)) * temperature)
        return tokens, logits[tokens] / temperature
    else:
        return np.arange(logits.size, dtype=np.int64), logits / temperature
    if params.min_p > 0:
        kept = np.flatnonzero(scaled >= scaled.max() + np.float32(math.log(params.min_p)))
        tokens, scaled = tokens[kept], scaled[kept]
    return tokens, scaled


def random_uniform(seed: int, row_id: int, step: int) -> float:
    """One draw in [0, 1) that depends on its three arguments alone."""
    key = np.array([seed, row_id], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=np.array([step, 0, 0, 0], dtype=np.uint64))
    return float((int(generator.random_raw()) >> 11) * 2.0**-53)


def _lower_bound(values: FloatArray, count: int) -> np.float32:
    """A value that at least ``count`` entries reach: the count-th largest of the maxima of disjoint groups."""
    columns = values.size // _BLOCKS
    if columns <= 2 * count:
        return np.float32(np.partition(values, values.size - count)[values.size - count])
    maxima = values[: columns * _BLOCKS].reshape(_BLOCKS, columns).max(axis=0)
    return np.float32(np.partition(maxima, columns - count)[columns - count])


def _top_k(values: FloatArray, count: int) -> Int64Array:
    """Indices of the ``count`` largest entries and of those equal to the last of them, ascending."""
    candidates = np.flatnonzero(values >= _lower_bound(values, count))
    if candidates.size <= count:
        return candidates
    chosen = values[candidates]
    threshold = np.partition(chosen, chosen.size - count)[chosen.size - count]
    kept: Int64Array = candidates[chosen >= threshold]
    return kept


def _top_p(scaled: FloatArray, top_p: float, total: float) -> Int64Array:
    """Indices, ascending, of the tokens that stand before the others' mass reaches ``top_p`` of ``total``.

    ``total`` is the sum of exp(scaled - max) over everything that could be drawn, of which ``scaled`` may be the top.
    """
    order = np.argsort(scaled, kind="stable")[::-1]
    mass = np.cumsum(np.exp(scaled[order] - scaled[order[0]]), dtype=np.float64)
    kept = 1 + int(np.searchsorted(mass[:-1], top_p * total, side="left"))
    return np.sort(order[:kept])


def _top_p_of_all(scaled: FloatArray, top_p: float) -> tuple[Int64Array, FloatArray]:
    """Top-p over the whole vocabulary, sorting only as many of its tokens as the mass asks for."""
    total = float(np.exp(scaled - scaled.max()).sum(dtype=np.float64))
    count = _FIRST_TOP_P
    while count < scaled.size:
        tokens = _top_k(scaled, count)
        top = scaled[tokens]
        if float(np.exp(top - top.max()).sum(dtype=np.float64)) >= top_p * total:
            break
        count *= 8
    else:
        tokens, top = np.arange(scaled.size, dtype=np.int64), scaled
    kept = _top_p(top, top_p, total)
    return tokens[kept], top[kept]


def _draw_from_all(scores: FloatArray, temperature: float, uniform: float) -> int:
    """Draw from the softmax of a whole row: first a block of tokens, then a token of the block."""
    weights = scores - scores.max()
    np.divide(weights, np.float32(temperature), out=weights)
    np.exp(weights, out=weights)
    starts = np.arange(0, weights.size, _DRAW_BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    block = _invert(blocks, uniform)
    before = float(blocks[block - 1]) if block else 0.0
    inside = np.cumsum(weights[starts[block] : starts[block] + _DRAW_BLOCK], dtype=np.float64)
    rest = (uniform * float(blocks[-1]) - before) / float(inside[-1])
    return int(starts[block]) + _invert(inside, min(max(rest, 0.0), 1.0 - 2.0**-53))


def _invert(cumulative: npt.NDArray[np.float64], uniform: float) -> int:
    """Index of the first entry above ``uniform`` of the total; entries without mass are never chosen."""
    index = int(np.searchsorted(cumulative, uniform * float(cumulative[-1]), side="right"))
    return min(index, cumulative.size - 1)
