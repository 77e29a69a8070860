"""Samplers as they are loaded: a graph of each kind that was asked for, with its memory on the device.

In: kinds of samplers and a session's buffers. Out: :class:`SamplerCache`, and inferences bound to addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto

from llmc.compiler.base.errors import EngineError, first_line
from llmc.runtimes.device.graph_io import ELEMENT_TYPES, no_waiting
from llmc.runtimes.device.interface import Array, Buffer, Device
from llmc.runtimes.device.sampler import UNIFORM_STEPS, SamplerKind, build_sampler, settings_of
from llmc.runtimes.device.session_buffers import SessionBuffers
from llmc.runtimes.device.step_recorder import keep_newest
from llmc.runtimes.session.engine import Int64Array

MOST_SAMPLERS = 16
"""Kept for later requests of the same kind; the oldest make room, so that memory is bounded."""
MakeInference = Callable[[bytes], Any]
"""Loads a small graph with the engine's runtime and options."""


@dataclass(eq=False)
class LoadedSampler:
    """A sampler's graph for so many rows, its inputs on the device, and where it was bound to.

    Attributes:
        kind: What it can do.
        batch: Rows.
        inference: The runtime's session.
        buffers: ``active``, and ``settings``, ``uniforms`` and ``step`` where rows draw.
        bindings: By the address of what it writes the tokens to.
    """

    kind: SamplerKind
    batch: int
    inference: Any
    buffers: dict[str, Buffer]
    bindings: dict[int, Any] = field(default_factory=dict)
    answer: Array | None = None


class SamplerCache:
    """Samplers that were loaded for one session, kept for the next request of the same kind."""

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
        self.vocab_size, self._logits_type, self._lengths_type = vocab_size, logits_type, lengths_type
        self._samplers: dict[tuple[SamplerKind, int], LoadedSampler] = {}

    def get(self, kind: SamplerKind, batch: int) -> LoadedSampler:
        """A sampler of a kind for so many rows."""
        if (kind, batch) not in self._samplers:
            model = build_sampler(kind, self.vocab_size, self._logits_type, lengths_type=self._lengths_type)
            sizes = {"active": batch * 4}
            if not kind.greedy:
                settings = settings_of([None] * batch, kind, self.vocab_size)
                sizes |= {"settings": settings.nbytes, "uniforms": UNIFORM_STEPS * batch * 4, "step": 8}
            buffers = {name: self._device.allocate(size) for name, size in sizes.items()}
            for old in keep_newest(self._samplers, MOST_SAMPLERS - 1):
                for buffer in old.buffers.values():
                    self._device.free(buffer)
            self._samplers[kind, batch] = LoadedSampler(kind, batch, self._make(model.SerializeToString()), buffers)
        return self._samplers[kind, batch]

    def most_likely(self, logits: Buffer, batch: int) -> Int64Array:
        """Arg-max of each row of ``logits`` [batch, 1, vocab_size]; [batch] int64, on the host."""
        sampler = self.get(SamplerKind(), batch)
        if sampler.answer is None:
            sampler.buffers |= {name: self._device.allocate(batch * 8) for name in ("ids", "lengths")}
            sampler.answer = self._device.host_array((batch,), np.int64)
        own = sampler.buffers
        self._device.upload(own["active"], np.ones(batch, np.int32))
        self._run(sampler, logits, own["ids"], own["lengths"])
        self._device.download(own["ids"], sampler.answer)
        self._device.wait()
        return np.array(sampler.answer)

    def run(self, sampler: LoadedSampler, memory: SessionBuffers) -> None:
        """Queue the choice of each row's next token behind a decode step, without waiting for it.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        step = memory.named
        self._run(sampler, step["logits"], step["input_ids"], step["lengths"])

    def _run(self, sampler: LoadedSampler, logits: Buffer, ids: Buffer, lengths: Buffer) -> None:
        if ids.address not in sampler.bindings:
            sampler.bindings[ids.address] = self._bind(sampler, logits, ids, lengths)
        try:
            sampler.inference.run_with_iobinding(sampler.bindings[ids.address], no_waiting())
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed to choose a token: {first_line(error)}") from error

    def _bind(self, sampler: LoadedSampler, logits: Buffer, ids: Buffer, lengths: Buffer) -> Any:
        binding, where = sampler.inference.io_binding(), (self._device.ort_name, 0)
        places = {"logits": logits, "ids": ids, "seqlens_k": lengths} | sampler.buffers
        places |= {f"next_{name}": place for name, place in places.items()} | {"next_ids": ids}
        for item in (*sampler.inference.get_inputs(), *sampler.inference.get_outputs()):
            shape = [size if isinstance(size, int) else sampler.batch for size in item.shape]
            bind = binding.bind_output if item.name.startswith("next_") else binding.bind_input
            bind(item.name, *where, ELEMENT_TYPES[item.type][0], shape, places[item.name].address)
        return binding

    @property
    def lengths_bytes(self) -> int:
        """Of one row's length."""
        return 4 if self._lengths_type == TensorProto.INT32 else 8

    def forget_bindings(self) -> None:
        """The session's buffers have moved."""
        for sampler in self._samplers.values():
            sampler.bindings.clear()

    def close(self) -> None:
        """Free everything."""
        for sampler in self._samplers.values():
            for buffer in sampler.buffers.values():
                self._device.free(buffer)
        self._samplers = {}
