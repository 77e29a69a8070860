"""Engines bound to a device's memory.

In: engine files, a plan of which serves which length, a device. Out: :class:`TensorRTDecoder`, the
:class:`~llmc.runtimes.device.decoder.Decoder` that a session runs.

One engine is loaded at a time, since each carries the weights. It has an execution context for prefill and one for
decode, which share their working memory: they never run at once. Past and present have one address, as the cache's
update asks.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

from llmc.compiler.base.contract import ENGINE_GRAPH, INPUT_IDS, LOGITS, PAST, PAST_LENGTHS
from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.decoder import CacheTensor, Traits, Values
from llmc.runtimes.device.interface import Buffer, Device
from llmc.runtimes.memory.capacity_plan import CapacityPlan
from llmc.runtimes.tensorrt.bindings import Library
from llmc.runtimes.tensorrt.builder import DECODE, PREFILL
from llmc.runtimes.tensorrt.engine_graph import SLOTS, read_engine_graph
from llmc.runtimes.tensorrt.file_cache import FileCache

ELEMENT_TYPES: Mapping[str, tuple[int, np.dtype[Any]]] = {
    "FLOAT": (TensorProto.FLOAT, np.dtype(np.float32)),
    "HALF": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "BF16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
"""TensorRT's name of an element type -> ONNX's number and NumPy's type."""
DIAGNOSES: Mapping[str, str] = {
    "VERSION_MISMATCH": "another version of the library built it; build it again",
    "UNSUPPORTED_CC": "it was not built for this kind of GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "the file is damaged; build it again",
    "CUDA_ERROR": "the NVIDIA driver does not answer",
}
"""What the library finds wrong with an engine -> in words."""


Bound = dict[str, tuple[int, tuple[int, ...]]]
"""Of one run: name -> address and shape."""


@dataclass
class _Loaded:
    """One engine in memory, its contexts by profile, and their working memory."""

    capacity: int
    engine: Any
    contexts: dict[int, Any]
    memory: Buffer
    inputs: frozenset[str]
    outputs: frozenset[str]
    kernels: Any
    kept: FileCache | None


