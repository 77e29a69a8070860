"""Writes a graph and its weights, a few rows at a time.

In: a model whose initializers may be lazy.
Out: ``model.onnx`` and ``model.onnx.data``. Tensors with the same bytes are stored once: two initializers of
different shape (an embedding table and the output projection tied to it) then point at the same place. The tensors
of a quantized weight are written side by side, so that its rows are read once.

The same model gives the same bytes: tensors lie in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from llmc.compiler.base.contract import DATA, GRAPH
from llmc.compiler.graph.freed_memory import keep_freed_memory
from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.quantized_weight import QuantizedPart, pieces_of

INLINE_BYTES = 1024
"""Tensors up to this size stay inside model.onnx."""
ALIGNMENT = 4096
"""A page: a runtime that maps the file then maps each tensor by itself …"""
PAGED_BYTES, SMALL_ALIGNMENT = 1 << 17, 64
"""… from this size on; smaller ones, as the scales of packed weights, begin at lines of the processor's cache."""
Tensors = Mapping[str, ir.TensorProtocol]


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
    keep_freed_memory()
    tensors = {n: v.const_value for n, v in sorted(model.graph.initializers.items()) if v.const_value is not None}
    starts, size = _places(tensors)
    groups: dict[tuple[object, ...], dict[str, ir.TensorProtocol]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(_group(tensor), {})[name] = tensor
    with (directory / DATA).open("wb") if weights else nullcontext() as file:
        done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
        for name, tensor in tensors.items():
            done += tensor.nbytes
            if file is not None:
                _write(groups.pop(_group(tensor), {}), starts, file)
            if progress is not None and name in starts:
                progress(done, total)
    for name, tensor in tensors.items():
        # What stays in the graph is read here, where its errors are said as they are.
        if name not in starts and isinstance(tensor, LazyWeight):
            tensor.tobytes()
    onnx.save_model(referring_proto(model, starts, DATA), directory / GRAPH)
    return size


def _identity(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    return tensor.identity() if isinstance(tensor, LazyWeight) else ("object", id(tensor))


def _group(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Equal for tensors that are written at once."""
    return tensor.weight.identity() if isinstance(tensor, QuantizedPart) else _identity(tensor)


def _places(tensors: Tensors) -> tuple[dict[str, int], int]:
    """Where in the data file each tensor begins that does not stay in the graph; the file's size."""
    known: dict[tuple[object, ...], tuple[int, int]] = {}
    starts: dict[str, int] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.nbytes > INLINE_BYTES:
            step = ALIGNMENT if tensor.nbytes >= PAGED_BYTES else SMALL_ALIGNMENT
            start = -(-end // step) * step
            starts[name], length = known.setdefault(_identity(tensor), (start, tensor.nbytes))
            _require_length(name, tensor, length)
            end = max(end, starts[name] + length)
    return starts, end


def _write(group: Tensors, starts: Mapping[str, int], file: BinaryIO) -> None:
    """Write tensors of the same bytes, or the parts of a quantized weight; small parts keep theirs for the graph."""
    # Of those that share a place one.
    places: dict[int | str, str] = {starts.get(name, name): name for name in group}
    parts = {id(part): (name, part) for name in places.values() if isinstance(part := group[name], QuantizedPart)}
    for name in starts.keys() & places.values() if not parts else ():
        tensor = group[name]
        file.seek(starts[name])
        tensor.tofile(file)  # type: ignore[attr-defined]
        _require_length(name, tensor, file.tell() - starts[name])
    sizes, small = dict.fromkeys(parts, 0), dict.fromkeys(parts, b"")
    for part, piece in pieces_of([part for _, part in parts.values()]):
        name, _ = parts[id(part)]
        if name in starts:
            file.seek(starts[name] + sizes[id(part)])
            file.write(piece.data)
        else:
            small[id(part)] += piece.tobytes()
        sizes[id(part)] += piece.nbytes
    for key, (name, part) in parts.items():
        _require_length(name, part, sizes[key])
        part.content = small[key] or None


def _require_length(name: str, tensor: ir.TensorProtocol, length: int) -> None:
    if length != tensor.nbytes:
        raise AssertionError(f"{name} wrote {length} bytes, not {tensor.nbytes}")


def referring_proto(model: ir.Model, starts: Mapping[str, int], data: str) -> onnx.ModelProto:
    """A model with references to a data file, where initializers begin at ``starts``; it is left as it is."""
    kept = {name: model.graph.initializers[name].const_value for name in starts}
    try:
        for name, start in starts.items():
            value, tensor = model.graph.initializers[name], kept[name]
            assert tensor is not None
            shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
            value.const_value = ir.ExternalTensor(data, start, tensor.nbytes, tensor.dtype, shape=shape, name=name)
        return ir.to_proto(model)
    finally:
        for name, tensor in kept.items():
            model.graph.initializers[name].const_value = tensor
