"""Logits compared whole or as chunks in step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from llmc.runtimes.evaluation.perplexity import LogitsComparison, Quality


def compare_logits(reference: Any, candidate: Any, targets: Any = None) -> Quality:
    """Quality of ``candidate``, [positions, vocab] or an iterable of such chunks, as ``reference`` is."""
    comparison, done = LogitsComparison(), 0
    for one, other in zip(_chunks(reference), _chunks(candidate), strict=True):
        comparison.update(one, other, None if targets is None else targets[done : done + len(one)])
        done += len(one)
    return comparison.result()


def _chunks(logits: Any) -> Iterable[Any]:
    return [logits] if isinstance(logits, np.ndarray) else logits
