from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llmc.compiler.graph.operators import recurrence
from llmc.compiler.graph.operators.domain import DOMAIN, OPSET, VERSION
from llmc.compiler.graph.operators.recurrence import Signature

Array = npt.NDArray[Any]
BATCH, SEQ, WIDTH = 3, 5, 4
VALID = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
"""A full row, one that is padded on both sides, and one of nothing but padding."""

SUM = """<ir_version: 10, opset_import: ["": 23]>
step (float[batch, 1, 4] x, float[batch, 4] s, float[4] w) => (float[batch, 1, 4] y, float[batch, 4] t)
<float[1] half = {0.5}> {
    xw = Mul (x, w)
    axes = Constant <value_ints = [1]> ()
    x0 = Squeeze (xw, axes)
    sh = Mul (s, half)
    t = Add (sh, x0)
    tu = Unsqueeze (t, axes)
    g = Sigmoid (x)
    y = Mul (tu, g)
}
"""
"""t = s / 2 + w x; y = t sigmoid(x): a product before, a state, and a gate after."""

TWO = """<ir_version: 10, opset_import: ["": 23]>
step (float[batch, 1, 4] x, float[batch, 4, 1] z, float[batch, 4] s, float[batch, 4, 2] c, float[4] w)
  => (float[batch, 4, 1] y, float[batch, 1, 4] u, float[batch, 4] t, float[batch, 4, 2] d) {
    axis = Constant <value_ints = [1]> ()
    x0 = Squeeze (x, axis)
    sw = Mul (s, w)
    t = Add (sw, x0)
    joined = Concat <axis = 2> (c, z)
    one = Constant <value_ints = [1]> ()
    three = Constant <value_ints = [3]> ()
    two = Constant <value_ints = [2]> ()
    d = Slice (joined, one, three, two)
    y = ReduceSum (joined, two)
    u = Exp (x)
}
"""
"""Two sequences along different axes, two states, two results, one of which needs no state."""

KEEP = """<ir_version: 10, opset_import: ["": 23]>
step (float[batch, 1, 4] x, float[batch, 4] s) => (float[batch, 1, 4] y, float[batch, 4] t) {
    axis = Constant <value_ints = [1]> ()
    y = Unsqueeze (s, axis)
    t = Squeeze (x, axis)
}
"""
"""y is the token before."""


ONE_CHANNEL = """<ir_version: 10, opset_import: ["": 23]>
step (float[batch, 1, 1] x, float[batch, 1, 1] z, float[batch, 1, 1] s)
  => (float[batch, 1, 1] y, float[batch, 1, 1] u, float[batch, 1, 1] t) {
    y = Exp (x)
    u = Softmax (z)
    t = Add (s, z)
}
"""
"""Sequences of one channel each: nothing but their axes tells them apart. A softmax over one channel is 1."""


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def run(step: str, signature: Signature, inputs: list[Array], valid: Array) -> list[Array]:
    """The operator's body on ONNX Runtime: sequences, states, weights -> results, states."""
    function = recurrence.function("kind", ir.from_onnx_text(step).graph, signature)
    assert function.identifier() == (DOMAIN, recurrence.NAME, "kind")
    given = len(signature.sequences) + signature.states
    arrays = [*inputs[:given], valid, *inputs[given:]]
    values = [ir.val(f"in_{i}", ir.DataType.from_numpy(array.dtype), array.shape) for i, array in enumerate(arrays)]
    count = len(signature.results) + signature.states
    node = ir.node(recurrence.NAME, values, domain=DOMAIN, overload="kind", num_outputs=count)
    assert recurrence.is_recurrence(node)
    for index, output in enumerate(node.outputs):
        output.name, output.dtype = f"out_{index}", ir.DataType.FLOAT
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": OPSET, DOMAIN: VERSION}, name="call")
    model = ir.Model(graph, ir_version=10, functions=[function])
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, {f"in_{i}": array for i, array in enumerate(arrays)})
    return results


ONE = Signature((1,), 1, 1, (1,))


def sums(x: Array, s: Array, w: Array, valid: Array) -> tuple[Array, Array]:
    """``SUM`` by its definition, token by token and row by row."""
    y, s = np.zeros_like(x), s.copy()
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            new = s[row] / 2 + w * x[row, column]
            y[row, column] = new / (1 + np.exp(-x[row, column]))
            if valid[row, column]:
                s[row] = new
    return y, s


@pytest.mark.parametrize("seq", [1, SEQ])
def test_a_state_runs_over_the_tokens(seq: int) -> None:
    x, s, w, valid = draw(BATCH, seq, WIDTH), draw(BATCH, WIDTH, seed=1), draw(WIDTH, seed=2), VALID[:, -seq:]
    y, t = run(SUM, ONE, [x, s, w], valid)
    expected = sums(x, s, w, valid)
    np.testing.assert_allclose(y[valid], expected[0][valid], rtol=0, atol=1e-6)
    np.testing.assert_allclose(t, expected[1], rtol=0, atol=1e-6)


