from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llmc.compiler.base.errors import CaptureError
from llmc.compiler.capture.bind_weights import bind_weights
from llmc.compiler.capture.layout import CacheLayout
from llmc.compiler.capture.trace import Trace
from llmc.compiler.checkpoint.weights import TensorInfo
from llmc.compiler.graph.lazy_weight import SourceWeight

TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}


class Source:
    """A checkpoint's tensors."""

    def __init__(self, **arrays: Any) -> None:
        self.arrays = {name.replace("__", "."): array for name, array in arrays.items()}

    def tensors(self) -> dict[str, TensorInfo]:
        return {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        return self.arrays[name][start:stop]


class Raw:
    """As torch.onnx wraps a tensor of the traced program."""

    def __init__(self, raw: Any) -> None:
        self.raw, self.name = raw, None


def fake(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(shape, dtype=dtype)


def traced(initializers: dict[str, Any], buffers: dict[str, torch.Tensor] | None = None) -> Trace:
    """A graph that adds each of its initializers to an input."""
    values, nodes = [], []
    x = ir.val("x", ir.DataType.FLOAT, ir.Shape([2]))
    for name, tensor in initializers.items():
        value = ir.val(name, TYPES[tensor.dtype], ir.Shape(tuple(tensor.shape)))
        value.const_value = (
            ir.tensor(tensor.numpy()) if type(tensor) is torch.Tensor and not tensor.is_meta else Raw(tensor)
        )  # type: ignore[assignment]
        values.append(value)
        nodes.append(ir.node("Add", [x, value]))
    graph = ir.Graph(
        [x], [node.outputs[0] for node in nodes], nodes=nodes, initializers=values, opset_imports={"": 23}
    )
    shapes = {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in initializers.items()}
    layout = CacheLayout((), 0, "past_key_values")
    model = ir.Model(graph, ir_version=10)
    return Trace(model, layout, shapes, {}, buffers or {}, 0, 0, "Toy")


def operands(trace: Trace) -> list[ir.Value]:
    """What the additions take, in order."""
    return [value for node in trace.model.graph for value in node.inputs[1:] if value is not None]


def test_a_parameter_is_the_checkpoint_s_tensor_under_its_name() -> None:
    trace = traced({"model.model.norm.weight": fake((2,)), "model.lm_head.weight": fake((2,))})
    source = Source(norm=np.array([1.5, 2.5], np.float32), head=np.array([3.5, 4.5], np.float32))
    bind_weights(trace, source, {"model.norm.weight": "norm", "lm_head.weight": "head"}, ir.DataType.FLOAT)
    one, two = operands(trace)
    assert (one.name, two.name) == ("norm", "head")
    assert set(trace.model.graph.initializers) == {"norm", "head"}
    for value, expected in ((one, [1.5, 2.5]), (two, [3.5, 4.5])):
        assert isinstance(value.const_value, SourceWeight)
        assert trace.model.graph.initializers[str(value.name)] is value
        assert value.const_value.numpy().tolist() == expected


def test_tied_parameters_are_one_initializer() -> None:
    trace = traced({"model.embed.weight": fake((2,)), "model.lm_head.weight": fake((2,)), "model.x": fake((2,))})
    names = {"embed.weight": "embed.weight", "lm_head.weight": "embed.weight", "x": "x"}
    bind_weights(trace, Source(embed__weight=np.ones(2), x=np.ones(2)), names, ir.DataType.FLOAT)
    one, two, three = operands(trace)
    assert one is two
    assert one is not three
    assert set(trace.model.graph.initializers) == {"embed.weight", "x"}


@pytest.mark.parametrize(
    ("graph", "checkpoint", "asked", "expected"),
    [
        (torch.float32, np.float32, ir.DataType.FLOAT16, ir.DataType.FLOAT16),
        (torch.float16, np.float32, ir.DataType.FLOAT16, ir.DataType.FLOAT16),
        (torch.float32, ml_dtypes.bfloat16, ir.DataType.FLOAT, ir.DataType.FLOAT),
        (torch.float32, np.float32, ir.DataType.BFLOAT16, ir.DataType.BFLOAT16),
        (torch.int64, np.int64, ir.DataType.FLOAT16, ir.DataType.INT64),
        (torch.int64, np.int32, ir.DataType.FLOAT, ir.DataType.INT64),
        (torch.bool, np.bool_, ir.DataType.FLOAT, ir.DataType.BOOL),
    ],
)
def test_floats_get_the_type_that_is_asked_for_and_integers_keep_the_graph_s(
    graph: torch.dtype, checkpoint: Any, asked: ir.DataType, expected: ir.DataType
) -> None:
    trace = traced({"model.x": fake((2,), graph)})
    bind_weights(trace, Source(x=np.array([0, 1], checkpoint)), {"x": "x"}, asked)
    (value,) = operands(trace)
    assert value.const_value is not None
    assert value.const_value.dtype == expected
    assert value.const_value.numpy().dtype == expected.numpy()
    assert value.const_value.numpy().tolist() == [0, 1]


def test_a_tensor_of_the_checkpoint_takes_the_model_s_shape() -> None:
    trace = traced({"model.x": fake((2, 1, 3))})
    bind_weights(trace, Source(x=np.arange(6.0).reshape(2, 3)), {"x": "x"}, ir.DataType.FLOAT)
    (value,) = operands(trace)
    assert value.const_value is not None
    assert value.const_value.numpy().tolist() == [[[0, 1, 2]], [[3, 4, 5]]]


def test_buffers_and_constants_have_values_of_their_own() -> None:
    """A buffer's fake stands for the real one; a constant of the trace is real already."""
    constant = torch.tensor([7.0, 8.0])
    buffers = {"rotary.inv_freq": torch.tensor([0.5, 0.25])}
    trace = traced({"model.rotary.inv_freq": fake((2,)), "lifted_tensor_0": constant}, buffers)
    bind_weights(trace, Source(), {}, ir.DataType.FLOAT16)
    buffer, other = operands(trace)
    assert buffer.const_value is not None
    assert other.const_value is not None
    assert buffer.const_value.numpy().tolist() == [0.5, 0.25]
    assert buffer.const_value.dtype == ir.DataType.FLOAT
    assert other.const_value.numpy().tolist() == [7, 8]


@pytest.mark.parametrize("tensor", [fake((2,)), torch.zeros(2, device="meta")], ids=["fake", "without memory"])
def test_a_constant_without_a_value_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(CaptureError, match="made a constant lifted_tensor_0 whose value is not known"):
        bind_weights(traced({"lifted_tensor_0": tensor}), Source(), {}, ir.DataType.FLOAT)


def test_an_initializer_without_any_tensor_is_refused() -> None:
    trace = traced({"lifted_tensor_0": torch.zeros(2)})
    operands(trace)[0].const_value = None
    with pytest.raises(CaptureError, match="made a constant lifted_tensor_0"):
        bind_weights(trace, Source(), {}, ir.DataType.FLOAT)


def test_only_the_wrapper_s_prefix_is_taken_away() -> None:
    trace = traced({"model.language.model.norm": fake((2,))})
    bind_weights(trace, Source(norm=np.ones(2)), {"language.model.norm": "norm"}, ir.DataType.FLOAT)
    assert operands(trace)[0].name == "norm"
