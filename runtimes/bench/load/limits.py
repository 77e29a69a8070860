"""Limits that a request has to meet to count as good, as they are typed.

In: ``ttft=500ms,tpot=50ms,e2e=10s``. Out: :class:`Limits`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmc.compiler.base.errors import UsageError

_FORM = re.compile(r"(ttft|tpot|e2e|e2el)\s*=\s*(\d+\.?\d*|\.\d+)\s*(ms|s)", re.ASCII)
_ADVICE = "write it as ttft=500ms,tpot=50ms,e2e=10s"


@dataclass(frozen=True)
class Limits:
    """Most milliseconds of one request; None: no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Read limits; ``e2el`` is vLLM's name of ``e2e``.

        Raises:
            UsageError: one that is none, stands there twice, or is zero.
        """
        found: dict[str, float] = {}
        for part in text.split(","):
            match = _FORM.fullmatch(part.strip())
            if match is None:
                raise UsageError(f"--slo {text!r}: {part.strip()!r} is no limit; {_ADVICE}")
            name, value = match[1].removesuffix("l") + "_ms", float(match[2]) * (1.0 if match[3] == "ms" else 1e3)
            if name in found or value == 0:
                raise UsageError(f"--slo {text!r}: {part.strip()!r} stands there twice or is zero; {_ADVICE}")
            found[name] = value
        return cls(**found)

    def meets(self, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None) -> bool:
        """Whether a request with these figures met every limit; an answer of one token has no TPOT to miss."""
        pairs = ((self.ttft_ms, ttft_ms), (self.tpot_ms, tpot_ms), (self.e2e_ms, e2e_ms))
        return ttft_ms is not None and all(limit is None or value is None or value <= limit for limit, value in pairs)
