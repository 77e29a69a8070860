"""Packed weights in llmc's own CPU operators: what is handed over, what moves inside, and the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llmc.compiler.graph.operators import cpu, nbits
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.engine.use_cpu_gather import UseCpuGather
from llmc.passes.engine.use_cpu_matmul import UseCpuMatMul
from llmc.passes.pipeline import cpu_engine_passes
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.runner import run_passes
from llmc.runtimes.kernels.library import VARIANTS, kernel_library

from ..graphs import Array, apply, draw, left_alone, node_of, operators, parse, run

K, N = 64, 48
SKIP = 'n, "", "", t = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.25>(x, r, gamma)'
NORM = "n = RMSNormalization<epsilon=0.25>(x, gamma)"
TYPE = f"float[b, s, {K}]"
FEEDS: dict[str, Array] = {
    "x": draw(2, 3, K, seed=11),
    "r": draw(2, 3, K, seed=12),
    "z": draw(2, 3, N),
    "ids": np.asarray([[0, 69, 3], [3, 11, 40]]),
}


def packed(body: str, plan: dict[str, str], outputs: str) -> ir.Model:
    """Products with ``w``, ``w2`` and ``w3`` [K, N] in packed numbers; ONNX Runtime does not round activations."""
    weights = {name: draw(K, N, seed=seed) for seed, name in enumerate(("w", "w2", "w3"))}
    weights |= {"bias": draw(N, seed=5), "gamma": draw(K, seed=6), "one": draw(1), "table": draw(70, K, seed=7)}
    inputs = f"{TYPE} x, {TYPE} r, float[b, s, {N}] z, int64[b, s] ids"
    model = parse(f"m ({inputs}) => ({outputs}) {{ {body} }}", weights, lazy=True)
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
        if node.op_type == "SkipSimplifiedLayerNormalization":
            node.outputs[0].shape, node.outputs[0].dtype = ir.Shape(["b", "s", K]), ir.DataType.FLOAT
    assert apply(QuantizeWeights(plan, accuracy_level=0), model).fired
    RemoveDeadCode()(model)
    return model


def require_equal(model: ir.Model, wanted: dict[str, Array], variant: Any) -> None:
    """Of activations of 16 bits."""
    if (reason := variant.unsupported_reason()) is not None:
        pytest.skip(f"CPU kernels: {reason}")
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(kernel_library(variant=variant)))
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    known = {item.name for item in session.get_inputs()}
    results = session.run(list(wanted), {name: array for name, array in FEEDS.items() if name in known})
    for name, result in zip(wanted, results, strict=True):
        np.testing.assert_allclose(result, wanted[name], rtol=0, atol=5e-4 * np.abs(wanted[name]).max())


def y(*names: str) -> str:
    return ", ".join(f"float[b, s, {N}] {name}" for name in names)


def handed_over(model: ir.Model) -> tuple[dict[str, str], dict[str, Any]]:
    apply(UseCpuMatMul(), model)
    node = node_of(model, "MatMulNBits")
    assert node.domain == cpu.DOMAIN
    given = {name: value.name or "" for name, value in cpu.MATMUL.arguments(node).items() if value is not None}
    return given, {name: attribute.value for name, attribute in node.attributes.items()}


BOTH = "y = MatMul(x, w) x2 = Gather(table, ids)"
PARTS = {name: f"w.{name}" for name in ("scales", "zero_points", "row_scales")} | {"weight": "w.packed"}


def test_parts_of_the_weight_and_bits_of_activations_find_their_places() -> None:
    model = packed("y = MatMul(x, w)", {"linear": "q6:a16"}, y("y"))
    sizes = {"K": K, "N": N, "bits": 6, "block_size": 64}
    assert handed_over(model) == ({"a": "x", "high": "w.high", **PARTS}, {**sizes, "activation_bits": 16})
    assert model.graph.opset_imports["llmc.cpu"] == 1
    model = packed("y = MatMul(x, w)", {"linear": "q4-symmetric@32"}, y("y"))
    parts = {name: part for name, part in PARTS.items() if name != "zero_points"}
    assert handed_over(model) == ({"a": "x", **parts}, {**sizes, "bits": 4, "block_size": 32})


@pytest.mark.parametrize("added", ["Add(p, bias)", "Add(bias, p)"])
def test_a_bias_moves_inside(added: str) -> None:
    model = packed(f"p = MatMul(x, w) y = {added}", {"linear": "q4"}, y("y"))
    assert handed_over(model)[0] == {"a": "x", "bias": "bias", **PARTS}
    assert operators(model) == ["llmc.cpu::MatMulNBits"]
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("p = MatMul(x, w) y = Add(p, z)", y("y")),
        ("p = MatMul(x, w) y = Add(p, one)", y("y")),
        ("p = MatMul(x, w) y = Sub(p, bias)", y("y")),
        ("p = MatMul(x, w) y = llmc.Add(p, bias)", y("y")),
        ("p = MatMul(x, w) y = Add(p, bias)", y("y", "p")),
        ("p = MatMul(x, w) y = Add(p, bias) o = Neg(p)", y("y", "o")),
        ("p = MatMul(x, w) y = Add(p, p)", y("y")),
    ],
    ids=["computed", "one number", "subtracted", "another domain", "a result", "read elsewhere", "doubled"],
)
def test_other_additions_stay(body: str, outputs: str) -> None:
    model = packed(body, {"linear": "q4"}, outputs)
    count = len(operators(model))
    assert handed_over(model)[0] == {"a": "x", **PARTS}
    assert len(operators(model)) == count


@pytest.mark.parametrize(("norm", "outputs"), [(SKIP, f", {TYPE} t"), (NORM, "")], ids=["residual", "plain"])
def test_a_norm_that_products_alone_read_moves_into_each(norm: str, outputs: str) -> None:
    """The first one adds the residual, and the others read its sum."""
    body = f"{norm} y = MatMul(n, w) y2 = MatMul(n, w2) y3 = MatMul(n, w3)"
    model = packed(body, {"linear": "q4"}, y("y", "y2", "y3") + outputs)
    assert apply(UseCpuMatMul(), model).fired == {"matmul": 3}
    assert operators(model) == ["llmc.cpu::MatMulNBits"] * 3
    first, *others = model.graph
    total = first.outputs[1] if outputs else model.graph.inputs[0]
    assert total.name == ("t" if outputs else "x")
    assert [node.inputs[0].name for node in (first, *others)] == ["x", total.name, total.name]
    assert [len(node.outputs) for node in (first, *others)] == [2 if outputs else 1, 1, 1]
    assert {node.inputs[5].name for node in model.graph} == {"gamma"}
    assert {node.attributes.get_float("epsilon") for node in model.graph} == {0.25}


def test_a_sum_that_products_alone_read_is_handed_on() -> None:
    norm = "n = com.microsoft.SkipSimplifiedLayerNormalization(x, r, gamma)"
    model = packed(f"{norm} y = MatMul(n, w) y2 = MatMul(n, w2)", {"linear": "q4:a16"}, y("y", "y2"))
    wanted = run(model, FEEDS)
    apply(UseCpuMatMul(), model)
    first, second = model.graph
    assert second.inputs[0] is first.outputs[1]
    require_equal(model, wanted, VARIANTS[-1])


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"{NORM} y = MatMul(n, w) y2 = MatMul(n, w2) o = Neg(n)", f"{y('y', 'y2')}, {TYPE} o"),
        (f"{NORM} y = MatMul(n, w) y2 = MatMul(n, w2)", f"{y('y', 'y2')}, {TYPE} n"),
        ("n = LayerNormalization(x, gamma) y = MatMul(n, w) y2 = MatMul(n, w2)", y("y", "y2")),
    ],
    ids=["read elsewhere", "a result", "another norm"],
)
def test_a_norm_that_others_read_stays(body: str, outputs: str) -> None:
    model = packed(body, {"linear": "q4"}, outputs)
    apply(UseCpuMatMul(), model)
    assert operators(model)[0] in {"RMSNormalization", "LayerNormalization"}
    assert operators(model).count("RMSNormalization") <= 1
    assert [node.inputs[0].name for node in model.graph if node.domain == "llmc.cpu"] == ["n", "n"]


def test_a_norm_stays_where_one_of_its_products_does() -> None:
    model = packed(f"{NORM} y = MatMul(n, w) y2 = MatMul(n, w2)", {"linear": "q4", "w2": "int4@16"}, y("y", "y2"))
    fired = UseCpuMatMul()(model).tally
    assert fired.fired == {"matmul": 1}
    assert [rejection.reason for rejection in fired.rejections] == [
        "llmc.cpu takes 4 or 8 bits in blocks of a multiple of 32, not 4 and 16"
    ]
    assert operators(model)[0] == "RMSNormalization"


def test_parts_that_are_computed_are_left_alone() -> None:
    model = packed(BOTH, {"linear": "q4", "embedding": "q4"}, f"{y('y')}, {TYPE} x2")
    for node in model.graph:
        index = [*nbits.MATMUL.inputs].index("row_scales")
        value = ir.val(f"fed_{node.op_type}", ir.DataType.FLOAT, node.inputs[index].shape)
        model.graph.inputs.append(value)
        node.replace_input_with(index, value)
    for graph_pass in (UseCpuMatMul(), UseCpuGather()):
        assert left_alone(graph_pass, model) == ["llmc.cpu takes weights that are constants"]


@pytest.mark.parametrize("operator", [nbits.MATMUL, nbits.GATHER], ids=lambda operator: operator.name)
def test_blocks_that_the_kernel_lacks_are_left_alone(operator: Any) -> None:
    model = packed(BOTH, {"linear": "q4", "embedding": "q4"}, f"{y('y')}, {TYPE} x2")
    [node] = operator.calls(model.graph)
    node.attributes["block_size"] = ir.AttrInt64("block_size", 48)
    graph_pass = UseCpuMatMul() if operator is nbits.MATMUL else UseCpuGather()
    reason = "llmc.cpu takes 2, 3, 4, 5, 6 or 8 bits in blocks of a multiple of 32, not 4 and 48"
    assert left_alone(graph_pass, model) == [reason]


def test_a_look_up_is_handed_over() -> None:
    model = packed("x2 = Gather(table, ids)", {"embedding": "q6"}, f"{TYPE} x2")
    assert apply(UseCpuGather(), model).fired == {"gather": 1}
    node = node_of(model, "GatherNBits")
    assert (node.domain, node.name) == ("llmc.cpu", "node_x2")
    parts = ("packed", "scales", "zero_points", "high", "row_scales")
    assert [value.name for value in node.inputs] == ["ids", *(f"table.{part}" for part in parts)]
    sizes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert sizes == {"K": K, "N": 70, "bits": 6, "block_size": 64}
    assert model.graph.opset_imports["llmc.cpu"] == 1


BODY = f"x2 = Gather(table, ids) n0 = Add(x2, x) {SKIP.replace('(x,', '(n0,')} y = MatMul(n, w) y0 = MatMul(n, w2)"
BODY += " y2 = Add(y0, bias)"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_numbers_agree(bits: int, variant: Any) -> None:
    """Kernels round activations to 16 bits here, and the bodies not at all."""
    plan = {"linear": f"q{bits}:a16", "w2": f"q{bits}-symmetric:a16", "embedding": f"q{bits}"}
    model = packed(BODY, plan, f"{y('y', 'y2')}, {TYPE} t")
    wanted = run(model, FEEDS)
    run_passes(model, cpu_engine_passes())
    assert set(operators(model)) == {"llmc.cpu::GatherNBits", "Add", "llmc.cpu::MatMulNBits"}
    require_equal(model, wanted, variant)
