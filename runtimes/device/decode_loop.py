"""The decode loop on the device: a step's token is the next step's input, and the host only reads along.

    input_ids ─▶ decoder ─▶ logits ─▶ sampler ─▶ input_ids, lengths + 1      and a copy of the tokens to the host

In: a session after its prefill. Out: :class:`DeviceChooser`, whose :class:`DecodeLoop` queues steps ahead of the
host, each as one launch of what was recorded (decoder and sampler together) and one small copy of its tokens.

Which rows take part in a step, what they ask for and what they draw is brought to the device between two steps, in
the queue's order; so one recording serves any mix of rows, and a loop that begins with others records nothing anew.

The session's lengths count what the host has read: after step s a row holds what it held and its tokens 0 to s - 1,
as if the host had decoded, and a finished row no more than that. What steps that ran ahead wrote lies behind a row's
length, where no query looks and the next token goes, so a later ``forward`` is right; it ends the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.interface import Array, Moment
from llmc.runtimes.device.sampler import UNIFORM_STEPS, kind_of, settings_of, supports, uniforms
from llmc.runtimes.device.sampler_cache import LoadedSampler, SamplerCache
from llmc.runtimes.device.step_recorder import StepRecorder
from llmc.runtimes.session.capabilities import RowState, TokenChooser, TokenSource
from llmc.runtimes.session.engine import Int64Array
from llmc.runtimes.session.sampling_params import SamplingParams

LOOKAHEAD = 4
"""Steps queued beyond the one whose tokens the host waits for: while it looks at a token the device has work."""


class DeviceChooser(TokenChooser):
    """Begins decode loops of a session."""

    def __init__(self, recorder: StepRecorder, samplers: SamplerCache) -> None:
        """Share the session's parts."""
        self._recorder, self._samplers, self._rows = recorder, samplers, recorder.rows

    def can_choose(self, settings: Sequence[SamplingParams]) -> bool:
        """Whether there are samplers for all of these rows; any mix of what is supported runs together."""
        return all(map(supports, settings))

    def begin(self, rows: Sequence[RowState | None]) -> DecodeLoop:
        """Go on from the prefill; a loop before this one ends. See :meth:`TokenChooser.begin`."""
        held, states = self._rows.lengths, [row for row in rows if row is not None]
        if not self.can_choose([row.settings for row in states]):
            raise EngineError("the device has no sampler for what a row asks for; choose its tokens on the host")
        if not states or len(rows) != len(held):
            raise EngineError(
                f"{len(states)} of {len(rows)} rows are to go on in a session of {len(held)} rows; give an entry per "
                "row, and one at least that takes part"
            )
        # A row that stands still while others go on has its next slot written, too.
        left = np.array([0 if row is None else row.steps_left for row in rows])
        needed = held + np.minimum(left + 1, left.max())
        if int(needed.max()) > self._rows.capacity:
            row = int(needed.argmax())
            raise EngineError(
                f"row {row} holds {held[row]} tokens and would hold {needed[row]}, but the cache has room for "
                f"{self._rows.capacity}; reset the session with a larger capacity"
            )
        tokens = np.array([[0 if row is None else row.token] for row in rows], np.int64)
        self._recorder.memory.upload(tokens, held, np.ones_like(held))
        sampler = self._samplers.get(kind_of([row.settings for row in states], self._samplers.vocab_size), len(rows))
        return DecodeLoop(self._recorder, self._samplers, sampler, rows)


class DecodeLoop(TokenSource):
    """Steps from where the rows stand; made by :meth:`DeviceChooser.begin`."""

    def __init__(
        self,
        recorder: StepRecorder,
        samplers: SamplerCache,
        sampler: LoadedSampler,
        states: Sequence[RowState | None],
    ) -> None:
        """Bring the sampler's inputs to the device; the decoder's are there."""
        self._device, self._sampler, self._memory = recorder.device, sampler, recorder.memory
        self._rows, self._states, self._turn = recorder.rows, states, recorder.rows.take_turn()
        self._held = self._rows.lengths.copy()
        self._ends: Int64Array = np.array([0 if row is None else row.steps_left for row in states], np.int64)
        """The last step in which each row takes part."""
        self._last = int(self._ends.max())
        self._same_until = self._drawn = self._queued = self._read = 0
        if not sampler.kind.greedy:
            self._upload("settings", settings_of(states, sampler.kind, samplers.vocab_size))
        self._prepare(1)

        def step() -> None:
            recorder.run_step()
            samplers.run(sampler, recorder.memory)

        batch, named = len(states), recorder.memory.named
        changed = [(named["input_ids"], batch * 8), (named["lengths"], batch * samplers.lengths_bytes)]
        if not sampler.kind.greedy:
            changed.append((sampler.buffers["step"], 8))
        self._recording = recorder.recorded(sampler, step, changed)
        self._tokens: Int64Array = self._device.host_array((self._last + 1, batch), np.int64)
        self._moments: list[Moment] = [self._device.mark()]

    def _upload(self, name: str, array: Array) -> None:
        self._device.upload(self._sampler.buffers[name], array)

    def _prepare(self, step: int) -> None:
        """Bring to the device which rows take part in a step, and what they draw, where that is not there yet."""
        if step > self._same_until:
            active = self._ends >= step
            self._upload("active", active.astype(np.int32))
            self._same_until = int(self._ends[active].min(initial=self._last))
        if step > self._drawn and not self._sampler.kind.greedy:
            self._upload("uniforms", uniforms(self._states, self._drawn))
            self._upload("step", np.zeros(1, np.int64))
            self._drawn += UNIFORM_STEPS

    @property
    def ended(self) -> bool:
        """Whether the session was used otherwise since, or the loop was closed."""
        return self._rows.turn != self._turn

    def tokens(self, step: int) -> Int64Array:
        """Tokens of a step, [batch] int64; waits for them, and queues later steps first. See :class:`TokenSource`."""
        if not self.ended:
            self._queue(min(step + LOOKAHEAD, self._last))
        elif step > self._queued:
            raise EngineError(
                "this decode loop has ended: the session was closed, reset or used since; begin another"
            )
        self._moments[step].wait()
        if step > self._read and not self.ended:
            self._read = step
            self._rows.lengths = self._held + np.minimum(step, self._ends)
        return np.array(self._tokens[step])

    def _queue(self, last: int) -> None:
        """Queue the steps up to ``last``, which are not queued yet."""
        while self._queued < last:
            self._queued += 1
            self._prepare(self._queued)
            self._recording.launch()
            self._device.download(self._memory.named["input_ids"], self._tokens[self._queued])
            self._moments.append(self._device.mark())

    def finish(self, row: int) -> None:
        """Let a row stand still from the next step that is queued; its length is that of the last step read."""
        self._ends[row], self._same_until = min(self._read, self._ends[row]), 0

    def step_seconds(self, step: int) -> float:
        """Time on the device from the end of the step before, or for step 1 from the loop's start, to its end."""
        return self._moments[step].seconds_since(self._moments[step - 1])

    def close(self) -> None:
        """Queue no more steps, and wait for those that are queued; their tokens can still be read."""
        if not self.ended:
            self._rows.take_turn()
        self._device.wait()
