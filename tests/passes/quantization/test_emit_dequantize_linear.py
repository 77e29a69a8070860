from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph import lazy_weight
from llmc.compiler.graph.lazy_weight import LazyWeight, TensorWeight
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph.graph_query import dims
from llmc.passes.lowering.convert_float import ConvertFloat

from ...compiler.quantization import standard_numbers as formats
from ...compiler.quantization.small_numbers import content, packed, stood_for
from ..graphs import Array, apply, draw, left_alone, node_of, operators, parse
from ..plans import in_standard
from ..quantized_graphs import (
    FORMATS,
    HIDDEN,
    INNER,
    TEXT,
    TIED,
    TYPES,
    WHOLE,
    ZERO_POINT,
    make,
    require_standard,
    two_layers,
    weights,
)


@pytest.mark.parametrize("head", [None, "int8"])
def test_nvfp4_has_two_levels(head: Any) -> None:
    """ONNX Runtime has no kernel for the numbers on a CPU; the product is NumPy's."""
    model = make()
    tally = apply(in_standard("nvfp4", head), model)
    assert tally.fired == {"linear": 3} | ({} if head is None else {"embedding": 1, "head": 1})
    assert model.graph.opset_imports[""] == 23
    RemoveDeadCode()(model)
    for name in ("up_w", "gate_w", "down_w"):
        matrix, original = stood_for(model, name), weights()[name].T
        assert 0.02 < np.std(matrix - original) / np.std(original) < 0.13
        scales = content(model, f"{name}.scales")
        assert (scales.dtype, scales.shape) == (ml_dtypes.float8_e4m3fn, (len(original), original.shape[1] // 16))
        assert scales.astype(np.float32).max() == 448
        whole = model.graph.initializers[f"{name}.matrix_scale"]
        assert (whole.dtype, dims(whole)) == (ir.DataType.FLOAT, [])
        np.testing.assert_allclose(content(model, whole.name or ""), np.abs(original).max() / 6 / 448, rtol=1e-6)
    outer, inner = (
        next(node for node in model.graph if node.name == f"up_w/{name}") for name in ("DequantizeLinear", "scales")
    )
    assert [value.name for value in inner.inputs if value is not None] == ["up_w.scales", "up_w.matrix_scale"]
    assert not inner.attributes
    assert outer.inputs[1] is inner.outputs[0]
    assert {name: item.value for name, item in outer.attributes.items()} == {"axis": 1, "block_size": 16}
    require_standard(model)


@pytest.mark.parametrize("kind", FORMATS)
def test_how_a_weight_is_stored(kind: Any) -> None:
    model = make()
    apply(in_standard(kind), model)
    numbers, scales = model.graph.initializers[f"down_w.{kind}"], model.graph.initializers["down_w.scales"]
    assert (numbers.dtype, dims(numbers)) == (TYPES[kind], [HIDDEN, INNER])
    blocks = {"int8": [], "fp8": [], "int4": [INNER // 32], "nvfp4": [INNER // 16]}[kind]
    assert dims(scales) == [HIDDEN, *blocks]
    node = next(node for node in model.graph if node.name == "down_w/DequantizeLinear")
    assert node.inputs[0] is numbers
    attributes = {name: item.value for name, item in node.attributes.items()}
    assert attributes == {
        "int8": {"axis": 0}, "fp8": {"axis": 0}, "int4": {"axis": 1, "block_size": 32},
        "nvfp4": {"axis": 1, "block_size": 16},
    }[kind]  # fmt: skip
    made = node.outputs[0]
    assert (made.dtype, dims(made)) == (ir.DataType.FLOAT, [HIDDEN, INNER])
    [turn] = [use.node for use in made.uses()]
    assert (turn.op_type, list(turn.attributes.get_ints("perm"))) == ("Transpose", [1, 0])
    assert (turn.outputs[0].dtype, dims(turn.outputs[0])) == (ir.DataType.FLOAT, [INNER, HIDDEN])


@pytest.mark.parametrize(("kind", "opset"), [("int8", 21), ("int4", 21), ("fp8", 21), ("nvfp4", 23)])
def test_the_operators_version(kind: Any, opset: int) -> None:
    for before in (20, 24):
        model = make()
        model.graph.opset_imports[""] = before
        in_standard(kind, None)(model)
        assert model.graph.opset_imports[""] == max(before, opset)


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "options",
    [*({"weights": kind} for kind in FORMATS), {"weights": "int4", "offset": True}, ZERO_POINT, WHOLE],
    ids=[*FORMATS, "offset", "zero point", "integer zero point"],
)
def test_scales_have_the_type_of_the_activations(options: dict[str, Any], to: Any) -> None:
    model = make(TIED)
    apply(ConvertFloat(to), model)
    graph_pass = in_standard(**options)
    apply(graph_pass, model)
    RemoveDeadCode()(model)
    half = ir.DataType.FLOAT16 if to == "fp16" else ir.DataType.BFLOAT16
    names = [f"{name}.scales" for name in ("table", "up_w", "gate_w", "down_w")]
    if options["weights"] == "nvfp4":
        names = ["table.scales", "up_w.matrix_scale"]
        assert model.graph.initializers["up_w.scales"].dtype == ir.DataType.FLOAT8E4M3FN
    if "offset" in options and options != WHOLE:
        names.append("up_w.zero_points" if "offset_form" in options else "up_w.offsets")
    for name in names:
        value = model.graph.initializers[name]
        assert value.dtype == half
        assert value.const_value is not None
        assert value.const_value.dtype == half
        assert (np.asarray(value.const_value.numpy(), np.float32) > 0).all() or name.endswith(("offsets", "points"))
    assert {node.outputs[0].dtype for node in model.graph} == {half}
    require_standard(model)
    error = np.std(stood_for(model, "up_w") - weights()["up_w"].T) / np.std(weights()["up_w"])
    assert error < {"int8": 0.01, "fp8": 0.04, "int4": 0.13, "nvfp4": 0.13}[options["weights"]]


def test_the_bias_stays() -> None:
    model = make()
    bias, add = model.graph.initializers["up_b"], node_of(model, "Add")
    apply(in_standard("int8"), model)
    assert bias in add.inputs
    assert content(model, "up_b").dtype == np.float32
    product = next(value for value in add.inputs if value is not bias)
    assert product is not None
    assert (product.producer() or add).op_type == "MatMul"


def test_layers_and_ends_have_formats_of_their_own() -> None:
    model = make()
    apply(in_standard("int4", "int8"), model)
    RemoveDeadCode()(model)
    stored = {
        name.split(".")[0]: name.split(".")[1] for name in model.graph.initializers if name.endswith(("int4", "int8"))
    }
    assert stored == {"table": "int8", "head_w": "int8", "up_w": "int4", "gate_w": "int4", "down_w": "int4"}


def test_all_have_blocks_of_the_size_that_is_asked_for() -> None:
    model = make()
    apply(in_standard("int4", "int4", block_size=16), model)
    for name, rows, width in (("table", 96, HIDDEN), ("head_w", 96, HIDDEN), ("down_w", HIDDEN, INNER)):
        assert dims(model.graph.initializers[f"{name}.scales"]) == [rows, width // 16]
    nodes = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert {node.attributes.get_int("block_size") for node in nodes} == {16}


def test_names_are_those_of_the_weights_without_their_ending() -> None:
    model = make()
    value = model.graph.initializers.pop("down_w")
    value.name = "layers.0.down_proj.weight"
    model.graph.initializers[value.name] = value
    apply(in_standard("int4", offset=True), model)
    parts = {name for name in model.graph.initializers if name.startswith("layers.0.down_proj.")}
    assert parts == {f"layers.0.down_proj.{part}" for part in ("weight", "int4", "scales", "offsets")}


def test_ends_may_stay_as_they_are() -> None:
    model = make(TIED)
    tally = apply(in_standard("int8", None), model)
    assert tally.expected == {"linear": 3}
    RemoveDeadCode()(model)
    assert model.graph.initializers["table"].dtype == ir.DataType.FLOAT
    assert not [name for name in model.graph.initializers if name.startswith("table.")]


def test_the_head_behind_a_softcap() -> None:
    text = TEXT.replace("%s", """l = MatMul(down, head_w)
        d = Div(l, cap)
        t = Tanh(d)
        logits = Mul(t, cap)""")  # fmt: skip
    model = parse(text, weights() | {"cap": np.asarray(30, np.float32)}, lazy=True)
    assert apply(in_standard("int4", "int8"), model).fired == {"embedding": 1, "linear": 3, "head": 1}
    assert "head_w.int8" in model.graph.initializers


def test_blocks_with_an_offset_share_the_sums_of_their_input() -> None:
    """Up and gate read the same x; down reads something else; head and table have no offset."""
    model = make()
    apply(in_standard("int4", "int8", offset=True), model)
    RemoveDeadCode()(model)
    counts = operators(model)
    assert (counts.count("ReduceMean"), counts.count("Reshape")) == (2, 2)
    assert [name for name in sorted(model.graph.initializers) if name.endswith("offsets")] == [
        "down_w.offsets", "gate_w.offsets", "up_w.offsets"
    ]  # fmt: skip
    assert dims(model.graph.initializers["up_w.offsets"]) == [HIDDEN // 32, INNER]
    assert counts.count("MatMul") == 4 + 3
    assert counts.count("Add") == 1 + 3
    # The layers' own nodes keep their names, so that one finds them again, and what is known of their results.
    products = {node.name: node.outputs[0] for node in model.graph if node.op_type == "MatMul"}
    for name, width in (("up", INNER), ("gate", INNER), ("down", HIDDEN)):
        assert (dims(products[name]), products[name].dtype) == (["batch", "seq", width], ir.DataType.FLOAT)


def test_a_block_that_does_not_divide() -> None:
    model = two_layers({"w": draw(48, 64), "head": draw(64, 40)})
    for options in ({}, {"offset": True}, ZERO_POINT):
        graph_pass = in_standard(**{"weights": "int4", "head": None, **options})
        assert left_alone(graph_pass, model) == ["its 48 input features are no multiple of the block size 32"]
        assert graph_pass(model).tally.expected == {"linear": 1}
    tally = apply(in_standard("int4", "int8", block_size=32), model)
    assert (tally.fired, tally.expected) == ({"head": 1}, {"linear": 1, "head": 1})


def test_nvfp4_blocks_that_do_not_divide() -> None:
    model = two_layers({"w": draw(40, 64), "head": draw(64, 40)})
    assert left_alone(in_standard("nvfp4", None), model) == [
        "its 40 input features are no multiple of the block size 16"
    ]


def test_a_router_keeps_its_floats() -> None:
    body = """r = MatMul(x, router) \n s = Softmax<axis=-1>(r) \n v, i = TopK(s, two)
        h = MatMul(x, w) \n logits = MatMul(h, head)"""
    constants = {"router": draw(64, 40), "w": draw(64, 64), "head": draw(64, 40), "two": np.asarray([2])}
    model = parse(f"m (float[n, 64] x) => (logits, v, i) {{ {body} }}", constants, lazy=True)
    assert apply(in_standard("int8"), model).expected == {"linear": 1, "head": 1}
    RemoveDeadCode()(model)
    assert model.graph.initializers["router"].dtype == ir.DataType.FLOAT


def test_small_tables_and_products_of_activations_stay() -> None:
    text = """m (int64[n] ids, float[64, 64] z, float[2, 64, 64] a) => (float[n, 64] logits, y, other, rows) {
        x = Gather(small, ids) \n logits = MatMul(x, z) \n y = MatMul(a, stack)
        other = llmc.MatMul(x, w) \n rows = llmc.Gather(w, ids) \n two = Gather(stack, ids) }"""
    model = parse(text, {"small": draw(63, 64), "stack": draw(2, 64, 64), "w": draw(64, 64)})
    assert left_alone(in_standard("int8"), model) == []


def test_a_table_of_4096_elements_is_an_embedding() -> None:
    text = "m (int64[n] ids, float[64, 64] z) => (y, logits) { y = Gather(t, ids) \n logits = Neg(z) }"
    assert apply(in_standard("int8"), parse(text, {"t": draw(64, 64)})).fired == {"embedding": 1}


def test_columns_of_a_table_stay() -> None:
    text = "m (int64[n] ids, float[64, 64] z) => (x, logits) { x = Gather<axis=1>(table, ids) \n logits = Neg(z) }"
    assert left_alone(in_standard("int8"), parse(text, {"table": draw(128, 64)})) == ["it does not look up rows"]


def test_a_weight_that_two_products_share_is_dequantized_once() -> None:
    text = """m (float[n, 64] x) => (float[n, 64] logits) {
        h = MatMul(x, w) \n t = Tanh(h) \n g = MatMul(t, w) \n logits = MatMul(g, head) }"""
    model = parse(text, {"w": draw(64, 64), "head": draw(64, 64, seed=1)}, lazy=True)
    assert apply(in_standard("int4", None), model).fired == {"linear": 2}
    assert (operators(model).count("DequantizeLinear"), operators(model).count("Transpose")) == (1, 1)


def form_of(value: ir.Value | None) -> str | None:
    """The name of the numbers that a product multiplies with, through the nodes that make floats of them."""
    while value is not None and (maker := value.producer()) is not None:
        value = maker.inputs[0]
    return value.name if value is not None else None


@pytest.mark.parametrize(
    ("options", "forms"),
    [
        ({"weights": "int4", "head": "int8"}, {"w.int4": "int4", "w.int8": "int8"}),
        ({"weights": "int4", "head": "int4", "offset": True}, {"w.int4": "offset int4", "w.int4.1": "int4"}),
    ],
    ids=["two formats", "with and without an offset"],
)
def test_a_weight_in_two_forms_is_stored_twice(options: dict[str, Any], forms: dict[str, str]) -> None:
    """A layer's weight that is the head, too: their bytes are not the same, whatever their names are."""
    text = """m (float[n, 64] x) => (float[n, 64] logits) {
        h = MatMul(x, w) \n t = Tanh(h) \n logits = MatMul(t, w) }"""
    w = draw(64, 64, scale=0.2) + np.float32(0.1)
    model = parse(text, {"w": w}, lazy=True)
    assert apply(in_standard(**options), model).fired == {"linear": 1, "head": 1}
    read = [form_of(node.inputs[1]) for node in model.graph if node.op_type == "MatMul"]
    assert [name for name in read if name in forms] == list(forms), "the layer first, and then the head"
    numbers = [model.graph.initializers[name].const_value for name in forms]
    assert len({tensor.identity() for tensor in numbers if isinstance(tensor, LazyWeight)}) == 2
    made = {
        "int8": formats.int8(w.T), "int4": formats.int4(w.T, 32), "offset int4": formats.offset_int4(w.T, 32)
    }  # fmt: skip
    for name, form in forms.items():
        np.testing.assert_array_equal(packed(model, name), made[form].view(np.uint8))


@pytest.mark.parametrize("row", [0, 20, 47])
def test_the_scale_of_a_matrix_is_that_of_its_largest_weight(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it stands, whatever its sign, and however few rows are in memory at once."""
    monkeypatch.setattr(lazy_weight, "CHUNK_BYTES", 10 * 32 * 4)
    w = draw(32, 48)
    w[3, row] = -13.5
    model = two_layers({"w": w, "head": draw(48, 16)})
    apply(in_standard("nvfp4", None), model)
    np.testing.assert_allclose(content(model, "w.matrix_scale"), 13.5 / 6 / 448, rtol=1e-6)


def test_nothing_is_read_while_the_graph_is_rewritten() -> None:
    class Unread(LazyWeight):
        def rows(self, start: int, stop: int) -> Array:
            raise AssertionError("a weight was read")

    for kind in FORMATS:
        model = make()
        for name in ("up_w", "gate_w", "down_w", "head_w"):
            array = weights()[name]
            unread = Unread(array.shape[::-1], ir.DataType.FLOAT, transposed=True)
            model.graph.initializers[name].const_value = unread
        assert in_standard(kind, offset=kind == "int4")(model).modified


def test_a_matrix_is_read_once_for_its_scale() -> None:
    class Counted(TensorWeight):
        reads = 0

        def rows(self, start: int, stop: int) -> Array:
            Counted.reads += 1
            return super().rows(start, stop)

    model = make()
    model.graph.initializers["up_w"].const_value = Counted(
        ir.tensor(weights()["up_w"]), ir.DataType.FLOAT, transposed=True
    )
    apply(in_standard("nvfp4", None), model)
    Counted.reads = 0
    model.graph.initializers["up_w.nvfp4"].const_value.tobytes()  # type: ignore[union-attr]
    model.graph.initializers["up_w.scales"].const_value.tobytes()  # type: ignore[union-attr]
    assert Counted.reads <= 3
