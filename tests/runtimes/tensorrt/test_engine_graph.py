"""The graph at one length of the cache, and what can become an engine."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.tensorrt.engine_graph import read_engine_graph

GRAPH = """<ir_version: 10, opset_import: ["" : 23]>
m (int64[batch, sequence] input_ids, int64[batch] past_lengths, float16[batch, 2, slots, 4] "past_key_values.0.key",
   float16[batch, 2, slots, 4] "past_key_values.0.value")
    => (float16[batch, sequence, 5] logits, float16[batch, 2, slots, 4] "present.0.key",
        float16[batch, 2, slots, 4] "present.0.value")
    <float16[batch, 2, slots, 4] inner, float16[5] slopes = {1, 2, 3, 4, 5}> {
    inner = Add("past_key_values.0.key", "past_key_values.0.key") "present.0.key" = Identity(inner)
    "present.0.value" = Identity("past_key_values.0.value")
    ids = Cast<to=10>(input_ids) wide = Unsqueeze(ids, axis) logits = Mul(wide, slopes) }"""


def save(folder: Path, old: str = "", new: str = "") -> Path:
    """The graph with some text replaced where it stands first."""
    assert old in GRAPH
    model = onnx.parser.parse_model(GRAPH.replace(old, new, 1) if old else GRAPH)
    model.graph.initializer.append(onnx.helper.make_tensor("axis", onnx.TensorProto.INT64, [1], [2]))
    onnx.save_model(model, folder / "engine.onnx")
    return folder / "engine.onnx"


def shape(value: onnx.ValueInfoProto) -> list[object]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_cache_alone_gets_the_capacity(tmp_path: Path) -> None:
    """Past and present, in the place of its slots; what was inferred for a symbol goes."""
    graph = read_engine_graph(save(tmp_path))
    assert [value.name for value in graph.model.graph.value_info] == ["inner"]
    for capacity in (32, 7):
        model = graph.at_capacity(capacity)
        shapes = {value.name: shape(value) for value in (*model.graph.input, *model.graph.output)}
        caches = {name: shapes.pop(name) for name in list(shapes) if "." in name}
        assert len(caches) == 4
        assert all(dims == ["batch", 2, capacity, 4] for dims in caches.values())
        assert shapes == {
            "input_ids": ["batch", "sequence"],
            "past_lengths": ["batch"],
            "logits": ["batch", "sequence", 5],
        }
        assert not model.graph.value_info
        onnx.checker.check_model(model, full_check=True)


def test_the_graph_stays_as_it_is(tmp_path: Path) -> None:
    graph = read_engine_graph(save(tmp_path))
    before = graph.model.SerializeToString()
    graph.at_capacity(32)
    assert graph.model.SerializeToString() == before


def test_inputs_are_those_without_a_value(tmp_path: Path) -> None:
    path = save(tmp_path)
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("slopes", onnx.TensorProto.FLOAT16, [5]))
    onnx.save_model(model, path)
    names = [value.name for value in read_engine_graph(path).inputs]
    assert names == ["input_ids", "past_lengths", "past_key_values.0.key", "past_key_values.0.value"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("int64[batch] past_lengths, ", "", "engine.onnx has no input past_lengths; optimize the model again"),
        ("input_ids", "ids_of_the_input", "engine.onnx has no input input_ids"),
        (
            'float16[batch, 2, slots, 4] "present.0.value"',
            'float16[batch, 2, slots, w] "present.0.value"',
            "0.value is",
        ),
        ('float16[batch, 2, slots, 4] "present.0.key"', 'float16[batch, h, slots, 4] "present.0.key"', "0.key is no"),
        ('float16[batch, 2, slots, 4] "present.0.value"', 'float16[batch, 2, 4] "present.0.value"', "0.value is no"),
        (
            '"past_key_values.0.value")\n',
            '"past_key_values.0.value", float[batch, 3, 4] "past_key_values.1.conv")\n',
            "conv",
        ),
    ],
)
def test_what_can_become_no_engine(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Any of the caches, not the first alone."""
    with pytest.raises(EngineError, match=message):
        read_engine_graph(save(tmp_path, old, new))


def test_a_graph_without_a_cache(tmp_path: Path) -> None:
    path = save(tmp_path)
    model = onnx.load(path)
    for values in (model.graph.input, model.graph.output):
        kept = [value for value in values if "." not in value.name]
        del values[:]
        values.extend(kept)
    onnx.save_model(model, path)
    with pytest.raises(EngineError, match=r"engine\.onnx keeps no KV cache; optimize the model again for TensorRT"):
        read_engine_graph(path)
