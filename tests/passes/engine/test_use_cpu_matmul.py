"""MatMulNBits, norms and gates into llmc's own CPU operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.engine.use_cpu_matmul import UseCpuMatMul
from llmc.passes.pipeline import cpu_engine_passes
from llmc.passes.runner import run_passes
from llmc.runtimes.kernels.library import VARIANTS, kernel_library

from ..graphs import apply, left_alone, parse
from .cpu_blocks import HIDDEN, block, run_block


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


def operators(model):
    return [f"{node.domain}::{node.op_type}" for node in model.graph]


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


def one(
    *inputs: str, bits: int = 4, block_size: int = 32, axes: str = "b, s", before: str = "", after: str = "y = Neg(h)"
) -> ir.Model:
    """A MatMulNBits that makes h; ``before`` says what it reads, ``after`` what becomes of it."""
    blocks = HIDDEN // block_size
    weights = {
        "w": np.zeros((HIDDEN, blocks, block_size * bits // 8), np.uint8),
        "s": np.ones((HIDDEN, blocks), np.float32),
        "z": np.zeros((HIDDEN, 1), np.uint8),
        **{name: np.ones(HIDDEN, np.float32) for name in ("b", "gamma", "beta")},
        "by_block": np.asarray([0, 0, HIDDEN // 32, 32]),
        "last": np.asarray([3]),
        "offsets": np.ones((HIDDEN // 32, HIDDEN), np.float32),
    }
    attributes = f"K={HIDDEN}, N={HIDDEN}, bits={bits}, block_size={block_size}"
    body = f"{before}\nh = com.microsoft.MatMulNBits<{attributes}>({', '.join(inputs)})\n{after}"
    shape = f"float[{axes}, {HIDDEN}]"
    model = parse(f"m ({shape} x, {shape} r) => (y) <{shape} n, {shape} h> {{ {body} }}", weights)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def product_of(model: ir.Model) -> ir.Node:
    (node,) = [node for node in model.graph if node.domain == "llmc.cpu"]
    return node


def inputs_of(model: ir.Model) -> list[str | None]:
    return [value.name if value is not None else None for value in product_of(model).inputs]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["x", "w", "s"], ["x", "w", "s"]),
        (["x", "w", "s", "z"], ["x", "w", "s", "z"]),
        (["x", "w", "s", "", "", "b"], ["x", "w", "s", None, "b"]),
        (["x", "w", "s", "z", "", "b"], ["x", "w", "s", "z", "b"]),
    ],
)
def test_each_input_has_its_place(given: list[str], expected: list[str | None]) -> None:
    model = one(*given)
    tally = apply(UseCpuMatMul(), model)
    assert tally.fired == tally.expected == {"matmul": 1}
    assert inputs_of(model) == expected
    node = product_of(model)
    attributes = {name: item.value for name, item in node.attributes.items()}
    assert attributes == {"K": HIDDEN, "N": HIDDEN, "bits": 4, "block_size": 32}
    assert (node.name, node.outputs[0].name) == ("h", "h")


@pytest.mark.parametrize(
    ("bits", "block_size", "fires"),
    [(4, 32, True), (8, 32, True), (4, 64, True), (2, 32, False), (4, 16, False), (8, 16, False)],
)
def test_bits_and_blocks_that_the_kernel_takes(bits: int, block_size: int, fires: bool) -> None:
    model = one("x", "w", "s", bits=bits, block_size=block_size)
    if fires:
        apply(UseCpuMatMul(), model)
        return
    reason = f"llmc.cpu takes 4 or 8 bits in blocks of a multiple of 32, not {bits} and {block_size}"
    assert left_alone(UseCpuMatMul(), model) == [reason]


SKIP, PLAIN = "com.microsoft.SkipSimplifiedLayerNormalization", "RMSNormalization"
WITH_SKIP, WITH_NORM = ["x", "w", "s", None, None, "gamma", "r"], ["x", "w", "s", None, None, "gamma"]


@pytest.mark.parametrize(
    ("before", "expected", "epsilon"),
    [
        (f"n = {SKIP}<epsilon=0.25>(x, r, gamma)", WITH_SKIP, 0.25),
        (f"n = {SKIP}(x, r, gamma)", WITH_SKIP, 1e-5),
        (f"n = {PLAIN}<epsilon=0.25, axis=-1>(x, gamma)", WITH_NORM, 0.25),
        (f"n = {PLAIN}(x, gamma)", WITH_NORM, 1e-5),
        (f"n = {PLAIN}<axis=2>(x, gamma)", WITH_NORM, 1e-5),
    ],
)
def test_a_norm_moves_inside(before: str, expected: list[str | None], epsilon: float) -> None:
    model = one("n", "w", "s", before=before)
    apply(UseCpuMatMul(), model)
    assert operators(model) == ["llmc.cpu::MatMulNBits", "::Neg"]
    assert inputs_of(model) == expected
    assert product_of(model).attributes.get_float("epsilon", 0) == pytest.approx(epsilon)
    assert len(product_of(model).outputs) == (2 if expected is WITH_SKIP else 1)


@pytest.mark.parametrize(
    ("before", "axes"),
    [
        (f"n = {PLAIN}<axis=1>(x, gamma)", "b, s"),
        (f"n = {PLAIN}<axis=-2>(x, gamma)", "b, s"),
        (f"n = {PLAIN}(x, gamma)", "s"),
        (f"n = llmc.{PLAIN}(x, gamma)", "b, s"),
        ("n = LayerNormalization(x, gamma)", "b, s"),
        (f"n = {SKIP}(x, r, gamma, beta)", "b, s"),
        (f"o, , , n = {SKIP}(x, r, gamma)", "b, s"),
        ("n = Tanh(x)", "b, s"),
    ],
    ids=["axis", "axis from the end", "two axes", "another norm", "LayerNorm", "with a bias", "the sum", "no norm"],
)
def test_what_the_kernel_lacks_stays_before_the_product(before: str, axes: str) -> None:
    model = one("n", "w", "s", before=before, axes=axes)
    apply(UseCpuMatMul(), model)
    assert inputs_of(model) == ["n", "w", "s"]
    assert operators(model)[1:] == ["llmc.cpu::MatMulNBits", "::Neg"]


def test_a_norm_whose_shape_is_not_known_stays() -> None:
    model = one("n", "w", "s", before=f"n = {PLAIN}(x, gamma)")
    next(iter(model.graph)).outputs[0].shape = None
    apply(UseCpuMatMul(), model)
    assert inputs_of(model) == ["n", "w", "s"]


def test_the_residual_sum_of_a_norm_that_moved_keeps_its_name() -> None:
    model = one("n", "w", "s", before=f"n, , , t = {SKIP}(x, r, gamma)", after="o = Tanh(t)\ny = Add(h, o)")
    total = next(iter(model.graph)).outputs[3]
    total.shape, total.dtype = model.graph.inputs[0].shape, ir.DataType.FLOAT
    model.graph.outputs.append(total)
    apply(UseCpuMatMul(), model)
    made = product_of(model).outputs[1]
    assert [value.name for value in model.graph.outputs] == ["y", "t"]
    assert model.graph.outputs[1] is made
    assert (made.dtype, made.shape) == (ir.DataType.FLOAT, model.graph.inputs[0].shape)


SUMS = "k = Reshape(x, by_block)\nsums = ReduceSum<keepdims=0>(k, last)"
OFFSETS = "c = MatMul(sums, offsets)\ny = Add(h, c)"


@pytest.mark.parametrize("order", ["h, c", "c, h"])
def test_offsets_move_inside(order: str) -> None:
    model = one("x", "w", "s", after=f"{SUMS}\n{OFFSETS.replace('h, c', order)}")
    assert apply(UseCpuMatMul(), model).fired == {"matmul": 1}
    assert operators(model) == ["llmc.cpu::MatMulNBits"]
    assert inputs_of(model) == ["x", "w", "s", None, None, None, None, "offsets"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_sums_that_another_product_reads_stay() -> None:
    model = one("x", "w", "s", after=f"{SUMS}\nother = MatMul(sums, offsets)\n{OFFSETS}")
    model.graph.outputs.append(next(node for node in model.graph if node.name == "other").outputs[0])
    apply(UseCpuMatMul(), model)
    assert inputs_of(model)[7] == "offsets"
    assert sorted(operators(model)) == ["::MatMul", "::ReduceSum", "::Reshape", "llmc.cpu::MatMulNBits"]


@pytest.mark.parametrize(
    "after",
    [
        f"{SUMS.replace('(x, by', '(r, by')}\n{OFFSETS}",
        f"{SUMS.replace('ReduceSum', 'ReduceMean')}\n{OFFSETS}",
        f"{SUMS}\na = Abs(offsets)\n{OFFSETS.replace('(sums, offsets)', '(sums, a)')}",
        f"sums = Abs(offsets)\n{OFFSETS}",
        f"{SUMS}\n{OFFSETS.replace('y = Add', 'y = Sub')}",
        f"{SUMS}\n{OFFSETS.replace('y = Add', 'y = llmc.Add')}",
        "y = Add(h, r)",
        "y = Add(h, h)",
    ],
    ids=[
        "another input", "means", "computed offsets", "no blocks", "a difference", "another addition", "a residual",
        "doubled",
    ],
)  # fmt: skip
def test_other_additions_stay(after: str) -> None:
    model = one("x", "w", "s", after=after)
    count = len(operators(model))
    apply(UseCpuMatMul(), model)
    assert inputs_of(model) == ["x", "w", "s"]
    assert len(operators(model)) == count


def test_a_product_that_is_read_before_its_offsets_keeps_them_outside() -> None:
    model = one("x", "w", "s", after=f"{SUMS}\n{OFFSETS}\nother = Tanh(h)")
    apply(UseCpuMatMul(), model)
    assert inputs_of(model) == ["x", "w", "s"]
