"""The decode loop on the device: a step's token is the next step's input, and the host only reads along.

    input_ids ─▶ decoder ─▶ logits ─▶ sampler ─▶ input_ids, lengths + 1, step + 1, log[step]

In: a session after its prefill. Out: :class:`DecodeLoop`: steps are queued ahead of the host, each as one launch of
what was recorded (decoder and sampler together), followed by one small copy of the step's tokens.

The session's lengths count what the host has read: after step s a row holds its prompt and its tokens 0 to s - 1, as
if the host had decoded, and a finished row no more than that. What steps that ran ahead wrote lies behind a row's
length, where no query looks and the next token goes, so a later ``forward`` is right; it ends the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
from onnx import TensorProto

from llmc.compiler.base.errors import EngineError, first_line
from llmc.runtimes.device.interface import Array, Buffer, Device, Moment, Recording
from llmc.runtimes.device.sampler import build_sampler, uniforms
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.engine import Int64Array
from llmc.runtimes.session.sampling_params import SamplingParams

LOOKAHEAD = 4
"""Steps queued beyond the one whose tokens the host waits for: while it looks at a token the device has work."""
SHORTEST_LOG = 64
MOST_RECORDINGS, MOST_SAMPLERS = 16, 16
"""Kept for later requests of the same shape or parameters; the oldest make room, so that memory is bounded."""
ALONE = (0, 0)
"""In the place of (rows, capacity): a sampler that runs without a decode step."""
RUNS_BEFORE_RECORDING = 3
"""The runtime allocates on the first run of a shape, and lays its memory out anew on the second; neither can be
recorded."""

Key = TypeVar("Key")
Value = TypeVar("Value")
MakeInference = Callable[[bytes], Any]
"""Loads a small graph with the engine's runtime and options."""


class Stepper(Protocol):
    """What a loop needs of a session."""

    @property
    def device(self) -> Device:
        """Where it computes."""
        ...

    @property
    def lengths(self) -> Int64Array:
        """Tokens that each row holds, [batch] int64."""
        ...

    def run_step(self) -> None:
        """Queue one decode step, launch by launch."""
        ...

    def step_buffers(self) -> Any:
        """Where a step reads and writes: ``input_ids``, ``lengths``, ``logits``."""
        ...

    def grown(self, lengths: Int64Array) -> None:
        """Told how long the rows are now."""
        ...


@dataclass
class _Sampler:
    """A sampler's graph, its state on the device, and its recordings together with a decode step."""

    inference: Any
    rows: int
    buffers: dict[str, Buffer]
    recordings: dict[tuple[int, int], Recording] = field(default_factory=dict)
    bindings: dict[tuple[int, int], Any] = field(default_factory=dict)
    answer: Any = None


