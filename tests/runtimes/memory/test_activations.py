"""The largest live set of small graphs whose sums can be done by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.runtimes.memory.activations import LiveSet, largest_live_set

CHAIN = """<ir_version: 10, opset_import: ["" : 23]>
g (float[batch, sequence, 4] x) => (float[batch, sequence, 4] y)
<float[batch, sequence, 16] wide, float[batch, sequence, 4] narrow, float[4, 16] up, float[16, 4] down>
{ wide = MatMul(x, up)  narrow = MatMul(wide, down)  y = Add(narrow, x) }"""
SIZES = {"batch": 2, "sequence": 3}
TOKENS = 2 * 3


def live(text: str, sizes: dict[str, int] = SIZES, elsewhere: set[str] = frozenset()) -> LiveSet:  # type: ignore[assignment]
    return largest_live_set(ir.from_onnx_text(text).graph, sizes, elsewhere)


def test_a_chain() -> None:
    """x and wide and narrow at the second product; up and down are named as inputs of no size, hence unknown here."""
    found = live(CHAIN.replace(", float[4, 16] up, float[16, 4] down", "").replace("x, up", "x, x"))
    assert found.bytes == (4 + 16 + 4) * 4 * TOKENS
    assert found.node == "MatMul"
    assert not found.unknown


@pytest.mark.parametrize(("sizes", "tokens"), [({"batch": 1, "sequence": 1}, 1), ({"batch": 8, "sequence": 5}, 40)])
def test_it_grows_with_batch_and_sequence(sizes: dict[str, int], tokens: int) -> None:
    assert live(CHAIN, sizes).bytes == 24 * 4 * tokens


def test_what_is_counted_elsewhere_is_left_out() -> None:
    assert live(CHAIN, elsewhere={"x"}).bytes == (16 + 4) * 4 * TOKENS


def test_a_long_lived_value_stays() -> None:
    """``early`` is read by the last node: at every node between, it is there."""
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (float[sequence, 1] x) => (float[sequence, 8] y)
<float[sequence, 8] early, float[sequence, 2] a, float[sequence, 4] b, float[sequence, 8] c>
{ early = Op(x)  a = Op(x)  b = Op(a)  c = Op(b)  y = Add(c, early) }"""
    last = (1 + 8 + 8 + 8) * 4 * 3
    assert live(text).bytes == last
    # Without that reader it is gone after its own node, and c and y are the most.
    assert live(text.replace("Add(c, early)", "Add(c, c)")).bytes == (1 + 8 + 8) * 4 * 3


def test_a_reshape_is_no_copy() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (float[sequence, 8] x, int64[2] shape) => (float[sequence, 1] y)
<float[sequence, 8] a, float[s2, 4] view>
{ a = Op(x)  view = Reshape(a, shape)  y = Op(view) }"""
    assert live(text).bytes == (8 + 8 + 1) * 4 * 3 + 2 * 8


def test_expressions_and_types() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (float16[batch, sequence] x) => (float16[batch, sequence] y)
<float16["batch*sequence", 3] a> { a = Op(x)  y = Op(a) }"""
    model = ir.from_onnx_text(text.replace('"batch*sequence"', "rows"))
    node = model.graph[0]
    node.outputs[0].shape = ir.Shape(["batch*sequence", 3])
    assert largest_live_set(model.graph, SIZES).bytes == (1 + 3 + 1) * TOKENS * 2


@pytest.mark.parametrize(
    ("nodes", "values"),
    [
        ("a = Sigmoid(x)  y = Op(a)", 8 + 8 + 1),
        ("a, b = Split(x)  y = Op(a, b)", 8 + 4 + 4 + 1),
        ("a = com.microsoft.MatMulNBits <K = 8, N = 32> (x, x, x)  y = Op(a)", 8 + 32 + 1),
        ("a = Concat <axis = 1> (x, x)  y = Op(a)", 8 + 16 + 1),
        ("a = Cast <to = 10> (x)  y = Op(a)", 8 + 4 + 1),
    ],
)
def test_shapes_that_are_not_stated_follow(nodes: str, values: int) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
g (float[sequence, 8] x) => (float[sequence, 1] y) {{ {nodes} }}"""
    found = live(text)
    assert found.bytes == values * 4 * 3
    assert not found.unknown


def test_a_reader_tells_what_the_producer_does_not() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (float[sequence, 8] x) => (float[sequence, 1] y) <float[sequence, 5] b>
{ a = Op(x)  b = Transpose(a)  y = Op(b) }"""
    assert live(text).bytes == (8 + 5 + 5) * 4 * 3
    assert not live(text).unknown


def test_what_nothing_tells_is_said() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (float[sequence, 8] x) => (float[sequence, 1] y) { a = Op(x)  b = Op(a)  y = Op(b) }"""
    found = live(text)
    assert found.unknown == (("Op", 2),)
    assert found.bytes == (8 + 1) * 4 * 3


SCAN = """<ir_version: 10, opset_import: ["" : 23]>
g (float[batch, 6] state, float[sequence, batch, 8] x) => (float[batch, 6] last, float[batch] z)
{ last, all = Scan <num_scan_inputs = 1, body = step (s, t) => (s2, u) { s2 = Neg(s)  u = BODY(t) }> (state, x)
  z = Op(all) }"""


def test_a_scan() -> None:
    """Neither the body nor the scan output has a shape; both follow from what is scanned."""
    found = live(SCAN.replace("BODY", "Neg"))
    outside, step = 2 * 6 + 3 * 2 * 8 + 2 * 6 + 3 * 2 * 8, 2 * 6 + 2 * 8 + 2 * 6 + 2 * 8
    assert found.bytes == (outside + step) * 4
    assert not found.unknown
    assert not found.bodies


def test_an_unknown_body_is_said() -> None:
    found = live(SCAN.replace("BODY", "Op"))
    assert found.bodies == (("Scan", 1),)
    assert found.unknown == (("Scan", 1),)


def test_a_subgraph_keeps_what_it_reads_from_outside() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
g (bool c, float[sequence, 1] x) => (float[sequence, 1] y) <float[sequence, 64] a, float[sequence, 32] b>
{ a = Op(x)  b = Op(x)
  y = If (c) <then_branch = p () => (float[sequence, 1] q) { q = Op(a) },
              else_branch = r () => (float[sequence, 1] s) { s = Op(b) }> }"""
    assert live(text).bytes == (1 + 64 + 32 + 1 + 1) * 4 * 3 + 1
