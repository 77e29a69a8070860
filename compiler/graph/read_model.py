"""An ONNX file as a model whose weights are read where they are needed.

In: a path. Out: an :class:`onnx_ir.Model`, or one sentence about a file that is none.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.lfs_pointer import require_content
from llmc.compiler.graph.model_file import load_model


def read_model(path: Path) -> ir.Model:
    """The model that ``path`` holds; no external weight is read.

    Raises:
        ArtifactError: there is no such file, or it is damaged, or no ONNX model.
    """
    require_content([path], ArtifactError)
    try:
        model = load_model(path)
    except ArtifactError:
        raise
    except Exception as error:  # protobuf, onnx_ir and the file system have no common base
        raise ArtifactError(
            f"{path} cannot be read as an ONNX model ({type(error).__name__}); give an .onnx file, or make the "
            "artifact again"
        ) from error
    if not model.opset_imports and not len(model.graph):
        raise ArtifactError(f"{path} is not an ONNX model: it has neither operators nor operator versions")
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.UNDEFINED:
            raise ArtifactError(f"{path} says of no type that {value.name} is stored in; make the artifact again")
        if tensor is not None and value.shape is not None and value.shape != tensor.shape:
            raise ArtifactError(
                f"{path} contradicts itself: {value.name} is declared as {list(value.shape)} and stored as "
                f"{list(tensor.shape)}; make the artifact again"
            )
    return model
