"""Checkpoint tensors into the traced graph.

In: a traced graph whose initializers are fake, the checkpoint's tensors, and which tensor each parameter is.
Out: the same graph with lazy initializers and with names as in transformers' state dict; tied ones are one.
"""

from __future__ import annotations

import onnx_ir as ir

from llmc.compiler.base.errors import CaptureError
from llmc.compiler.capture.trace import Trace
from llmc.compiler.checkpoint.weights import WeightSource
from llmc.compiler.graph.lazy_weight import SourceWeight

PREFIX = "model."
"""What the traced wrapper puts before the model's own parameter names."""


def bind_weights(trace: Trace, weights: WeightSource, names: dict[str, str], dtype: ir.DataType) -> None:
    """Replace every fake initializer of ``trace.model`` by the checkpoint tensor that it stands for.

    Args:
        trace: Result of the trace; changed in place.
        weights: The checkpoint's tensors.
        names: Parameter name -> checkpoint tensor name.
        dtype: Float type of the graph.

    Raises:
        CaptureError: an initializer is neither a parameter nor a buffer nor a constant of the trace.
    """
    graph = trace.model.graph
    owners: dict[str, ir.Value] = {}
    for value in list(graph.initializers.values()):
        name = (value.name or "").removeprefix(PREFIX)
        if name in names:
            tensor_name = names[name]
            owner = owners.setdefault(tensor_name, value)
            if owner is not value:
                value.replace_all_uses_with(owner)
                del graph.initializers[value.name or ""]
                continue
            kind = value.dtype if value.dtype is not None and not _is_float(value.dtype) else dtype
            shape = trace.parameter_shapes[name]
            value.const_value = SourceWeight(weights, tensor_name, shape, kind)
        elif name in trace.buffers:
            value.const_value = ir.tensor(trace.buffers[name].numpy(), name=value.name)
        elif _is_fake(value.const_value):
            raise CaptureError(f"the trace made a constant {value.name} whose value is not known")
    for tensor_name, value in owners.items():
        del graph.initializers[value.name or ""]
        value.name = tensor_name
        graph.initializers[tensor_name] = value


def _is_float(dtype: ir.DataType) -> bool:
    return dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


def _is_fake(tensor: ir.TensorProtocol | None) -> bool:
    raw = getattr(tensor, "raw", None)
    return tensor is None or type(raw).__name__ == "FakeTensor" or bool(getattr(raw, "is_meta", False))
