"""Graphs opened from disk, whose data files may be links.

In: the path of an ``.onnx`` file. Out: its graph; large tensors stay in their data files until they are read.

onnx_ir refuses data files with several hard links, and symbolic links that leave the folder. Both are what people
have: a Hugging Face cache is links to blobs, and copies and backups share their files. A name that leads out of the
folder by itself (``../x``, ``/x``) is refused here, too, since no tool writes one.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from llmc.compiler.base.errors import ArtifactError


class DataFileTensor(ir.ExternalTensor):
    """A tensor in a data file, whatever links lead to it.

    Attributes:
        folder: Where the graph lies; :attr:`location` begins there.
    """

    def __init__(self, tensor: ir.ExternalTensor, folder: Path) -> None:
        """See ``tensor`` beside a graph in ``folder``, an absolute path."""
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
        self.folder = folder

    @property
    def path(self) -> str:
        """Of the data file; onnx_ir checks no path that it has not put together of a folder of its own."""
        return str(self.folder / self.location)


def load_model(path: Path) -> ir.Model:
    """The graph of ``path``.

    Raises:
        ArtifactError: a tensor names a data file outside of the graph's folder.
        Exception: whatever protobuf, onnx_ir and the file system raise where it is no graph.
    """
    model = ir.load(path)
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100  (a link to the graph has its data files beside it)
    parts = (model.graph, *(function.graph for function in model.functions.values()))
    for graph in {id(part): part for whole in parts for part in (whole, *whole.subgraphs())}.values():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _beside(value.const_value, folder, path)
    return model


def _beside(tensor: ir.ExternalTensor, folder: Path, graph: Path) -> DataFileTensor:
    location = PurePosixPath(os.fspath(tensor.location))
    if location.is_absolute() or ".." in location.parts:
        raise ArtifactError(
            f"{graph}: the tensor {tensor.name} lies in {location}, outside of the graph's folder; put the file "
            "beside the graph and name it there"
        )
    return DataFileTensor(tensor, folder)
