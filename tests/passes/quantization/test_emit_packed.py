"""Weights in planes: calls, bodies and numbers of a small model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.contract import DATA
from llmc.compiler.graph.operators import nbits
from llmc.compiler.graph.write_model import write_model
from llmc.compiler.quantization.scheme import scheme_of
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from ...compiler.quantization.packed_numbers import dequantize, solve
from ..graphs import Array, apply, close, draw, operators, parse, run
from ..quantized_graphs import IDS, TIED, UNTIED, VOCABULARY, forward, make, weights

PLANS = [
    {"linear": "q4", "head": "q6", "embedding": "q6"},
    {"linear": "q3@32", "down_w": "q5", "gate_w": "q2-symmetric", "head": "q8", "embedding": "q8"},
    {"linear": "q6-symmetric", "linear:down": "q5", "head": "q4@128", "embedding": "q4@128"},
]


def packed(rows: Array, name: str) -> Array:
    """What rows are stored as, float64."""
    scheme, solved = solve(rows, name)
    return dequantize(solved, scheme, rows.shape[1])


def exact(plan: dict[str, str]) -> QuantizeWeights:
    """Activations are not rounded."""
    return QuantizeWeights(plan, accuracy_level=0)


@pytest.mark.parametrize("head", [UNTIED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("plan", PLANS)
def test_numbers_are_those_of_the_plan(plan: dict[str, str], head: str) -> None:
    model = make(head)
    assert apply(exact(plan), model).fired == {"embedding": 1, "linear": 3, "head": 1}
    apply(RemoveDeadCode(), model)
    assert [name for name in operators(model) if name != "Mul"] == [
        "llmc::GatherNBits", "llmc::MatMulNBits", "Add", *["llmc::MatMulNBits"] * 3
    ]  # fmt: skip
    assert set(model.functions) == {node.op_identifier() for node in model.graph if nbits.is_call(node)}
    given, matrices = weights(), {}
    for name in ("up_w", "gate_w", "down_w", "head_w"):
        kind = "head" if name == "head_w" else "linear"
        # Nothing here is an activation, so no layer has a role.
        matrices[name] = packed(given[name].T, plan.get(name, plan[kind]))
    matrices["table"] = packed(given["table"], plan["embedding"])
    wanted = forward(matrices, given["up_b"], tied=head == TIED)
    close(run(model, IDS), {"logits": wanted}, rtol=1e-4, atol=2e-3)


def test_calls_say_sizes_and_name_their_layers() -> None:
    model = make()
    apply(QuantizeWeights({"linear": "q5:a16", "head": "q8", "embedding": "q6"}), model)
    calls = {node.name: node for node in model.graph if nbits.is_call(node)}
    assert set(calls) == {"x", "up", "gate", "down", "logits"}

    def numbers(name: str) -> dict[str, int]:
        return {key: attribute.as_int() for key, attribute in calls[name].attributes.items()}

    assert numbers("down") == {"K": 128, "N": 64, "bits": 5, "block_size": 64, "activation_bits": 16}
    assert numbers("logits") == {"K": 64, "N": VOCABULARY, "bits": 8, "block_size": 64}
    assert numbers("x") == {"K": 64, "N": VOCABULARY, "bits": 6, "block_size": 64}
    parts = {name: value for name, value in nbits.MATMUL.arguments(calls["down"]).items() if name != "a"}
    assert {name: value and (value.name, value.dtype, list(value.shape)) for name, value in parts.items()} == {
        "weight": ("down_w.packed", ir.DataType.UINT8, [64, 2, 32]),
        "scales": ("down_w.scales", ir.DataType.UINT8, [64, 2]),
        "zero_points": ("down_w.zero_points", ir.DataType.UINT8, [64, 2]),
        "high": ("down_w.high", ir.DataType.UINT8, [64, 2, 8]),
        "row_scales": ("down_w.row_scales", ir.DataType.FLOAT, [64]),
    }
    assert nbits.MATMUL.get(calls["logits"], "high") is None
    assert calls["down"].overload == "q5_zero_ort4"
    assert calls["x"].overload == "q6_zero"
    assert calls["x"].outputs[0].dtype == ir.DataType.FLOAT


def test_symmetric_weights_have_no_zero_points() -> None:
    model = make()
    apply(QuantizeWeights({"linear": "q4-symmetric"}), model)
    assert not [name for name in model.graph.initializers if name.endswith("zero_points")]


@pytest.mark.parametrize(("name", "size"), [("q4", 4), ("q5", 5), ("q6", 6), ("q8", 8), ("q3", 3), ("q2", 2)])
def test_a_tied_table_is_stored_once(name: str, size: int, tmp_path: Path) -> None:
    """Also where the head's activations have other bits."""
    text = """m (int64[n] ids) => (float[n, 512] logits) {
        x = Gather(table, ids) turned = Transpose<perm=[1,0]>(table) logits = MatMul(x, turned) }"""
    rows = draw(512, 256)
    model = parse(text, {"table": rows}, lazy=True)
    assert apply(exact({"head": f"{name}:a16", "embedding": name}), model).fired == {"embedding": 1, "head": 1}
    RemoveDeadCode()(model)
    lookup, head = (node for node in model.graph)
    assert list(lookup.inputs)[1:] == list(head.inputs)[1:]
    write_model(model, tmp_path)
    # Planes, a scale and a zero point for each block; small tensors may be on pages of their own or in the graph.
    scheme = scheme_of(name, 256)
    assert scheme is not None
    planes, blocks = 512 * 256 * size // 8, 512 * scheme.blocks(256)
    assert planes + 2 * blocks <= (tmp_path / DATA).stat().st_size <= planes + 2 * blocks + 512 * 4 + 5 * 4096
    table = packed(rows, name)
    wanted = table[[3, 511]] @ table.T
    close(run(model, {"ids": np.asarray([3, 511])}), {"logits": wanted}, rtol=1e-4, atol=1e-3)


def test_rows_that_fill_no_block_are_taken() -> None:
    text = "m (float[n, 40] x) => (float[n, 33] logits) { h = MatMul(x, w) t = Tanh(h) logits = MatMul(t, head) }"
    given = {"w": draw(40, 50), "head": draw(50, 33, seed=1)}
    model = parse(text, given, lazy=True)
    assert apply(exact({"linear": "q5", "head": "q4@64"}), model).fired == {"linear": 1, "head": 1}
    x = draw(3, 40, seed=2)
    wanted = np.tanh(x @ packed(given["w"].T, "q5").T) @ packed(given["head"].T, "q4@64").T
    close(run(model, {"x": x}), {"logits": wanted}, rtol=1e-4, atol=1e-4)
