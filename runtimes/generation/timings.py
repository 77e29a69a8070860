"""When each token of a request came: raw clock readings in, the field's terms out.

The terms are those of vLLM and aiperf (aiperf calls TPOT ``inter_token_latency``):

    request ──── TTFT ────▶ first token ─ ITL ─▶ second ─ ITL ─▶ … ─ ITL ─▶ last
    └────────────────────────── end-to-end latency ─────────────────────────────┘
    TPOT = (end-to-end latency - TTFT) / (output tokens - 1)

Tokenization is not part of them: the clock starts with token ids in hand, and runs while a request waits for a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_NS = 1e-9


class Timings:
    """Clock readings of one request.

    Attributes:
        ticks: ``time.perf_counter_ns`` of its arrival and of each of its tokens.
    """

    def __init__(self, ticks: Sequence[int] = ()) -> None:
        """With readings made before."""
        self.ticks = list(ticks)

    def tick(self, moment: int) -> None:
        """Note the request's arrival, or its next token."""
        self.ticks.append(moment)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the arrival to the first token; None before it."""
        return self._between(0, 1) if len(self.ticks) > 1 else None

    @property
    def itl_s(self) -> npt.NDArray[np.float64]:
        """Seconds between consecutive tokens, [tokens - 1]; a consumer's own time between them is included."""
        return np.diff(np.array(self.ticks[1:], np.float64)) * _NS

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None with fewer than two tokens."""
        return self._between(1, -1) / (len(self.ticks) - 2) if len(self.ticks) > 2 else None

    @property
    def total_s(self) -> float | None:
        """End-to-end latency in seconds, arrival to last token; None before the first token."""
        return self._between(0, -1) if len(self.ticks) > 1 else None

    def _between(self, first: int, last: int) -> float:
        return (self.ticks[last] - self.ticks[first]) * _NS