class TensorRTDecoder:
    """The engines of one artifact; see :class:`llmc.runtimes.device.decoder.Decoder`."""

    def __init__(
        self, library: Library, directory: Path, plan: CapacityPlan, device: Device, kernels: FileCache | None = None
    ) -> None:
        """Load the engine of the shortest cache.

        Args:
            library: TensorRT or TensorRT-RTX.
            directory: Where the engine files are.
            plan: Which engine serves which length.
            device: Whose queue it computes on.
            kernels: Stem of the files in which compiled kernels are kept, one per engine; None: nowhere.

        Raises:
            EngineError: the library refuses the engine.
        """
        self._library, self._directory, self._plan, self._device = library, directory, plan, device
        self._kernels = kernels
        self._runtime = library.module.Runtime(library.logger)
        self._loaded: _Loaded | None = None
        self.traits = Traits(
            PAST_LENGTHS,
            np.dtype(np.int64),
            ends_with_chunk=False,
            ragged_chunks=True,
            capacities=plan.capacities,
            max_chunk=plan.chunk,
        )
        self.load(plan.capacities[0])
        self.cache = [
            self._cache_tensor(name) for name in sorted(self._here.inputs, key=_by_layer) if name.startswith(PAST)
        ]
        self.logits_element, self.logits_type = self._element_type(LOGITS)
        self.vocab_size = int(self._here.engine.get_tensor_shape(LOGITS)[-1])

    def load(self, capacity: int) -> None:
        """Let the engine of this capacity be the one that is loaded; the one before it goes first.

        Raises:
            EngineError: the file is not there, or the library refuses it.
        """
        if self._loaded is not None and self._loaded.capacity == capacity:
            return
        self._unload()
        bucket = self._plan.bucket(capacity)
        try:
            with _mapped(self._directory / bucket.file) as content:
                engine = self._deserialize(bucket.file, content)
        except (OSError, ValueError) as error:
            raise EngineError(f"{bucket.file} cannot be read: {error}; build the engine again") from error
        library = self._library
        if self._plan.stripped:
            graph = read_engine_graph(self._directory / ENGINE_GRAPH)
            library.put_weights(engine, graph.at_capacity(capacity).SerializeToString(), str(graph.path))
        kept = None
        if self._kernels is not None:
            kept = FileCache(self._kernels.path.with_name(f"{self._kernels.path.name}-{capacity}.kernels"))
        kernels = library.make_runtime_cache(engine, kept.read() if kept is not None else b"")
        contexts = {
            profile: library.make_context(engine, profile, self._device.stream, kernels, profile == DECODE)
            for profile in (PREFILL, DECODE)
        }
        memory = self._device.allocate(max(1, int(engine.device_memory_size_v2)))
        for context in contexts.values():
            context.set_device_memory(memory.address, memory.nbytes)
        names = frozenset(engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
        read = library.module.TensorIOMode.INPUT
        inputs = frozenset(name for name in names if engine.get_tensor_mode(name) == read)
        self._loaded = _Loaded(capacity, engine, contexts, memory, inputs, names - inputs, kernels, kept)

    def bind(self, values: Values, cache: Mapping[str, Buffer], batch: int, capacity: int, total: int) -> Bound:
        """Addresses of a run; see :class:`~llmc.runtimes.device.decoder.Decoder`."""
        bound: Bound = {}
        for tensor in self.cache:
            place = (cache[tensor.past].address, tensor.shape(batch, capacity))
            bound[tensor.past] = bound[tensor.present] = place
        self.rebind(bound, values, total)
        return bound

    def rebind(self, binding: Bound, values: Values, total: int) -> None:
        """Give some inputs and outputs another shape or address."""
        known = self._here.inputs | self._here.outputs
        for name, (buffer, shape) in values.items():
            if name in known:
                binding[name] = (buffer.address, shape)

    def run(self, binding: Bound) -> None:
        """Queue the engine, with the decode profile where every row has one token.

        Raises:
            EngineError: TensorRT failed.
        """
        here = self._here
        (_, (_, tokens)) = binding[INPUT_IDS]
        context = here.contexts[DECODE if tokens == 1 else PREFILL]
        self._library.messages.clear()
        for name, (address, shape) in binding.items():
            done = context.set_tensor_address(name, address)
            if name in here.inputs:
                done = done and context.set_input_shape(name, shape)
            if not done:
                why = self._library.messages.reason()
                raise EngineError(f"{self._library.title} does not take {name} of shape {list(shape)}: {why}")
        if not context.execute_async_v3(self._device.stream):
            raise EngineError(f"{self._library.title} failed: {self._library.messages.reason()}")

    def close(self) -> None:
        """Free the engine; kernels that were compiled are kept for the next time."""
        self._unload()
        self._runtime = None

    @property
    def _here(self) -> _Loaded:
        if self._loaded is None:
            raise EngineError("no engine is loaded: the session was closed, or the last one could not be loaded")
        return self._loaded

    def _unload(self) -> None:
        if self._loaded is None:
            return
        self._device.wait()
        loaded, self._loaded = self._loaded, None
        if loaded.kernels is not None and loaded.kept is not None:
            loaded.kept.write(bytes(loaded.kernels.serialize()))
        loaded.contexts.clear()
        loaded.engine = None
        self._device.free(loaded.memory)

    def _deserialize(self, file: str, content: memoryview) -> Any:
        library = self._library
        library.messages.clear()
        if hasattr(self._runtime, "get_engine_validity"):
            validity, diagnostics = self._runtime.get_engine_validity(content)
            if validity == library.module.EngineValidity.INVALID:
                why = "; ".join(_diagnoses(library.module, int(diagnostics))) or library.messages.reason()
                raise EngineError(f"{library.title} cannot run {file} here: {why}")
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise EngineError(f"{library.title} refuses {file}: {library.messages.reason()}")
        return engine

    def _cache_tensor(self, name: str) -> CacheTensor:
        element_type, dtype = self._element_type(name)
        shape = [int(size) for size in self._here.engine.get_tensor_shape(name)]
        if len(shape) != 4 or shape[SLOTS] != self._here.capacity:
            raise EngineError(f"{name} of shape {shape} is no cache of {self._here.capacity} slots; build again")
        return CacheTensor(name, (shape[1], None, shape[3]), element_type, dtype)

    def _element_type(self, name: str) -> tuple[int, np.dtype[Any]]:
        kind = str(self._here.engine.get_tensor_dtype(name)).rpartition(".")[2]
        if kind not in ELEMENT_TYPES:
            raise EngineError(f"{name} of type {kind} cannot be read; build the engine again")
        return ELEMENT_TYPES[kind]


@contextmanager
def _mapped(path: Path) -> Iterator[memoryview]:
    """A file's content without a copy of it in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            yield view
        finally:
            view.release()


def _by_layer(name: str) -> tuple[int, str]:
    number = re.search(r"\.(\d+)\.", name)
    return (int(number[1]) if number else -1, name)


def _diagnoses(module: Any, bits: int) -> Iterator[str]:
    """Each flag that is set, in words."""
    for name, words in DIAGNOSES.items():
        flag = getattr(getattr(module, "EngineInvalidityDiagnostics", None), name, None)
        if flag is not None and bits & int(flag):
            yield words
