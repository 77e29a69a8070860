"""When each token of a generation came: raw clock readings in, the field's terms out.

The terms are those of vLLM and aiperf (aiperf calls TPOT ``inter_token_latency``):

    request ──── TTFT ────▶ first token ─ ITL ─▶ second ─ ITL ─▶ … ─ ITL ─▶ last
    └────────────────────────── end-to-end latency ─────────────────────────────┘
    TPOT = (end-to-end latency - TTFT) / (output tokens - 1)

Tokenization is not part of them: the clock starts with token ids in hand.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from llmc.runtimes.session.engine import Int64Array

_NS = 1e-9


class GenerationTimings:
    """Clock readings of one generation, all its rows together: a step is over when every row has its token."""

    def __init__(self, max_tokens: int) -> None:
        """Make room for ``max_tokens`` readings, so that none allocates."""
        self._ticks: Int64Array = np.zeros(max_tokens + 1, dtype=np.int64)
        self._count = 0

    def start(self) -> None:
        """Read the clock: the request begins, before the cache is made and the prompt computed."""
        self._ticks[0] = time.perf_counter_ns()
        self._count = 0

    def tick(self) -> None:
        """Read the clock: every row has its next token."""
        self._count += 1
        self._ticks[self._count] = time.perf_counter_ns()

    @property
    def steps(self) -> int:
        """Tokens of the longest row so far."""
        return self._count

    @property
    def token_ns(self) -> Int64Array:
        """``time.perf_counter_ns`` of the start and of each step, [1 + steps] int64."""
        return self._ticks[: self._count + 1]

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request to the first token; None before it."""
        return self._between(0, 1) if self._count else None

    @property
    def itl_s(self) -> npt.NDArray[np.float64]:
        """Seconds between consecutive tokens, [steps - 1] float64; a consumer's own time between them is included."""
        return np.diff(self.token_ns[1:]) * _NS

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None with fewer than two tokens."""
        return self._between(1, self._count) / (self._count - 1) if self._count > 1 else None

    @property
    def total_s(self) -> float | None:
        """End-to-end latency in seconds, request to last token; None before the first token."""
        return self._between(0, self._count) if self._count else None

    def _between(self, first: int, last: int) -> float:
        return float(self._ticks[last] - self._ticks[first]) * _NS
