"""Where the windows of attention end, whatever rounding does to logits.

In: a session that can spoil its cache, the windows that layers should have, a text. Out: how many of them are not so
long.

A token more or less in a window changes logits less than weights of a few bits do. What lies in the cache beyond all
that a token may see changes nothing at all, though, not a bit, and what the last slot within holds does:

    0   1   2   3   4   5   6   7   8  ▶ token 9, window 5
                    ✗   ✓   ✓   ✓   ✓            ✗ spoiled: the same logits       ✓ spoiled: others
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from llmc.compiler.artifact.golden import IntArray
from llmc.runtimes.session.engine import FloatArray, Session

STEPS = (1, 2)
"""Tokens of a call: kernels may have a way of their own for a single one."""

DRAWS = 12
"""How often a slot is spoiled before it counts as unseen: all heads may turn away from a key that is drawn."""


def wrong_windows(session: Session, windows: Sequence[int | None], tokens: IntArray, chunk: int) -> int | None:
    """How many windows have another length than they should.

    Args:
        session: It is reset.
        windows: Of each layer, tokens that one sees, itself included; None: all.
        tokens: A text, [length] int64.
        chunk: Tokens that are read at once.

    Returns:
        None where nothing can be seen: the text or the engine's context is too short, or the session cannot be
        asked, since it has no means, or layers without a cache of their own.

    Raises:
        EngineError: the session failed.
    """
    most = min(len(tokens), session.info.max_context) - max(STEPS)
    sizes = sorted({size for size in windows if size and 1 < size <= most})
    if not sizes:
        return None
    spoiler, rows = session.spoiler, session.rows
    if spoiler is None or rows is None or set(spoiler.layers) != set(range(len(windows))):
        return None
    length, seeds, wrong = sizes[-1], itertools.count(), set[int]()
    session.reset(1, length + max(STEPS))
    for start in range(0, length, chunk):
        session.forward(tokens[None, start : min(start + chunk, length)])

    def logits(count: int) -> FloatArray:
        last = session.forward(tokens[None, length : length + count]).host()[0, -1].copy()
        rows.truncate(0, length)
        return np.asarray(last)

    for size in sizes:
        layers = [layer for layer, window in enumerate(windows) if window == size]
        for count in STEPS:
            before = logits(count)
            # The first token of a call sees as far as length - size + 1.
            spoiler.spoil(length - size, layers, next(seeds))
            if not np.array_equal(before, logits(count)):
                wrong.add(size)
                continue
            # A second token does not see that far itself: a later layer shows what the first one saw.
            for layer in layers if count == 1 else [layer for layer in layers if layer < len(windows) - 1]:
                for _ in range(DRAWS):
                    spoiler.spoil(length - size + 1, [layer], next(seeds))
                    after = logits(count)
                    if not np.array_equal(before, after):
                        break
                else:
                    wrong.add(size)
                before = after
    return len(wrong)