class SamplerCache:
    """Samplers that were made for one session, kept for the next request with the same parameters."""

    def __init__(
        self,
        device: Device,
        make: MakeInference,
        vocab_size: int,
        logits_type: int,
        lengths_type: int = TensorProto.INT32,
    ) -> None:
        """For logits of ``vocab_size`` and ONNX's element type ``logits_type``, and lengths of ``lengths_type``."""
        self._device, self._make = device, make
        self._vocab_size, self._logits_type, self._lengths_type = vocab_size, logits_type, lengths_type
        self._samplers: dict[tuple[SamplingParams, int, int], _Sampler] = {}

    def get(self, params: SamplingParams, batch: int, max_steps: int) -> _Sampler:
        """A sampler for so many rows and at least so many steps."""
        rows = max(SHORTEST_LOG, 1 << (max_steps - 1).bit_length())
        kind = kind_of(params)
        key = (kind, batch, rows)
        if key not in self._samplers:
            sizes_of = (self._vocab_size, self._logits_type, rows)
            model = build_sampler(kind, *sizes_of, lengths_type=self._lengths_type)
            sizes = {"uniforms": rows * batch * 4, "step": 8, "active": batch * 4, "log": rows * batch * 8}
            buffers = {name: self._device.allocate(size) for name, size in sizes.items()}
            for old in keep_newest(self._samplers, MOST_SAMPLERS - 1):
                for buffer in old.buffers.values():
                    self._device.free(buffer)
            self._samplers[key] = _Sampler(self._make(model.SerializeToString()), rows, buffers)
        return self._samplers[key]

    def most_likely(self, logits: Buffer, batch: int) -> Int64Array:
        """Arg-max of each row of ``logits`` [batch, 1, vocab_size]; [batch] int64, on the host."""
        sampler = self.get(SamplingParams(), batch, 1)
        if sampler.answer is None:
            extra = {"ids": batch * 8, "lengths": batch * 8}
            sampler.buffers |= {name: self._device.allocate(size) for name, size in extra.items()}
            sampler.answer = self._device.host_array((batch,), np.int64)
        if ALONE not in sampler.bindings:
            own = sampler.buffers
            sampler.bindings[ALONE] = self._bind(sampler, batch, logits, own["ids"], own["lengths"])
        self._device.upload(sampler.buffers["active"], np.ones(batch, np.int32))
        run(sampler.inference, sampler.bindings[ALONE])
        self._device.download(sampler.buffers["ids"], sampler.answer)
        self._device.wait()
        return np.array(sampler.answer)

    def binding(self, sampler: _Sampler, shape: tuple[int, int], stepper: Stepper) -> Any:
        """The sampler bound to a step's buffers."""
        if shape not in sampler.bindings:
            step = stepper.step_buffers()
            sampler.bindings[shape] = self._bind(sampler, shape[0], step.logits, step.input_ids, step.lengths)
        return sampler.bindings[shape]

    def _bind(self, sampler: _Sampler, batch: int, logits: Buffer, ids: Buffer, lengths: Buffer) -> Any:
        binding = sampler.inference.io_binding()
        where, own = (self._device.ort_name, 0), sampler.buffers
        int32, int64 = TensorProto.INT32, TensorProto.INT64
        names = {item.name for item in sampler.inference.get_inputs()}
        inputs = {
            "logits": (logits, self._logits_type, (batch, 1, self._vocab_size)),
            "uniforms": (own["uniforms"], TensorProto.FLOAT, (sampler.rows, batch)),
            "step": (own["step"], int64, (1,)),
            "active": (own["active"], int32, (batch,)),
            "seqlens_k": (lengths, self._lengths_type, (batch,)),
            "log": (own["log"], int64, (sampler.rows, batch)),
        }
        for name, (buffer, kind, shape) in inputs.items():
            if name in names:
                binding.bind_input(name, *where, kind, shape, buffer.address)
        binding.bind_output("next_ids", *where, int64, (batch, 1), ids.address)
        for name in ("step", "seqlens_k", "log"):
            buffer, kind, shape = inputs[name]
            binding.bind_output(f"next_{name}", *where, kind, shape, buffer.address)
        return binding

    @property
    def lengths_bytes(self) -> int:
        """Of one row's length."""
        return 4 if self._lengths_type == TensorProto.INT32 else 8

    def forget_recordings(self) -> None:
        """The session's buffers have moved."""
        for sampler in self._samplers.values():
            sampler.recordings.clear()
            sampler.bindings.clear()

    def close(self) -> None:
        """Free everything."""
        for sampler in self._samplers.values():
            for buffer in sampler.buffers.values():
                self._device.free(buffer)
        self._samplers = {}


