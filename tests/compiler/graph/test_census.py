from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.census import head_product, input_name, named_inputs, place, read_bytes, stored_bytes
from llmc.compiler.graph.lazy_weight import TensorWeight
from llmc.compiler.graph.operators import nbits
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.lower_moe import LowerMoE
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from ...passes.experts_graphs import CHOSEN, EXPERTS, HIDDEN, INNER, Layer
from ...passes.graphs import draw, parse
from ...passes.plans import in_blocks

MATRICES = EXPERTS * 3 * INNER * HIDDEN
BIASES = EXPERTS * (2 * INNER + HIDDEN)


def small(model: ir.Model) -> int:
    """Bytes of the constants that are not the experts'."""
    return sum(
        v.const_value.nbytes for n, v in model.graph.initializers.items() if v.const_value and v.const_value.size < 9
    )


def test_of_the_experts_those_count_that_a_token_has() -> None:
    """As the portable operator, as the runtime's and in four bits, where 32 weights have 4 bytes of scale."""
    model = Layer(biases=True).model()
    share = CHOSEN / EXPERTS
    assert read_bytes(model.graph) - small(model) == share * 4 * (MATRICES + BIASES)
    LowerMoE()(model)
    RemoveDeadCode()(model)
    assert read_bytes(model.graph) - small(model) == share * 4 * (MATRICES + BIASES)
    in_blocks(bits=4)(model)
    RemoveDeadCode()(model)
    assert read_bytes(model.graph) - small(model) == share * (MATRICES * (0.5 + 4 / 32) + 4 * BIASES)


def test_a_weight_that_another_node_reads_whole_counts_whole() -> None:
    model = Layer().model()
    before = read_bytes(model.graph)
    fc2 = model.graph.initializers["fc2"]
    model.graph.append(ir.node("Relu", [fc2]))
    assert read_bytes(model.graph) - before == (1 - CHOSEN / EXPERTS) * EXPERTS * INNER * HIDDEN * 4


def test_tables_are_not_read() -> None:
    text = "m (int64[n] ids) => (y) { x = Gather(table, ids)\ny = MatMul(x, w) }"
    model = parse(text, {"table": draw(64, 16), "w": draw(16, 4)})
    assert read_bytes(model.graph) == 16 * 4 * 4


