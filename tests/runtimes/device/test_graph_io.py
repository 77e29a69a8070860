"""A graph's interface as a session needs it: types, the cache's tensors, and what is no cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.graph_io import ELEMENT_TYPES, GraphIO
from llmc.runtimes.device.interface import HostDevice

GRAPH = """<ir_version: 10, opset_import: ["" : 23]>
m (int64[batch, sequence] input_ids, int32[batch] seqlens_k, int32 total_sequence_length, float16[CACHE] past)
    => (float[batch, sequence, 3] logits, float16[CACHE] present, int32 total) {
    ids = Cast<to=1>(input_ids) ids3 = Unsqueeze(ids, axis) logits = Mul(ids3, slopes)
    present = Add(past, past) total = Identity(total_sequence_length) }"""
CONSTANTS = {"axis": np.array([2]), "slopes": np.array([1, 2, 3], np.float32)}
NAMES = {"past": "past_key_values.0.key", "present": "present.0.key"}


def load(cache: str = "batch, 2, slots, 4", rename: dict[str, str] | None = None) -> Any:
    model = onnx.parser.parse_model(GRAPH.replace("CACHE", cache))
    names = {**NAMES, **(rename or {})}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in CONSTANTS.items())
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_element_types_are_onnx_s() -> None:
    for name, (number, dtype) in ELEMENT_TYPES.items():
        onnx_name = onnx.TensorProto.DataType.Name(number).lower()
        assert name == f"tensor({onnx_name})"
        assert onnx.helper.tensor_dtype_to_np_dtype(number) == dtype


def test_the_cache_s_tensors() -> None:
    graph = GraphIO(load(), HostDevice())
    (tensor,) = graph.cache
    assert (tensor.past, tensor.present) == ("past_key_values.0.key", "present.0.key")
    assert (tensor.element_type, tensor.dtype) == (onnx.TensorProto.FLOAT16, np.float16)
    assert tensor.shape(5, 7) == (5, 2, 7, 4)
    assert graph.logits_type == np.float32


@pytest.mark.parametrize(
    "cache", ["batch, heads, slots, 4", "batch, 2, slots, width", "batch, 2, slots", "batch, 2, 3"]
)
def test_what_is_no_cache_of_keys_or_values(cache: str) -> None:
    with pytest.raises(
        EngineError, match=r"past_key_values\.0\.key of shape \['batch', .* is no cache of keys or values"
    ):
        GraphIO(load(cache), HostDevice())


def test_a_graph_without_the_longest_row_is_refused() -> None:
    with pytest.raises(EngineError, match="no input total_sequence_length; build the engine again"):
        GraphIO(load(rename={"total_sequence_length": "length"}), HostDevice())


def test_a_run_reads_and_writes_the_addresses_it_is_given() -> None:
    """The cache in place; another chunk and total on the same binding; a name that the graph lacks is left out."""
    device = HostDevice()
    graph = GraphIO(load(), device)
    sizes = {"input_ids": 48, "logits": 72, "cache": 2 * 2 * 3 * 4 * 2, "total": 4}
    buffers = {name: device.allocate(size) for name, size in sizes.items()}
    cache = buffers["cache"].owner.view(np.float16)
    cache[:] = np.arange(cache.size)
    device.upload(buffers["input_ids"], np.array([[1, 2], [3, 4]]))
    values = {
        "input_ids": (buffers["input_ids"], (2, 2)),
        "logits": (buffers["logits"], (2, 2, 3)),
        "total": (buffers["total"], ()),
        "last_rows": (buffers["input_ids"], (2,)),
    }
    bound = graph.bind(values, {"past_key_values.0.key": buffers["cache"]}, 2, 3, 9)
    graph.run(bound)
    assert cache.tolist() == [2 * number for number in range(48)]
    assert buffers["logits"].owner.view(np.float32)[:12].tolist() == [1, 2, 3, 2, 4, 6, 3, 6, 9, 4, 8, 12]
    assert buffers["total"].owner.view(np.int32)[0] == 9
    device.upload(buffers["input_ids"], np.array([[5], [7]]))
    graph.rebind(bound, {"input_ids": (buffers["input_ids"], (2, 1)), "logits": (buffers["logits"], (2, 1, 3))}, 10)
    graph.run(bound)
    assert buffers["logits"].owner.view(np.float32)[:6].tolist() == [5, 10, 15, 7, 14, 21]
    assert buffers["total"].owner.view(np.int32)[0] == 10
    assert cache.tolist() == [4 * number for number in range(48)]
