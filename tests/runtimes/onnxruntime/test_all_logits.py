"""The cut before the head taken out of a graph: where it is found, what stays, what cannot be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.onnxruntime.all_logits import all_logits

HEAD = """<ir_version: 10, opset_import: ["" : 23]>
head (int64[batch, sequence] input_ids, float[batch, sequence, 4] hidden, int64[batch, 1, 1] last,
      float[4, 3] weight)
 => (float[batch, 1, 3] logits, float[batch, 2] other)
<float[1] cap = {2.0}, int64[1, 1] rows = {0}>
{
  before = Abs (hidden)
  cut = GatherND <batch_dims = 1> (before, last)
  product = MatMul (cut, weight)
  small = Div (product, cap)
  tanh = Tanh (small)
  logits = Mul (cap, tanh)
  wide = GatherND (hidden, rows)
  halves, rest = Split <axis = 1, num_outputs = 2> (wide)
  other = Neg (halves)
}"""
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 12


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """With the weight in a file beside it."""
    model = ir.from_onnx_text(HEAD)
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(WEIGHT, name="weight")
    model.graph.register_initializer(weight)
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=16)
    assert (tmp_path / "model.onnx.data").stat().st_size >= WEIGHT.nbytes
    return tmp_path / "model.onnx"


def test_every_position_goes_through_the_head(graph: Path, tmp_path: Path) -> None:
    content = all_logits(graph)
    assert len(content) < 4000
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    hidden = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    feeds = {"input_ids": np.zeros((2, 5), np.int64), "hidden": hidden, "last": np.zeros((2, 1, 1), np.int64)}
    (logits,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(logits, 2 * np.tanh(np.abs(hidden) @ WEIGHT / 2), rtol=1e-5)


def test_nothing_else_changes(graph: Path) -> None:
    before, after = onnx.load(str(graph), load_external_data=False), onnx.ModelProto.FromString(all_logits(graph))
    assert [node.op_type for node in after.graph.node if node.op_type != "GatherND"] == [
        node.op_type for node in before.graph.node if node.op_type != "GatherND"
    ]
    assert sum(node.op_type == "GatherND" for node in after.graph.node) == 1
    assert after.graph.initializer == before.graph.initializer
    shape = after.graph.output[0].type.tensor_type.shape.dim
    assert [each.dim_param or each.dim_value for each in shape] == ["batch", "sequence", 3]


def test_a_graph_that_cuts_in_another_way_is_refused(tmp_path: Path) -> None:
    ir.save(ir.from_onnx_text(HEAD.replace("<batch_dims = 1> (before, last)", "(before, last)")), tmp_path / "m.onnx")
    with pytest.raises(EngineError, match="in a way of its own"):
        all_logits(tmp_path / "m.onnx")