def test_quantized_tables_are_not_read() -> None:
    attributes = "gather_axis=0, quantize_axis=1, bits=4, block_size=32"
    body = f"x = com.microsoft.GatherBlockQuantized<{attributes}>(packed, ids, scales)\ny = Tanh(x)"
    weights = {"packed": np.zeros((128, 16), np.uint8), "scales": draw(128, 1)}
    assert read_bytes(parse(f"m (int64[n] ids) => (y) {{ {body} }}", weights).graph) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_packed_tables_are_read_by_a_head_alone(tied: bool) -> None:
    head = "turned = Transpose<perm=[1,0]>(table)\nlogits = MatMul(x, turned)" if tied else "logits = Tanh(x)"
    model = parse(f"m (int64[n] ids) => (logits) {{ x = Gather(table, ids)\n{head} }}", {"table": draw(128, 64)})
    QuantizeWeights({"head": "q6", "embedding": "q6"})(model)
    RemoveDeadCode()(model)
    assert read_bytes(model.graph) == (128 * (64 * 6 // 8 + 2 + 4) if tied else 0)
    assert stored_bytes(model.graph) == 128 * (64 * 6 // 8 + 2 + 4)
    assert (head_product(model.graph) is not None) == tied


def test_a_tied_table_is_read_by_the_head() -> None:
    text = "m (int64[n] ids) => (y) { x = Gather(table, ids)\nt = Transpose<perm=[1,0]>(table)\ny = MatMul(x, t) }"
    assert read_bytes(parse(text, {"table": draw(64, 16)}).graph) == 64 * 16 * 4


def test_the_same_bytes_under_two_names_are_read_once() -> None:
    """Two nodes may read them in two shapes; a tensor that is equal but another one is read, too."""
    text = (
        "m (float[n, 16] x) => (y) { a = MatMul(x, one)\nb = MatMul(x, two)\nc = MatMul(x, three)\ny = Sum(a, b, c) }"
    )
    model = parse(text, {name: draw(16, 4) for name in ("one", "two", "three")})
    stored = model.graph.initializers["one"].const_value
    assert stored is not None
    for lazy in (True, False):
        for name in ("one", "two"):
            shared = TensorWeight(stored, ir.DataType.FLOAT, transposed=False) if lazy else stored
            model.graph.initializers[name].const_value = shared
        assert read_bytes(model.graph) == 2 * 16 * 4 * 4


def test_what_nothing_reads_is_not_read() -> None:
    model = parse("m (float[n, 16] x) => (y) { y = MatMul(x, w) }", {"w": draw(16, 4), "unused": draw(99)})
    assert read_bytes(model.graph) == 16 * 4 * 4


@pytest.mark.parametrize(
    ("operator", "attributes", "before"),
    [
        ("com.microsoft.GroupQueryAttention", "num_heads=4, kv_num_heads=2", "x, k, k, past, past, w, w"),
        ("llmc.CachedAttention", "num_heads=4, kv_num_heads=2, scale=1.0", "x, k, k, past, past, w"),
    ],
)
def test_of_the_tables_of_angles_a_row_is_read(operator: str, attributes: str, before: str) -> None:
    text = f"""m (float[b, s, 64] x, float[b, s, 32] k, float[b, 2, p, 16] past, int32[b] w) => (y, k1, v1) {{
        y, k1, v1 = {operator}<{attributes}>({before}, cos, sin, sink) }}"""
    model = parse(text, {"cos": draw(40, 8), "sin": draw(40, 8), "sink": draw(4)})
    assert read_bytes(model.graph) == 4 * 4


def test_a_token_has_no_more_experts_than_there_are() -> None:
    text = """m (float[n, 16] x, float[n, 2] p) => (y) {
        y = com.microsoft.MoE<k=5>(x, p, fc1, , fc2) }"""
    model = parse(text, {"fc1": draw(2, 8, 16), "fc2": draw(2, 16, 8)})
    assert read_bytes(model.graph) == 2 * 2 * 8 * 16 * 4


@pytest.mark.parametrize(
    "body",
    [
        "logits = MatMul(h, head)",
        "l = MatMul(h, head)\nlogits = Add(head_b, l)",
        "l = MatMul(h, head)\nd = Div(l, cap)\nt = Tanh(d)\nlogits = Mul(cap, t)",
        "t = Transpose<perm=[1, 0]>(table)\nlogits = MatMul(h, t)",
    ],
    ids=["plain", "a bias first", "a cap first", "tied"],
)
def test_the_head_is_the_product_nearest_to_the_logits(body: str) -> None:
    """Whichever output they are, and past constants that come first."""
    text = f"m (float[n, 4] x) => (before, logits, after) {{ before = MatMul(x, w)\nh = Tanh(before)\n{body}"
    weights = {"w": draw(4, 4), "head": draw(4, 6), "head_b": draw(6), "cap": draw(1), "table": draw(6, 4)}
    model = parse(f"{text}\nafter = MatMul(before, w) }}", weights)
    head = head_product(model.graph)
    h = next(node.outputs[0] for node in model.graph if node.outputs[0].name == "h")
    assert head is not None
    assert (head.op_type, head.inputs[0]) == ("MatMul", h)


def test_a_product_of_two_computed_values_is_no_head() -> None:
    """Nor is one that makes another output, unless none is called logits."""
    text = """m (float[n, 4] x) => (hidden, logits) { first = MatMul(x, w)\nhead = MatMul(first, w)\nr = Relu(x)
        both = MatMul(head, r)\nlogits = Tanh(both)\nhidden = MatMul(r, w) }"""
    graph = parse(text, {"w": draw(4, 4)}).graph
    made = {node.outputs[0].name: node for node in graph}
    assert head_product(graph) is made["head"]
    graph.outputs[1].name = "scores"
    assert head_product(graph) is made["hidden"]


def test_logits_that_no_product_makes_have_no_head() -> None:
    assert head_product(parse("m (float[n, 4] x) => (logits) { logits = Neg(x) }").graph) is None
    model = parse("m (float[n, 4] x) => (logits) { h = Neg(w)\nlogits = Abs(w) }", {"w": draw(4)})
    assert head_product(model.graph) is None


def test_inputs_have_the_names_of_their_schemas() -> None:
    """ONNX's own, the runtime's and llmc's; what is not known has none."""
    text = """m (float[n, 32] x, int64[n] i) => (y) {
        y = com.microsoft.MatMulNBits<K=32, N=4, bits=4, block_size=32>(x, packed, scales, , , bias)
        z = LayerNormalization(y, scales, bias)
        u = llmc.Unknown(z) }"""
    model = parse(text, {"packed": np.zeros((4, 1, 16), np.uint8), "scales": draw(4, 1), "bias": draw(4)})
    product, norm, unknown = model.graph
    assert set(named_inputs(product)) == {"A", "B", "scales", "zero_points", "g_idx", "bias"}
    assert named_inputs(product)["bias"] is model.graph.initializers["bias"]
    assert [input_name(norm, index) for index in range(4)] == ["X", "Scale", "B", ""]
    assert input_name(unknown, 0) == ""
    packed = ir.node("GatherNBits", [], domain="llmc")
    assert [input_name(packed, index) for index in range(7)] == [*nbits.GATHER.inputs, ""]


def test_what_is_stored_once_counts_once() -> None:
    """Rows of one tensor, and places of one file, whatever they are called."""
    model = parse("m (float[n, 16] x) => (y) { a = MatMul(x, one)\nb = MatMul(x, two)\ny = Add(a, b) }",
                  {name: draw(16, 4) for name in ("one", "two")})  # fmt: skip
    assert stored_bytes(model.graph) == 2 * 16 * 4 * 4
    for offset in (64, 0):
        for name, start in (("one", 0), ("two", offset)):
            tensor = ir.ExternalTensor("data", start, 256, ir.DataType.FLOAT, shape=ir.Shape([16, 4]), name=name)
            model.graph.initializers[name].const_value = tensor
        assert stored_bytes(model.graph) == read_bytes(model.graph) == (512 if offset else 256)
    one, two = (model.graph.initializers[name].const_value for name in ("one", "two"))
    assert one is not None
    assert two is not None
    assert place(one) == place(two)
