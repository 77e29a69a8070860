from __future__ import annotations

import onnx_ir as ir

from llmc.passes.lower_moe import LowerMoE
from llmc.passes.quantize_weights import QuantizeWeights
from llmc.passes.remove_dead_code import RemoveDeadCode
from llmc.passes.weight_traffic import decode_weight_bytes

from .experts_graphs import CHOSEN, EXPERTS, HIDDEN, INNER, Layer
from .graphs import draw, parse

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
    QuantizeWeights(bits=4)(model)
    RemoveDeadCode()(model)
    assert decode_weight_bytes(model) - small(model) == share * (MATRICES * (0.5 + 4 / 32) + 4 * BIASES)


def test_a_weight_that_another_node_reads_whole_counts_whole() -> None:
    model = Layer().model()
    before = decode_weight_bytes(model)
    fc2 = model.graph.initializers["fc2"]
    model.graph.append(ir.node("Relu", [fc2]))
    assert decode_weight_bytes(model) - before == (1 - CHOSEN / EXPERTS) * EXPERTS * INNER * HIDDEN * 4


def test_tables_and_shared_bytes() -> None:
    text = "m (int64[n] ids) => (y) { x = Gather(table, ids)\ny = MatMul(x, w) }"
    model = parse(text, {"table": draw(64, 16), "w": draw(16, 4)})
    assert decode_weight_bytes(model) == 16 * 4 * 4
