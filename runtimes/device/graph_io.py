"""An engine's graph bound to a device's memory.

In: ONNX Runtime's session and buffers. Out: :class:`GraphIO`, a :class:`~llmc.runtimes.device.decoder.Decoder`, which
knows the graph's inputs and outputs and runs it on addresses, without a copy and without waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from llmc.compiler.base.contract import PAST
from llmc.compiler.base.errors import EngineError, first_line
from llmc.runtimes.device.decoder import CacheTensor, Traits, Values
from llmc.runtimes.device.interface import Buffer, Device

TOTAL = "total_sequence_length"
ELEMENT_TYPES: Mapping[str, tuple[int, np.dtype[Any]]] = {
    f"tensor({name})": (number := TensorProto.DataType.Value(name.upper()), helper.tensor_dtype_to_np_dtype(number))
    for name in ("float", "float16", "bfloat16", "float8e4m3fn", "int8", "int32", "int64")
}
"""ONNX Runtime's name of an element type -> ONNX's number and NumPy's type."""


TRAITS = Traits("seqlens_k", np.dtype(np.int32), ends_with_chunk=True, ragged_chunks=False)
"""Of a graph with GroupQueryAttention, which takes one row where several tokens meet a past."""


class GraphIO:
    """A loaded graph whose inputs and outputs are bound to a device's addresses: a :class:`Decoder`."""

    traits = TRAITS

    def __init__(self, inference: Any, device: Device) -> None:
        """Read the graph's interface.

        Raises:
            EngineError: it is no graph with a shared cache and lengths as inputs.
        """
        self._inference, self._device = inference, device
        self._types = {
            item.name: ELEMENT_TYPES[item.type] for item in (*inference.get_inputs(), *inference.get_outputs())
        }
        self._names = {item.name for item in inference.get_inputs()}
        if TOTAL not in self._names:
            raise EngineError(f"the graph has no input {TOTAL}; build the engine again")
        past = [item for item in inference.get_inputs() if item.name.startswith(PAST)]
        self.cache = [cache_tensor(item) for item in past]
        for item, tensor in zip(past, self.cache, strict=True):
            if len(tensor.dims) != 3 or tensor.axis != 2 or tensor.dims.count(None) > 1:
                raise EngineError(f"{item.name} of shape {item.shape} is no cache of keys or values")
        self.logits_type = self._types["logits"][1]

    def load(self, capacity: int) -> None:
        """Nothing: one graph runs with any."""

    def bind(self, values: Values, cache: Mapping[str, Buffer], batch: int, capacity: int, total: int) -> Any:
        """A binding of inputs and outputs to addresses; ``total``, the longest row, is read on the host."""
        binding = self._inference.io_binding()
        where = (self._device.ort_name, 0)
        for tensor in self.cache:
            address, shape = cache[tensor.past].address, tensor.shape(batch, capacity)
            binding.bind_input(tensor.past, *where, tensor.element_type, shape, address)
            binding.bind_output(tensor.present, *where, tensor.element_type, shape, address)
        self.rebind(binding, values, total)
        return binding

    def rebind(self, binding: Any, values: Values, total: int) -> None:
        """Give some inputs and outputs of a binding another shape or address; the cache stays bound."""
        import onnxruntime

        where = (self._device.ort_name, 0)
        for name, (buffer, shape) in values.items():
            if name in self._names:
                binding.bind_input(name, *where, self._types[name][0], shape, buffer.address)
            elif name in self._types:
                binding.bind_output(name, *where, self._types[name][0], shape, buffer.address)
        binding.bind_ortvalue_input(TOTAL, onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(total, np.int32)))

    def run(self, binding: Any) -> None:
        """Queue the graph."""
        try:
            self._inference.run_with_iobinding(binding, no_waiting())
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed: {first_line(error)}") from error

    def close(self) -> None:
        """Let go of the graph."""
        self._inference = None


@cache
def no_waiting() -> Any:
    """Options of a run that is only queued."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def cache_tensor(item: Any) -> CacheTensor:
    """What ONNX Runtime says of an input of the cache."""
    dims = tuple(size if isinstance(size, int) else None for size in item.shape[1:])
    return CacheTensor(item.name, dims, *ELEMENT_TYPES[item.type])