def test_padding_leaves_the_state_as_it_was() -> None:
    """To the bit, whatever the padding is."""
    x, s, w = draw(BATCH, SEQ, WIDTH), draw(BATCH, WIDTH, seed=1), draw(WIDTH, seed=2)
    t = run(SUM, ONE, [x, s, w], VALID)[1]
    np.testing.assert_array_equal(t[2], s[2])
    changed = np.where(VALID[..., None], x, np.float32(1e30))
    np.testing.assert_array_equal(run(SUM, ONE, [changed, s, w], VALID)[1], t)


def test_a_chunk_goes_on_where_the_last_one_ended() -> None:
    x, s, w = draw(BATCH, SEQ, WIDTH), draw(BATCH, WIDTH, seed=1), draw(WIDTH, seed=2)
    whole, end = run(SUM, ONE, [x, s, w], VALID)
    first, state = run(SUM, ONE, [x[:, :2], s, w], VALID[:, :2])
    second, state = run(SUM, ONE, [x[:, 2:], state, w], VALID[:, 2:])
    np.testing.assert_allclose(np.concatenate((first, second), 1), whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(state, end, rtol=0, atol=1e-6)


def test_sequences_results_and_states_of_several_kinds() -> None:
    x, z, w = draw(BATCH, SEQ, WIDTH), draw(BATCH, WIDTH, SEQ, seed=1), draw(WIDTH, seed=4)
    s, c = draw(BATCH, WIDTH, seed=2), draw(BATCH, WIDTH, 2, seed=3)
    y, u, t, d = run(TWO, Signature((1, 2), 2, 1, (2, 1)), [x, z, s, c, w], VALID)
    assert (y.shape, u.shape) == ((BATCH, WIDTH, SEQ), (BATCH, SEQ, WIDTH))
    for row in range(BATCH):
        state, conv = s[row], c[row]
        for column in range(SEQ):
            if not VALID[row, column]:
                continue
            joined = np.concatenate((conv, z[row, :, column : column + 1]), 1)
            np.testing.assert_allclose(y[row, :, column], joined.sum(1), rtol=0, atol=1e-5)
            np.testing.assert_allclose(u[row, column], np.exp(x[row, column]), rtol=1e-5)
            state, conv = state * w + x[row, column], joined[:, 1:]
        np.testing.assert_allclose(t[row], state, rtol=0, atol=1e-5)
        np.testing.assert_allclose(d[row], conv, rtol=0, atol=0)


def test_the_axis_of_tokens_is_each_sequences_own() -> None:
    x, z, s = draw(BATCH, SEQ, 1), draw(BATCH, 1, SEQ, seed=1), draw(BATCH, 1, 1, seed=2)
    y, u, t = run(ONE_CHANNEL, Signature((1, 2), 1, 0, (1, 2)), [x, z, s], np.ones((BATCH, SEQ), bool))
    np.testing.assert_allclose(y, np.exp(x), rtol=1e-6)
    np.testing.assert_array_equal(u, np.ones_like(z))
    np.testing.assert_allclose(t, s + z.sum(axis=2, keepdims=True), rtol=0, atol=1e-6)


def test_what_runs_over_a_chunk_is_not_stated_to_be_one_token() -> None:
    step = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(SUM))).graph
    assert {value.name for node in step for value in node.outputs if value.shape is not None} >= {"xw", "g", "y"}
    function = recurrence.function("kind", step, ONE)
    outside = [node for node in function if node.op_type not in {"Scan", "Constant"}]
    assert {node.op_type for node in outside} == {"Mul", "Sigmoid"}
    assert all(value.shape is None for node in outside for value in node.outputs)


def test_inputs_that_are_passed_on_as_they_are() -> None:
    x, s = draw(BATCH, SEQ, WIDTH), draw(BATCH, WIDTH, seed=1)
    y, t = run(KEEP, Signature((1,), 1, 0, (1,)), [x, s], np.ones((BATCH, SEQ), bool))
    np.testing.assert_array_equal(y, np.concatenate((s[:, None], x[:, :-1]), 1))
    np.testing.assert_array_equal(t, x[:, -1])


def test_weights_are_inputs_and_other_initializers_constants() -> None:
    function = recurrence.function("kind", ir.from_onnx_text(SUM).graph, ONE)
    assert [value.name for value in function.inputs] == ["sequence_0", "state_0", "valid", "weight_0"]
    assert [value.name for value in function.outputs] == ["result_0", "present_0"]
    assert not function.graph.initializers
    assert not function.attributes


def test_other_nodes_are_no_recurrence() -> None:
    assert not recurrence.is_recurrence(ir.node(recurrence.NAME, []))
    assert not recurrence.is_recurrence(ir.node("MoE", [], domain=DOMAIN))
