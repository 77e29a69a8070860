"""MatMulNBits, norms and gates into llmc's own CPU operators: numbers, what is handed over, what is left alone."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.engine.use_cpu_matmul import UseCpuMatMul
from llmc.passes.pipeline import cpu_engine_passes
from llmc.passes.runner import run_passes
from llmc.runtimes.kernels.library import VARIANTS, kernel_library

from ..graphs import apply, draw, left_alone, node_of, operators, parse
from .cpu_blocks import block, run_block


def use_kernels(model):
    """Fired, expected, and the reasons, over all passes."""
    outcomes = run_passes(model, cpu_engine_passes())
    fired, expected, reasons = {}, {}, []
    for outcome in outcomes:
        if outcome.record.name != "RemoveDeadCode":
            fired.update(outcome.record.counts)
            expected.update(outcome.record.expected)
            reasons += [reason for _, reason in outcome.rejections]
    return fired, expected, reasons


@pytest.mark.parametrize("act", ["QuickGelu", "Gelu"])
@pytest.mark.parametrize("skip", [True, False])
def test_norm_gate_and_product_become_one_node(skip, act):
    model = block(skip=skip, act=act)
    fired, expected, _ = use_kernels(model)
    assert fired == expected == {"matmul": 1, "gated": 1}
    assert operators(model) == ["llmc.cpu::GatedMatMulNBits"]
    assert use_kernels(model)[0] == {}


BLOCKS = [
    {"skip": skip, "act": act, "halves": halves, "biased": biased}
    for skip in (True, False)
    for act in ("QuickGelu", "Gelu")
    for halves in ((64, 64), (48, 48))
    for biased in (True, False)
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize(
    "options", [*BLOCKS, {"counted": True}, {"epsilon": 3.0}, {"epsilon": 3.0, "skip": False}, {"offsets": True}]
)
def test_numbers_agree(options, variant):
    if (reason := variant.unsupported_reason()) is not None:
        pytest.skip(f"CPU kernels: {reason}")
    expected = run_block(block(**options))
    model = block(**options)
    fired, _, _ = use_kernels(model)
    assert fired["gated"] == 1
    for new, old in zip(run_block(model, kernel_library(variant=variant)), expected, strict=True):
        # Both quantize activations to int8, and round at different places.
        np.testing.assert_allclose(new, old, atol=0.02 * np.abs(old).max())


def test_a_norm_that_others_read_stays():
    model = block(second_reader=True)
    use_kernels(model)
    assert operators(model)[0] == "com.microsoft::SkipSimplifiedLayerNormalization"
    assert "llmc.cpu::GatedMatMulNBits" in operators(model)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"halves": (40, 40)}, "its halves are [40, 40], not two of the same multiple of 16"),
        ({"halves": (64, 32)}, "its halves are [64, 32], not two of the same multiple of 16"),
        ({"alpha": 1.702}, "llmc.cpu has no QuickGelu"),
        ({"act": "Relu"}, "llmc.cpu has no Relu"),
    ],
)
def test_near_misses_say_why(options, reason):
    model = block(**options)
    fired, expected, reasons = use_kernels(model)
    assert "gated" not in fired
    assert expected["gated"] == 1
    assert reason in reasons


def test_a_block_size_that_the_kernel_lacks_stays():
    model = block()
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["block_size"] = ir.AttrInt64("block_size", 16)
    fired, _, reasons = use_kernels(model)
    assert "matmul" not in fired
    assert reasons[0].startswith("llmc.cpu takes 4 or 8 bits")


K, N = 64, 32
WEIGHTS = {
    "w": np.zeros((N, 2, 16), np.uint8),
    "s": draw(N, 2),
    "z": np.zeros((N, 1), np.uint8),
    "bias": draw(N),
    "gamma": draw(K),
    "beta": draw(K),
    "one": draw(1),
    "floats": draw(N, 2),
    "offsets": draw(2, N),
    "shape": np.asarray([0, 0, 2, 32]),
    "axis": np.asarray([3]),
}
PRODUCT = f"com.microsoft.MatMulNBits<K={K}, N={N}, bits=4, block_size=32>"
SKIP_NORM = "com.microsoft.SkipSimplifiedLayerNormalization"
SUMS = "blocks = Reshape(x, shape) sums = ReduceSum<keepdims=0>(blocks, axis) more = MatMul(sums, offsets)"


def graph(body, outputs=f"float[b, s, {N}] y", more=""):
    """The nodes of ``body`` over x and r; weights that it does not read are left out."""
    text = f"main_graph (float[b, s, {K}] x, float[b, s, {K}] r{more}) => ({outputs}) {{ {body} }}"
    model = parse(text, {name: value for name, value in WEIGHTS.items() if re.search(rf"\b{name}\b", body)})
    for node in model.graph:
        node.name = "product" if node.op_type == "MatMulNBits" else f"other_{node.op_type}"
    return model


def handed_over(model):
    """Inputs and attributes of the one new product."""
    apply(UseCpuMatMul(), model)
    assert model.graph.opset_imports["llmc.cpu"] == 1
    node = node_of(model, "MatMulNBits")
    assert node.domain == "llmc.cpu"
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert node.name == "product"
    return [value.name if value else "" for value in node.inputs], attributes


SIZES = {"K": K, "N": N, "bits": 4, "block_size": 32}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("x, w, s", ["x", "w", "s"]),
        ("x, w, s, z", ["x", "w", "s", "z"]),
        ('x, w, s, "", "", bias', ["x", "w", "s", "", "bias"]),
        ('x, w, s, z, "", bias', ["x", "w", "s", "z", "bias"]),
    ],
)
def test_zero_points_and_bias_find_their_places(given, expected):
    assert handed_over(graph(f"y = {PRODUCT}({given})")) == (expected, SIZES)


def test_a_norm_with_its_residual_moves_inside():
    body = f'n, "", "", t = {SKIP_NORM}<epsilon=0.25>(x, r, gamma) y = {PRODUCT}(n, w, s, "", "", bias)'
    model = graph(body, f"float[b, s, {N}] y, float[b, s, {K}] t")
    inputs, attributes = handed_over(model)
    assert inputs == ["x", "w", "s", "", "bias", "gamma", "r"]
    assert attributes == {**SIZES, "epsilon": 0.25}
    assert operators(model) == ["llmc.cpu::MatMulNBits"]
    total = node_of(model, "MatMulNBits").outputs[1]
    assert [value.name for value in model.graph.outputs] == ["y", "t"]
    assert model.graph.outputs[1] is total
    assert (total.dtype, total.shape) == (ir.DataType.FLOAT, model.graph.inputs[0].shape)


@pytest.mark.parametrize("axis", ["", "axis=-1, ", "axis=2, "])
def test_a_norm_without_residual_moves_inside(axis):
    model = graph(f"n = RMSNormalization<{axis}epsilon=0.5>(x, gamma) y = {PRODUCT}(n, w, s)")
    assert handed_over(model) == (["x", "w", "s", "", "", "gamma"], {**SIZES, "epsilon": 0.5})
    assert operators(model) == ["llmc.cpu::MatMulNBits"]
    assert len(node_of(model, "MatMulNBits").outputs) == 1


@pytest.mark.parametrize("norm", [f'n, "", "", t = {SKIP_NORM}(x, r, gamma)', "n = RMSNormalization(x, gamma)"])
def test_a_norm_without_epsilon_has_that_of_its_operator(norm):
    assert handed_over(graph(f"{norm} y = {PRODUCT}(n, w, s)"))[1]["epsilon"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("norm", "outputs"),
    [
        ("n = RMSNormalization<axis=1>(x, gamma)", ""),
        ("n = RMSNormalization<axis=-2>(x, gamma)", ""),
        (f'n, "", "", t = {SKIP_NORM}(x, r, gamma, beta)', ""),
        ("n = RMSNormalization(x, gamma)", f", float[b, s, {K}] n"),
        ("n = RMSNormalization(x, gamma) m = Neg(n)", f", float[b, s, {K}] m"),
        ("n = LayerNormalization(x, gamma)", ""),
        ("n = Tanh(x)", ""),
        ("n = llmc.RMSNormalization(x, gamma)", ""),
        ("n = llmc.SkipSimplifiedLayerNormalization(x, r, gamma)", ""),
    ],
    ids=[
        "two axes",
        "two axes from the end",
        "with an addend",
        "result of the graph",
        "read twice",
        "another norm",
        "no norm",
        "of another domain",
        "with residual, of another domain",
    ],
)
def test_other_norms_stay(norm, outputs):
    model = graph(f"{norm} y = {PRODUCT}(n, w, s)", f"float[b, s, {N}] y{outputs}")
    first = operators(model)[0]
    # Of an operator of another domain no shape is inferred.
    next(iter(model.graph)).outputs[0].shape = ir.Shape(["b", "s", K])
    assert handed_over(model) == (["n", "w", "s"], SIZES)
    assert operators(model)[0] == first


def test_a_norm_by_head_stays():
    body = f"n = RMSNormalization(four, gamma) y = {PRODUCT}(n, w, s)"
    model = graph(body, f"float[b, h, s, {N}] y", f", float[b, h, s, {K}] four")
    assert handed_over(model)[0] == ["n", "w", "s"]


@pytest.mark.parametrize("shape", [None, ir.Shape(["s", K])])
def test_a_norm_of_another_or_no_known_shape_stays(shape):
    model = graph(f"n = RMSNormalization(x, gamma) y = {PRODUCT}(n, w, s)")
    node_of(model, "RMSNormalization").outputs[0].shape = shape
    assert handed_over(model)[0] == ["n", "w", "s"]


def test_the_mean_of_a_norm_with_residual_is_not_its_result():
    """A product of another of its outputs: here of the sum."""
    model = graph(f'n, "", "", t = {SKIP_NORM}(x, r, gamma) y = {PRODUCT}(t, w, s)')
    norm = node_of(model, "SkipSimplifiedLayerNormalization")
    norm.outputs[3].shape, norm.outputs[3].dtype = ir.Shape(["b", "s", K]), ir.DataType.FLOAT
    assert handed_over(model)[0] == ["t", "w", "s"]


@pytest.mark.parametrize("order", ["p, more", "more, p"])
def test_offsets_of_blocks_move_inside(order):
    model = graph(f"p = {PRODUCT}(x, w, s) {SUMS} y = Add({order})")
    assert handed_over(model)[0] == ["x", "w", "s", "", "", "", "", "offsets"]
    assert operators(model) == ["llmc.cpu::MatMulNBits"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_norm_moves_inside_beside_offsets():
    body = f"x1 = RMSNormalization(x, gamma) p = {PRODUCT}(x1, w, s) {SUMS} y = Add(p, more)"
    model = graph(body.replace("Reshape(x,", "Reshape(x1,"))
    assert handed_over(model)[0] == ["x", "w", "s", "", "", "gamma", "", "offsets"]
    assert operators(model) == ["llmc.cpu::MatMulNBits"]


def test_a_norm_moves_into_products_that_share_its_sums():
    body = f"""x1 = RMSNormalization(x, gamma) p = {PRODUCT}(x1, w, s) {SUMS} y = Add(p, more)
        p2 = {PRODUCT}(x1, w, s) more2 = MatMul(sums, offsets) y2 = Add(p2, more2)"""
    model = graph(body.replace("Reshape(x,", "Reshape(x1,"), f"float[b, s, {N}] y, float[b, s, {N}] y2")
    apply(UseCpuMatMul(), model)
    assert operators(model) == ["llmc.cpu::MatMulNBits"] * 2
    for node in model.graph:
        names = [value.name if value else "" for value in node.inputs]
        assert names == ["x", "w", "s", "", "", "gamma", "", "offsets"]


def test_sums_that_two_products_share_stay_until_the_last():
    body = f"""p = {PRODUCT}(x, w, s) {SUMS} y = Add(p, more)
        p2 = {PRODUCT}(x, w, s) more2 = MatMul(sums, offsets) y2 = Add(p2, more2)"""
    model = graph(body, f"float[b, s, {N}] y, float[b, s, {N}] y2")
    apply(UseCpuMatMul(), model)
    assert operators(model) == ["llmc.cpu::MatMulNBits"] * 2
    assert [value.name for value in model.graph.outputs] == ["y", "y2"]


def test_sums_that_another_product_reads_stay():
    body = f"p = {PRODUCT}(x, w, s) {SUMS} y = Add(p, more) o = MatMul(sums, offsets)"
    model = graph(body, f"float[b, s, {N}] y, float[b, s, {N}] o")
    assert handed_over(model)[0][7] == "offsets"
    assert sorted(operators(model)) == ["MatMul", "ReduceSum", "Reshape", "llmc.cpu::MatMulNBits"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (SUMS.replace("Reshape(x", "Reshape(r") + " y = Add(p, more)", ""),
        (SUMS.replace("ReduceSum", "ReduceMean") + " y = Add(p, more)", ""),
        (SUMS.replace("MatMul(sums, offsets)", "MatMul(sums, made)") + " y = Add(p, more)", ""),
        (SUMS + " y = Sub(p, more)", ""),
        (SUMS + " y = llmc.Add(p, more)", ""),
        (SUMS + " y = Add(p, more)", f", float[b, s, {N}] p"),
        (SUMS + " y = Add(p, more) o = Tanh(p)", f", float[b, s, {N}] o"),
        ("y = Add(p, p)", ""),
        ("y = Add(p, other)", ""),
        ("blocks = Reshape(x, shape) sums = ReduceSum<keepdims=0>(blocks, axis) y = Add(p, sums)", ""),
    ],
    ids=[
        "sums of another value",
        "means",
        "offsets that are computed",
        "subtracted",
        "of another domain",
        "product is a result",
        "product is read elsewhere",
        "doubled",
        "a residual",
        "no product of sums",
    ],
)
def test_other_additions_stay(body, outputs):
    more = f", float[2, {N}] made, float[b, s, {N}] other"
    model = graph(f"p = {PRODUCT}(x, w, s) {body}", f"float[b, s, {N}] y{outputs}", more)
    count = len(operators(model))
    assert handed_over(model)[0] == ["x", "w", "s"]
    assert len(operators(model)) == count


@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (8, 32), (4, 64), (8, 96), (4, 256)])
def test_the_formats_that_the_kernel_takes(bits, block_size):
    product = PRODUCT.replace("bits=4, block_size=32", f"bits={bits}, block_size={block_size}")
    assert handed_over(graph(f"y = {product}(x, w, s)"))[1] == {**SIZES, "bits": bits, "block_size": block_size}


@pytest.mark.parametrize(("bits", "block_size"), [(2, 32), (3, 32), (4, 16), (4, 48), (8, 16)])
def test_other_formats_are_left_alone(bits, block_size):
    product = PRODUCT.replace("bits=4, block_size=32", f"bits={bits}, block_size={block_size}")
    model = graph(f"n = RMSNormalization(x, gamma) y = {product}(n, w, s)")
    reason = f"llmc.cpu takes 4 or 8 bits in blocks of a multiple of 32, not {bits} and {block_size}"
    assert left_alone(UseCpuMatMul(), model) == [reason]
    assert UseCpuMatMul()(model).tally.expected == {"matmul": 1}


@pytest.mark.parametrize(
    ("given", "more", "reason"),
    [
        ("x, w, s, z, order", f", int32[{K}] order", "llmc.cpu takes no group index"),
        ("x, w, fed", f", float[{N}, 2] fed", "llmc.cpu takes weights that are constants"),
        ("x, fed, s", f", uint8[{N}, 2, 16] fed", "llmc.cpu takes weights that are constants"),
        ("x, w, s, fed", f", uint8[{N}, 1] fed", "llmc.cpu takes weights that are constants"),
        ("x, w, s, floats", "", "llmc.cpu takes zero points that are integers"),
    ],
)
def test_weights_that_the_operator_does_not_take(given, more, reason):
    """A group index gives other numbers where it is left out, and the operator packs constants."""
    model = graph(f"n = RMSNormalization(x, gamma) y = {PRODUCT}({given.replace('x', 'n', 1)})", more=more)
    assert left_alone(UseCpuMatMul(), model) == [reason]


@pytest.mark.parametrize("shape", [(1, "s", K), ("b", 1, K), ("s", K)])
def test_a_norm_of_a_broadcast_residual_stays(shape):
    model = graph(f"n = {SKIP_NORM}(x, r, gamma) y = {PRODUCT}(n, w, s)")
    model.graph.inputs[1].shape = ir.Shape(shape)
    assert handed_over(model)[0] == ["n", "w", "s"]


@pytest.mark.parametrize("norm", ["RMSNormalization(x, one)", f"{SKIP_NORM}(x, r, one)"])
def test_a_norm_whose_weight_is_broadcast_stays(norm):
    assert handed_over(graph(f"n = {norm} y = {PRODUCT}(n, w, s)"))[0] == ["n", "w", "s"]


def test_offsets_stay_behind_zero_points():
    """The operator takes one or the other."""
    model = graph(f"p = {PRODUCT}(x, w, s, z) {SUMS} y = Add(p, more)")
    assert handed_over(model)[0] == ["x", "w", "s", "z"]


def test_without_the_attribute_a_weight_has_four_bits():
    assert handed_over(graph(f"y = {PRODUCT.replace('bits=4, ', '')}(x, w, s)")) == (["x", "w", "s"], SIZES)


def test_a_product_of_another_domain_is_none_of_its_sites():
    model = graph(f"y = {PRODUCT}(x, w, s)")
    node_of(model, "MatMulNBits").domain = "other"
    assert left_alone(UseCpuMatMul(), model) == []
