"""Graphs between two passes, with weights that ONNX Runtime can map.

In: a model as a pass left it, whose weights may be lazy. Out: a copy of it that runs, whose large weights lie in
files. Those of the artifact that the passes began with stay where they are. What passes make of them is written once,
and stays for as long as a copy that is kept reads it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from llmc.compiler.base.contract import GRAPH
from llmc.compiler.graph.census import place
from llmc.compiler.graph.model_file import DataFileTensor, load_model
from llmc.compiler.graph.write_model import INLINE_BYTES, write_model
from llmc.passes.cleanup.attach_bodies import AttachBodies

ROOT = Path("/")


class WeightFiles:
    """A folder of weights, and the copies of graphs that read them."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet; ``folder`` is made when something is."""
        self._folder, self._count = folder.resolve(), 0
        # By place: the weight itself, since its place may be the object, whose number must stay its own; its bytes.
        self._known: dict[object, tuple[ir.TensorProtocol, ir.ExternalTensor]] = {}

    def copy(self, model: ir.Model) -> ir.Model:
        """A copy of ``model`` whose operators have bodies and whose large weights lie in files.

        Raises:
            OSError: the disk is full.
        """
        copy = own_copy(model)
        AttachBodies()(copy)
        tensors = {name: value.const_value for name, value in copy.graph.initializers.items()}
        large = {name: tensor for name, tensor in tensors.items() if tensor and tensor.nbytes > INLINE_BYTES}
        self._write({name: tensor for name, tensor in large.items() if place(tensor) not in self._known})
        for name, tensor in large.items():
            copy.graph.initializers[name].const_value = _seen_as(tensor, self._known[place(tensor)][1])
        return copy

    def keep(self, copies: Iterable[ir.Model]) -> None:
        """Remove the files that none of ``copies`` reads."""
        tensors = (value.const_value for copy in copies for value in copy.graph.initializers.values())
        read = {Path(tensor.path).parent for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
        unread = {Path(stored.path).parent for _, stored in self._known.values()} - read
        self._known = {
            key: (tensor, stored)
            for key, (tensor, stored) in self._known.items()
            if Path(stored.path).parent not in unread
        }
        for folder in unread:
            if folder.parent == self._folder:
                shutil.rmtree(folder)

    def _write(self, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        """Bring what is not in a file yet into a folder of its own."""
        stored = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}
        if lazy := {name: tensor for name, tensor in tensors.items() if name not in stored}:
            folder = self._folder / str(self._count)
            self._count += 1
            folder.mkdir(parents=True)
            values = [ir.val(name, const_value=tensor) for name, tensor in lazy.items()]
            graph = ir.Graph([], [], nodes=[], initializers=values, name="weights")
            write_model(ir.Model(graph, ir_version=10), folder)
            for name, value in load_model(folder / GRAPH).graph.initializers.items():
                assert isinstance(value.const_value, ir.ExternalTensor)
                stored[name] = value.const_value
        self._known |= {place(tensors[name]): (tensors[name], tensor) for name, tensor in stored.items()}


def own_copy(model: ir.Model) -> ir.Model:
    """A copy that keeps its types when those of the model change; a clone of onnx_ir shares the objects."""
    copy = model.clone()
    parts = (copy.graph, *(function.graph for function in copy.functions.values()))
    for part in (*parts, *(inner for whole in parts for inner in whole.subgraphs())):
        made = (output for node in part for output in node.outputs)
        for value in (*part.inputs, *part.initializers.values(), *made):
            if isinstance(value.type, ir.TensorType):
                value.type = ir.TensorType(value.type.dtype)
    return copy


def _seen_as(tensor: ir.TensorProtocol, stored: ir.ExternalTensor) -> ir.ExternalTensor:
    """The bytes of a file in a tensor's type and shape: one place may be seen in two."""
    location = Path(stored.path).resolve().relative_to(ROOT)
    shape = ir.Shape([int(dim) for dim in tensor.shape.numpy()])
    seen = ir.ExternalTensor(
        location, stored.offset, stored.length, tensor.dtype, shape=shape, name=tensor.name or ""
    )
    return DataFileTensor(seen, ROOT)
