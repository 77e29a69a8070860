from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.lazy_weight import TensorWeight
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph.weight_traffic import decode_weight_bytes
from llmc.passes.lowering.lower_moe import LowerMoE

from ..experts_graphs import CHOSEN, EXPERTS, HIDDEN, INNER, Layer
from ..graphs import draw, parse
from ..plans import in_blocks

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
    assert decode_weight_bytes(model) - small(model) == share * 4 * (MATRICES + BIASES)
    LowerMoE()(model)
    RemoveDeadCode()(model)
    assert decode_weight_bytes(model) - small(model) == share * 4 * (MATRICES + BIASES)
    in_blocks(bits=4)(model)
    RemoveDeadCode()(model)
    assert decode_weight_bytes(model) - small(model) == share * (MATRICES * (0.5 + 4 / 32) + 4 * BIASES)


def test_a_weight_that_another_node_reads_whole_counts_whole() -> None:
    model = Layer().model()
    before = decode_weight_bytes(model)
    fc2 = model.graph.initializers["fc2"]
    model.graph.append(ir.node("Relu", [fc2]))
    assert decode_weight_bytes(model) - before == (1 - CHOSEN / EXPERTS) * EXPERTS * INNER * HIDDEN * 4


def test_tables_are_not_read() -> None:
    text = "m (int64[n] ids) => (y) { x = Gather(table, ids)\ny = MatMul(x, w) }"
    model = parse(text, {"table": draw(64, 16), "w": draw(16, 4)})
    assert decode_weight_bytes(model) == 16 * 4 * 4


def test_quantized_tables_are_not_read() -> None:
    attributes = "gather_axis=0, quantize_axis=1, bits=4, block_size=32"
    body = f"x = com.microsoft.GatherBlockQuantized<{attributes}>(packed, ids, scales)\ny = Tanh(x)"
    weights = {"packed": np.zeros((128, 16), np.uint8), "scales": draw(128, 1)}
    assert decode_weight_bytes(parse(f"m (int64[n] ids) => (y) {{ {body} }}", weights)) == 0


def test_a_tied_table_is_read_by_the_head() -> None:
    text = "m (int64[n] ids) => (y) { x = Gather(table, ids)\nt = Transpose<perm=[1,0]>(table)\ny = MatMul(x, t) }"
    assert decode_weight_bytes(parse(text, {"table": draw(64, 16)})) == 64 * 16 * 4


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
        assert decode_weight_bytes(model) == 2 * 16 * 4 * 4


def test_what_nothing_reads_is_not_read() -> None:
    model = parse("m (float[n, 16] x) => (y) { y = MatMul(x, w) }", {"w": draw(16, 4), "unused": draw(99)})
    assert decode_weight_bytes(model) == 16 * 4 * 4


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
    assert decode_weight_bytes(model) == 4 * 4


def test_a_token_has_no_more_experts_than_there_are() -> None:
    text = """m (float[n, 16] x, float[n, 2] p) => (y) {
        y = com.microsoft.MoE<k=5>(x, p, fc1, , fc2) }"""
    model = parse(text, {"fc1": draw(2, 8, 16), "fc2": draw(2, 16, 8)})
    assert decode_weight_bytes(model) == 2 * 2 * 8 * 16 * 4
