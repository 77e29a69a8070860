"""Plans: which site is stored in which scheme."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.quantization.quantize_weights import EMITTERS, QuantizeWeights

from ..graphs import apply, draw, left_alone, operators, parse
from ..quantized_graphs import TIED, make


def stored(plan: dict[str, str]) -> dict[str, Any]:
    model = make()
    apply(QuantizeWeights(plan), model)
    RemoveDeadCode()(model)
    names = [name.rpartition(".") for name in model.graph.initializers if "." in name]
    parts: dict[str, list[str]] = {}
    for stem, _, part in names:
        parts.setdefault(stem, []).append(part)
    return parts


def test_a_site_goes_before_its_kind() -> None:
    """By name another scheme, or floats; one graph holds operators of several forms."""
    plan = {"linear": "int4@32", "up_w": "float", "gate_w": "qdq-int8", "down_w": "int4-zero@64", "head": "fp8@64"}
    assert stored(plan) == {
        "gate_w": ["scales", "int8"], "down_w": ["packed", "scales", "zero_points"], "head_w": ["fp8", "fp8_scales"]
    }  # fmt: skip


def test_a_role_goes_before_its_kind_and_a_name_before_its_role() -> None:
    text = """m (float[n, 64] h) => (float[n, 64] y) {
        g = MatMul(h, g_w) u = MatMul(h, u_w) s = Gelu(g) a = Mul(s, u) y = MatMul(a, d_w) }"""
    weights = {"g_w": draw(64, 96), "u_w": draw(64, 96, seed=1), "d_w": draw(96, 64, seed=2)}
    model = parse(text, weights, lazy=True)
    plan = {"linear": "q4", "linear:down": "q6", "linear:gate_up": "q5", "g_w": "q8"}
    assert apply(QuantizeWeights(plan), model).fired == {"linear": 3}
    bits = {node.outputs[0].name: node.attributes.get_int("bits") for node in model.graph if "NBits" in node.op_type}
    assert bits == {"g": 8, "u": 5, "y": 6}


@pytest.mark.parametrize(
    ("plan", "stored"),
    [
        ({"linear": "q4"}, {"int4": 2}),
        ({"linear": "int8@32"}, {"int8": 2}),
        ({"linear": "q5"}, {"int5": 2}),
        ({"linear": "fp8"}, {"fp8": 2}),
        ({"linear": "qdq-nvfp4"}, {"nvfp4": 2}),
        ({"linear": "q4", "v": "float"}, {"int4": 1, "float": 1}),
    ],
)
def test_what_weights_are_stored_in_is_counted(plan: dict[str, str], stored: dict[str, int]) -> None:
    text = "m (float[n, 128] x) => (float[n, 128] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    model = parse(text, {"w": draw(128, 128), "v": draw(128, 128, seed=1)}, lazy=True)
    assert apply(QuantizeWeights(plan), model).stored == stored


def test_what_a_plan_leaves_out_stays() -> None:
    """A head without a scheme of its own is a layer like others."""
    model = make(TIED)
    assert left_alone(QuantizeWeights({}), model) == []
    assert apply(QuantizeWeights({"linear": "int4@32"}), model).fired == {"linear": 4}
    assert "Gather" in operators(model)
    model = make(TIED)
    assert apply(QuantizeWeights({"linear": "int4@32", "head": "float"}), model).fired == {"linear": 3}
    model = make(TIED)
    assert apply(QuantizeWeights({"embedding": "qdq-int8"}), model).fired == {"embedding": 1}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"embedding": "fp8"}, "no operator for embedding reads weights as fp8 FLOAT8E4M3FN$"),
        ({"embedding": "int4-offset"}, "no operator for embedding reads weights as nbits UINT4 with an offset$"),
        ({"experts": "int8-offset@64"}, "no operator for experts reads weights as nbits UINT8 with an offset$"),
        ({"experts": "q4"}, "no operator for experts reads weights as packed UINT8$"),
        ({"linear:down": "q9"}, "q9 is no scheme"),
        ({"linear": "int4:a16"}, "int4:a16: the activations of a packed product have 8 or 16 bits"),
        ({"experts": "qdq-int4"}, "no operator for experts reads weights as qdq INT4$"),
        ({"linear": "int3"}, "int3 is no scheme"),
        ({"layers.0.up_proj": "int4@24"}, "block size 24 is not a power of two from 16 up"),
    ],
)
def test_what_no_operator_reads_is_refused(plan: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantizeWeights(plan)


def test_a_site_that_is_named_is_refused_where_it_is_met() -> None:
    with pytest.raises(UsageError, match="no operator for embedding reads weights as fp8"):
        QuantizeWeights({"embedding": "int8", "table": "fp8"})(make())


def test_every_kind_has_emitters() -> None:
    assert {kind: set(forms) for kind, forms in EMITTERS.items()} == {
        "linear": {"nbits", "packed", "fp8", "qdq"}, "head": {"nbits", "packed", "fp8", "qdq"},
        "embedding": {"nbits", "packed", "qdq"}, "experts": {"nbits"},
    }  # fmt: skip
