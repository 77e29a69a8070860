"""Nodes of a graph as a session of ONNX Runtime's CPU provider.

In: a step's nodes. Out: :class:`Segment`, which computes what the step keeps from what it reads. Its small constants
are in memory while it lives; a large one, of experts, is read for each call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from llmc.compiler.base.errors import EngineError, first_line
from llmc.compiler.calibration.steps import all_reads
from llmc.compiler.graph.lazy_weight import Array

INSIDE_BYTES = 256 << 20
"""Constants up to this size, all together, are part of the session."""


class Segment:
    """Nodes that run together, by one thread."""

    def __init__(self, model: ir.Model, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> None:
        """Make a session of ``nodes``.

        Args:
            model: Whose nodes they are.
            nodes: In order.
            outputs: What is to be computed; those that none of the nodes makes are left out.

        Raises:
            EngineError: the runtime refuses them.
        """
        produced = {output for node in nodes for output in node.outputs}
        self.outputs = [value for value in outputs if value in produced]
        self._model, self._nodes = model, nodes
        self.large: dict[str, Array] = {}
        self._session: Any = None
        self._types: tuple[tuple[str, np.dtype[Any]], ...] = ()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; ``feeds`` may hold more than the nodes read."""
        if not self.outputs:
            return {}
        assert self._session is not None
        wanted = {name: feeds[name] for name in self.inputs}
        names = [value.name or "" for value in self.outputs]
        try:
            results = self._session.run(names, {**wanted, **self.large})
        except Exception as error:  # onnxruntime's own errors share no base that can be imported
            raise EngineError(f"ONNX Runtime cannot run a part of the graph: {first_line(error)}") from error
        return dict(zip(names, map(np.asarray, results), strict=True))

    def open(self, feeds: Mapping[str, Array]) -> None:
        """Make the session, once; ``feeds`` say what types the inputs have."""
        if not self.outputs or self._session is not None:
            return
        import onnxruntime

        produced = {output for node in self._nodes for output in node.outputs}
        read = dict.fromkeys(value for node in self._nodes for value in all_reads(node) if value not in produced)
        weights = [value for value in read if value.is_initializer()]
        self.inputs = [value.name or "" for value in read if not value.is_initializer()]
        graph = onnx.GraphProto(name="segment")
        graph.node.extend(ir.serde.serialize_node(node) for node in self._nodes)
        for name in self.inputs:
            graph.input.append(_info(name, feeds[name].dtype))
        graph.output.extend(_output_info(value) for value in self.outputs)
        room = INSIDE_BYTES
        for value in weights:
            tensor = value.const_value
            assert tensor is not None
            if tensor.nbytes <= room:
                room -= tensor.nbytes
                graph.initializer.append(_constant(value.name or "", tensor))
            else:
                self.large[value.name or ""] = np.asarray(tensor.numpy())
                graph.input.append(_info(value.name or "", tensor.dtype.numpy()))
        model = onnx.ModelProto(ir_version=10, graph=graph)
        model.functions.extend(ir.serde.serialize_function(item) for item in self._model.functions.values())
        imports = {"": 23, **self._model.graph.opset_imports}
        for node in self._nodes:
            imports.setdefault(node.domain, 1)
        for domain, version in imports.items():
            model.opset_import.append(onnx.helper.make_opsetid(domain, version or 1))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise EngineError(f"ONNX Runtime refuses a part of the graph: {first_line(error)}") from error


def _info(name: str, dtype: Any) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    info.type.tensor_type.elem_type = ir.DataType.from_numpy(np.dtype(dtype)).value
    return info


def _output_info(value: ir.Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=value.name or "")
    if value.dtype is not None:
        info.type.tensor_type.elem_type = value.dtype.value
    return info


def _constant(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    proto = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=[int(d) for d in tensor.shape.numpy()])
    proto.raw_data = tensor.tobytes()
    return proto
