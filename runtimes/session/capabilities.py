"""What a session may be able to do beside appending tokens: edit its rows, and choose tokens where the logits are.

In: a session, asked once where a batch is made (:attr:`Session.rows`, :attr:`Session.chooser`). Out: the capability,
or None where the runtime has no such thing: rows then stay until the session is reset, and the host chooses.

    prefill ─▶ first tokens ─▶ chooser.begin(rows) ─▶ source.tokens(1), (2), … ─▶ a row ends: source.finish(row)
       ▲                                                                                      │
       └── forward: the new prompt, lengths 0 in the other rows ◀── rows.release(row) ◀───────┘
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llmc.runtimes.session.sampling_params import SamplingParams


class RowEditor(Protocol):
    """Changes what one row of the cache holds, while the others keep what they have: for continuous batching.

    Afterwards every later ``forward`` gives a row's logits as if it had been fed just the tokens that it holds now.
    A session that has an editor takes chunks whose rows differ in length at any time. Every call ends a
    :class:`TokenSource` that is running.
    """

    mixes_lengths: bool
    """Whether many tokens in one row and one in another cost a call nothing more; else it runs row by row.

    A batch lets rows with one token go along with another row's prompt where that is so, and else takes turns.
    """

    def release(self, row: int) -> None:
        """Let a row hold nothing: its length is 0, and another request may begin in it."""
        self.hold(row, row, 0)

    def truncate(self, row: int, length: int) -> None:
        """Let a row keep its first ``length`` tokens; see :meth:`hold`."""
        self.hold(row, row, length)

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Let the row ``target`` hold the first ``length`` tokens of ``source``; see :meth:`hold`."""
        self.hold(target, source, length)

    def hold(self, row: int, source: int, length: int) -> None:
        """Let ``row`` hold the first ``length`` tokens of ``source``, which may be itself, instead of its own.

        Raises:
            EngineError: the source holds fewer, or a recurrent state, which can only be kept whole or dropped, would
                have to go back.
        """


class CacheSpoiler(Protocol):
    """Changes what the cache keeps of a token, so that it shows who reads it."""

    layers: tuple[int, ...]
    """Those that keep keys and values."""

    def spoil(self, position: int, layers: Collection[int], seed: int) -> None:
        """Keep something else of the token at a position of a session's only row, in some layers.

        Keys and values become as large as any in their tensor, in all channels, with signs drawn at random.
        """


@dataclass(frozen=True, slots=True)
class RowState:
    """Where a row stands when tokens are chosen for it.

    Attributes:
        token: Its newest token, which the session has not been fed.
        settings: How its tokens are chosen.
        row_id: The number that its draws depend on, beside seed and step.
        step: Index of the next token among the row's generated ones: 1 where ``token`` is the prefill's.
        steps_left: Most tokens that it still gets, at least 1.
    """

    token: int
    settings: SamplingParams
    row_id: int
    step: int
    steps_left: int


class TokenSource(Protocol):
    """Decode steps that run ahead of the host: it reads each step's tokens and says which rows have ended.

    The session's lengths count what was read, as if the host had decoded: after ``tokens(s)`` a row has been fed its
    :attr:`RowState.token` and the tokens of the steps before ``s``. Whatever else uses the session ends the source;
    tokens that were queued by then can still be read.
    """

    def tokens(self, step: int) -> npt.NDArray[np.int64]:
        """Tokens of a step, counted from 1 in this source, [batch] int64; waits for them.

        A row's token is -1 where the row takes no part, or its logits are not finite.

        Raises:
            EngineError: the source has ended before that step was queued.
        """

    def step_seconds(self, step: int) -> float:
        """Time on the device from the end of the step before, or for step 1 from the beginning, to a step's end."""

    def finish(self, row: int) -> None:
        """Let a row stand still; its length is that of the last step read. The others go on."""

    def close(self) -> None:
        """Queue no more steps, and wait for those that are queued."""


class TokenChooser(Protocol):
    """A session that chooses tokens where the logits are: a step's token is the next step's input."""

    def can_choose(self, settings: Sequence[SamplingParams]) -> bool:
        """Whether rows with these settings can take their tokens here, all in one batch."""

    def begin(self, rows: Sequence[RowState | None]) -> TokenSource:
        """Decode from here, one entry per row of the session; None: the row takes no part and keeps its tokens.

        Settings, steps and budgets may differ from row to row; a row that has had ``steps_left`` tokens stands still.

        Raises:
            EngineError: no row takes part, :meth:`can_choose` says no, or a row has no room for its tokens and, where
                it stands still before others do, for one more.
        """
