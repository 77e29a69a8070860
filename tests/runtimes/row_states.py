"""Rows that stand alike, for tests of what chooses their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmc.runtimes.session.capabilities import RowState, TokenSource
from llmc.runtimes.session.engine import Int64Array, Session
from llmc.runtimes.session.sampling_params import SamplingParams


def begin_loop(
    session: Session,
    first: Int64Array,
    params: SamplingParams | None = None,
    steps: int = 12,
    active: Sequence[bool] | None = None,
) -> TokenSource:
    """A loop from each row's first token to its token ``steps - 1``, all rows alike; their numbers are their ids."""
    takes = [True] * len(first) if active is None else active
    row = partial(RowState, settings=params or SamplingParams(), step=1, steps_left=steps - 1)
    states = [row(token=int(token), row_id=index) if takes[index] else None for index, token in enumerate(first)]
    assert session.chooser is not None
    return session.chooser.begin(states)
