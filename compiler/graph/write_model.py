"""Writes a graph and its weights, one tensor at a time.

In: a model whose initializers may be lazy.
Out: ``model.onnx`` and ``model.onnx.data``. Tensors with the same bytes are stored once: two initializers of
different shape (an embedding table and the output projection tied to it) then point at the same place.

The same model gives the same bytes: tensors are written in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir

from llmc.compiler.base.contract import DATA, GRAPH
from llmc.compiler.graph.lazy_weight import LazyWeight

INLINE_BYTES = 1024
"""Tensors up to this size stay inside model.onnx."""
ALIGNMENT = 4096
"""A page: a runtime that maps the file then maps each tensor by itself."""


def write_model(
    model: ir.Model, directory: Path, progress: Callable[[int, int], None] | None = None, *, weights: bool = True
) -> int:
    """Write ``model`` into ``directory`` (which exists).

    Args:
        model: Not changed.
        directory: Gets ``model.onnx`` and ``model.onnx.data``.
        progress: Called with (bytes written, bytes in all) after each tensor.
        weights: False: the graph alone, which names the places of weights in a data file that is not written.

    Returns:
        Bytes of weights written.
    """
    external: dict[str, tuple[int, int]] = {}
    with (directory / DATA).open("wb") if weights else _NoFile() as file:
        places: dict[tuple[object, ...], tuple[int, int]] = {}
        tensors = {n: v.const_value for n, v in sorted(model.graph.initializers.items()) if v.const_value is not None}
        total = sum(tensor.nbytes for tensor in tensors.values())
        done = 0
        for name, tensor in tensors.items():
            done += tensor.nbytes
            if tensor.nbytes <= INLINE_BYTES:
                continue
            key = tensor.identity() if isinstance(tensor, LazyWeight) else ("object", id(tensor))
            if key not in places:
                file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                start = file.tell()
                if isinstance(file, _NoFile):
                    file.seek(start + tensor.nbytes)
                else:
                    _write(tensor, file)
                places[key] = (start, file.tell() - start)
            if places[key][1] != tensor.nbytes:
                raise AssertionError(f"{name} wrote {places[key][1]} bytes, not {tensor.nbytes}")
            external[name] = places[key]
            if progress is not None:
                progress(done, total)
        written = file.tell()
    onnx.save_model(_proto(model, external), directory / GRAPH)
    return written


class _NoFile:
    """Counts where things would stand."""

    _place = 0

    def seek(self, place: int) -> None:
        self._place = place

    def tell(self) -> int:
        return self._place

    def __enter__(self) -> _NoFile:
        return self

    def __exit__(self, *_: object) -> None: ...


def _write(tensor: ir.TensorProtocol, file: object) -> None:
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())  # type: ignore[attr-defined]


def _proto(model: ir.Model, external: dict[str, tuple[int, int]]) -> onnx.ModelProto:
    """The model with references to the data file; what is lazy is put back afterwards."""
    kept = {name: model.graph.initializers[name].const_value for name in external}
    try:
        for name, (offset, length) in external.items():
            value, tensor = model.graph.initializers[name], kept[name]
            assert tensor is not None
            shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
            value.const_value = ir.ExternalTensor(DATA, offset, length, tensor.dtype, shape=shape, name=name)
        return ir.to_proto(model)
    finally:
        for name, tensor in kept.items():
            model.graph.initializers[name].const_value = tensor