class DecodeLoop:
    """Token 1 and on of a generation whose token 0 the prefill gave; made by a session's ``begin``."""

    def __init__(
        self, stepper: Stepper, samplers: SamplerCache, shape: tuple[int, int], rows: Sequence[RowState | None]
    ) -> None:
        """Bring the sampler's state to the device; ``shape`` is (rows, capacity)."""
        batch, self._device = shape[0], stepper.device
        self._stepper, self._shape = stepper, shape
        self._ends: Int64Array = np.array([0 if row is None else row.steps_left for row in rows], np.int64)
        """The last step in which each row takes part."""
        self._last = int(self._ends.max())
        self._sampler = samplers.get(next(row.settings for row in rows if row is not None), batch, self._last + 1)
        self._active: Array = np.zeros(0, np.bool_)
        self._activate(1)
        self._device.upload(self._sampler.buffers["step"], np.ones(1, np.int64))
        if "uniforms" in {item.name for item in self._sampler.inference.get_inputs()}:
            self._device.upload(self._sampler.buffers["uniforms"], uniforms(rows, self._sampler.rows))
        self._recording = self._record(samplers)
        self._tokens: Int64Array = self._device.host_array((self._last + 1, batch), np.int64)
        self._moments: list[Moment] = [self._device.mark()]
        self._queued = self._read = 0
        self._held = stepper.lengths
        self.ended = False

    def _activate(self, step: int) -> None:
        """Bring to the device which rows take part in a step, where that has changed."""
        active = self._ends >= step
        if not np.array_equal(active, self._active):
            self._active = active
            self._device.upload(self._sampler.buffers["active"], active.astype(np.int32))

    def _record(self, samplers: SamplerCache) -> Recording:
        binding = samplers.binding(self._sampler, self._shape, self._stepper)

        def step() -> None:
            self._stepper.run_step()
            run(self._sampler.inference, binding)

        if self._shape not in self._sampler.recordings:
            buffers = self._stepper.step_buffers()
            kept = [
                (buffer, self._device.host_array((size,), np.uint8))
                for buffer, size in (
                    (buffers.input_ids, self._shape[0] * 8),
                    (buffers.lengths, self._shape[0] * samplers.lengths_bytes),
                    (self._sampler.buffers["step"], 8),
                )
            ]
            for buffer, array in kept:
                self._device.download(buffer, array)
            for _ in range(RUNS_BEFORE_RECORDING):
                step()
                self._device.wait()
                # Each run is the first step again: a second one might write behind the cache's last slot.
                for buffer, array in kept:
                    self._device.upload(buffer, array)
            keep_newest(self._sampler.recordings, MOST_RECORDINGS - 1)
            self._sampler.recordings[self._shape] = self._device.record(step)
        return self._sampler.recordings[self._shape]

    def tokens(self, step: int) -> Int64Array:
        """Tokens of a step, [batch] int64; waits for them, and queues later steps first. See :class:`TokenSource`."""
        if not self.ended:
            self.queue(min(step + LOOKAHEAD, self._last))
        elif step > self._queued:
            raise EngineError(
                "this decode loop has ended: the session was closed, reset or used since; begin another"
            )
        self._moments[step].wait()
        if step > self._read and not self.ended:
            self._read = step
            self._stepper.grown(self._held + np.minimum(step, self._ends))
        return np.array(self._tokens[step])

    def queue(self, last: int) -> None:
        """Queue the steps up to ``last``, which are not queued yet."""
        width = self._shape[0] * 8
        while self._queued < last:
            self._queued += 1
            self._activate(self._queued)
            self._recording.launch()
            log, row = self._sampler.buffers["log"], self._tokens[self._queued]
            self._device.download(log, row, self._queued * width)
            self._moments.append(self._device.mark())

    def finish(self, row: int) -> None:
        """Let a row stand still from the next step that is queued; its length is that of the last step read."""
        self._ends[row] = min(self._read, self._ends[row])

    def step_seconds(self, step: int) -> float:
        """Time on the device from the end of the step before, or for step 1 from the loop's start, to its end."""
        return self._moments[step].seconds_since(self._moments[step - 1])

    def close(self) -> None:
        """Queue no more steps, and wait for those that are queued; their tokens can still be read."""
        self.ended = True
        self._device.wait()


def kind_of(params: SamplingParams) -> SamplingParams:
    """What of the parameters is in a sampler's graph: the seed is in the uniforms."""
    return SamplingParams(params.temperature, params.top_k, params.top_p, params.min_p)


def keep_newest(kept: dict[Key, Value], count: int) -> list[Value]:
    """Drop the oldest entries beyond ``count``; returns what was dropped."""
    return [kept.pop(key) for key in list(kept)[: max(0, len(kept) - count)]]


def run(inference: Any, binding: Any) -> None:
    """Queue a small graph without waiting for it.

    Raises:
        EngineError: ONNX Runtime failed.
    """
    try:
        inference.run_with_iobinding(binding, _no_waiting())
    except Exception as error:
        raise EngineError(f"ONNX Runtime failed to choose a token: {first_line(error)}") from error


@cache
def _no_waiting() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options
