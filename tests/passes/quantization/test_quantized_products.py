"""Products with quantized weights are those of the numbers that are stored, in memory and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llmc.compiler.base.contract import DATA, GRAPH
from llmc.compiler.graph.lazy_weight import LazyWeight, StackedWeight, TensorWeight, transposed_weight
from llmc.compiler.graph.write_model import write_model
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.convert_float import ConvertFloat

from ...compiler.quantization import standard_numbers as formats
from ...compiler.quantization.small_numbers import FP4, codes, content, packed, signed, stood_for
from ..graphs import Array, apply, draw, operators, run
from ..plans import in_standard
from ..quantized_graphs import (
    FORMATS,
    HIDDEN,
    IDS,
    INNER,
    TIED,
    UNTIED,
    VOCABULARY,
    WHOLE,
    ZERO_POINT,
    forward,
    make,
    two_layers,
    weights,
)


@pytest.mark.parametrize("head", [UNTIED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("ends", ["int8", "int4"])
@pytest.mark.parametrize(
    "options",
    [{"weights": "int8"}, {"weights": "fp8"}, {"weights": "int4"}, {"weights": "int4", "block_size": 16},
     {"weights": "int4", "offset": True}, {"weights": "int4", "offset": True, "block_size": 64}, ZERO_POINT,
     {"block_size": 64} | ZERO_POINT],
    ids=["int8", "fp8", "int4", "int4 by 16", "offset", "offset by 64", "zero point", "zero point by 64"],
)  # fmt: skip
def test_numbers_are_those_that_are_stored(options: dict[str, Any], ends: Any, head: str) -> None:
    graph_pass = in_standard(head=ends, **options)
    model = make(head)
    exact = run(model, IDS)["logits"]
    tally = apply(graph_pass, model)
    assert tally.fired == tally.expected == {"embedding": 1, "linear": 3, "head": 1}
    assert not tally.rejections
    apply(RemoveDeadCode(), model)
    tied = head == TIED
    zero_point = "offset_form" in options
    more = (["Reshape", "Cast", "Sub"] if zero_point else ["Reshape", "ReduceMean"]) if "offset" in options else []
    assert set(operators(model)) == {"DequantizeLinear", "Transpose", "Gather", "MatMul", "Add", "Mul", *more}
    assert operators(model).count("DequantizeLinear") == (1 if tied else 2) + (0 if zero_point else 3)
    matrices = {
        name: stood_for(model, name) for name in weights() if name != "up_b" and not (tied and name == "head_w")
    }
    for name, matrix in matrices.items():
        original = weights()[name] if name == "table" else weights()[name].T
        assert matrix.shape == original.shape
        limit = {"int8": 0.01, "fp8": 0.04, "int4": 0.15}[ends if name in {"table", "head_w"} else options["weights"]]
        assert np.std(matrix - original) < limit * np.std(original), name
    logits = run(model, IDS)["logits"]
    np.testing.assert_allclose(logits, forward(matrices, weights()["up_b"], tied=tied), rtol=2e-5, atol=2e-4)
    assert np.std(logits - exact) < 0.4 * np.std(exact)


@pytest.mark.parametrize(
    "options", [*({"weights": kind} for kind in FORMATS), {"weights": "int4", "offset": True}, WHOLE]
)
@pytest.mark.parametrize("to", ["fp32", "fp16"])
def test_the_operators_definition_gives_the_products_of_what_is_stored(options: dict[str, Any], to: Any) -> None:
    """By onnx's reference implementation, which knows every format."""
    model = make(TIED)
    if to == "fp16":
        apply(ConvertFloat(to), model)
    apply(in_standard(**options), model)
    RemoveDeadCode()(model)
    [logits] = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, IDS)
    matrices = {name: stood_for(model, name) for name in ("table", "up_w", "gate_w", "down_w")}
    wanted = forward(matrices, weights()["up_b"], tied=True)
    limit = 1e-5 if to == "fp32" else 5e-3
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=limit * np.abs(wanted).max())


@pytest.mark.parametrize(
    "options", [{"weights": "int8"}, {"weights": "int4"}, {"weights": "int4", "offset": True}, ZERO_POINT, WHOLE]
)
def test_half_precision_gives_the_products_of_what_is_stored(options: dict[str, Any]) -> None:
    """Sums of 64 and 128 products, each operand rounded to eleven bits."""
    model = make(TIED)
    apply(ConvertFloat("fp16"), model)
    apply(in_standard(**options), model)
    RemoveDeadCode()(model)
    matrices = {name: stood_for(model, name) for name in ("table", "up_w", "gate_w", "down_w")}
    wanted = forward(matrices, weights()["up_b"], tied=True)
    logits = run(model, IDS)["logits"]
    assert logits.dtype == np.float16
    assert np.std(logits - wanted) < 2e-3 * np.std(wanted)


def external(directory: Path) -> dict[str, dict[str, str]]:
    proto = onnx.load(directory / GRAPH, load_external_data=False)
    return {
        t.name: {item.key: item.value for item in t.external_data} for t in proto.graph.initializer if t.external_data
    }


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_tied_table_is_stored_once(tmp_path: Path, kind: Any) -> None:
    sizes = {}
    for name, head in (("tied", TIED), ("untied", UNTIED)):
        model = make(head)
        apply(in_standard("int8", kind), model)
        RemoveDeadCode()(model)
        (tmp_path / name).mkdir()
        write_model(model, tmp_path / name)
        places = external(tmp_path / name)
        sizes[name] = sum(int(place["length"]) for place in places.values())
        assert len({place["offset"] for place in places.values()}) == len(places)
        assert (tmp_path / name / DATA).stat().st_size < 5000 * len(places) + sizes[name]
    table = VOCABULARY * HIDDEN // (2 if kind == "int4" else 1)
    scales = VOCABULARY * (HIDDEN // 32 if kind == "int4" else 1) * 4
    # Scales of up to 1024 bytes stay inside the graph.
    assert sizes["untied"] - sizes["tied"] == table + (scales if scales > 1024 else 0)


def test_a_table_that_was_turned_on_loading_is_the_same_table(tmp_path: Path) -> None:
    """The projection reads the checkpoint's rows through a transposed view of them."""
    model = make()
    stored = TensorWeight(ir.tensor(weights()["table"]), ir.DataType.FLOAT, transposed=False)
    model.graph.initializers["table"].const_value = stored
    model.graph.initializers["head_w"].const_value = transposed_weight(stored)
    apply(in_standard("int8"), model)
    RemoveDeadCode()(model)
    table, head = stood_for(model, "table"), stood_for(model, "head_w")
    np.testing.assert_array_equal(table, head)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_file_reads_back(tmp_path: Path, kind: Any) -> None:
    """By onnx's own reader, number by number."""
    model = make()
    apply(in_standard(kind, None), model)
    RemoveDeadCode()(model)
    wanted = stood_for(model, "down_w") if kind != "nvfp4" else FP4[codes(packed(model, "down_w.nvfp4"))]
    write_model(model, tmp_path)
    proto = onnx.load(tmp_path / GRAPH)
    read = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    numbers, scales = read[f"down_w.{kind}"], read["down_w.scales"]
    assert numbers.shape == (HIDDEN, INNER)
    if kind == "nvfp4":
        np.testing.assert_array_equal(numbers, wanted)
        return
    size = INNER // (scales.shape[1] if scales.ndim == 2 else 1)
    wide = scales.repeat(size, axis=1) if scales.ndim == 2 else scales[:, None]
    np.testing.assert_array_equal(numbers * wide, wanted)
    length = int(external(tmp_path)[f"down_w.{kind}"]["length"])
    assert length == HIDDEN * INNER // (2 if kind == "int4" else 1)


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_onnxruntime_reads_the_file(tmp_path: Path, kind: Any) -> None:
    model = make(TIED)
    apply(in_standard(kind), model)
    RemoveDeadCode()(model)
    write_model(model, tmp_path)
    options = ort.SessionOptions()
    # Else its optimizer makes products of int8 that round activations to int8, too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(tmp_path / GRAPH), options, providers=["CPUExecutionProvider"])
    matrices = {name: stood_for(model, name) for name in ("table", "up_w", "gate_w", "down_w")}
    wanted = forward(matrices, weights()["up_b"], tied=True)
    np.testing.assert_allclose(session.run(None, IDS)[0], wanted, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("head", [UNTIED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize(("block_size", "whole_bytes"), [(16, 3), (32, 3), (64, 1), (128, 0)])
def test_integer_zero_points(block_size: int, whole_bytes: int, head: str) -> None:
    """In DequantizeLinear's third input; spelled out where those of a row end within a byte."""
    model = make(head)
    tally = apply(in_standard(block_size=block_size, **WHOLE), model)
    # Rows of 64 end within a block of 128.
    fitting = ("up_w", "gate_w", "down_w") if block_size <= 64 else ("down_w",)
    assert (tally.fired["linear"], len(tally.rejections)) == (len(fitting), 3 - len(fitting))
    apply(RemoveDeadCode(), model)
    points = [model.graph.initializers[f"{name}.zero_points"] for name in fitting]
    assert [value.dtype == ir.DataType.UINT4 for value in points].count(True) == whole_bytes
    for value in points:
        (node,) = [use.node for use in value.uses()]
        assert node.op_type == ("DequantizeLinear" if value.dtype == ir.DataType.UINT4 else "Sub")
        assert node.inputs[2 if value.dtype == ir.DataType.UINT4 else 1] is value
        numbers = content(model, value.name or "").astype(np.float32)
        np.testing.assert_array_equal(numbers, np.clip(np.rint(numbers), 0, 15))
        assert numbers.std() > 0
    matrices = {name: given if name == "table" else given.T for name, given in weights().items() if name != "up_b"}
    for name in ("table", *fitting, *(["head_w"] if head == UNTIED else [])):
        original, matrices[name] = matrices[name], stood_for(model, name)
        assert np.std(matrices[name] - original) < 0.15 * np.std(original)
    logits = run(model, IDS)["logits"]
    wanted = forward(matrices, weights()["up_b"], tied=head == TIED)
    np.testing.assert_allclose(logits, wanted, rtol=2e-5, atol=2e-4)


def test_an_offset_is_worth_its_bytes() -> None:
    """Weights around 0.1 instead of 0: a symmetric block loses most of its steps on one side."""
    errors = []
    for offset in (False, True):
        model = make()
        apply(in_standard("int4", offset=offset), model)
        original = weights()["up_w"].T
        errors.append(np.std(stood_for(model, "up_w") - original) / np.std(original))
    assert errors[1] < 0.9 * errors[0]


def test_sums_that_half_precision_cannot_hold() -> None:
    """32 inputs of 3,000 add up to 96,000; their mean is one."""
    model = two_layers({"w": draw(64, 64, scale=0.01) + np.float32(0.01), "head": draw(64, 64, scale=0.1)})
    apply(ConvertFloat("fp16"), model)
    apply(in_standard("int4", None, offset=True), model)
    feeds = {"x": np.full((1, 64), 3000, np.float16)}
    logits = run(model, feeds)["logits"]
    wanted = feeds["x"].astype(np.float64) @ stood_for(model, "w").T @ content(model, "head").astype(np.float64)
    np.testing.assert_allclose(logits, wanted, rtol=0.01, atol=0.01 * np.abs(wanted).max())


@pytest.mark.parametrize("form", ["sums", "zero_point"])
def test_a_minimum_and_a_scale_come_back(form: Any) -> None:
    """A layer of GGUF's Q4_1 blocks gives the numbers that it gave before, in half the bytes of int8."""
    random = np.random.default_rng(0)
    q = random.integers(0, 16, (INNER, HIDDEN // 32, 32))
    q[..., 0], q[..., 1] = 0, 15
    d, m = (random.uniform(low, high, (INNER, 2, 1)).astype(np.float16) for low, high in ((0.01, 0.05), (-0.5, -0.1)))
    array = (q * d.astype(np.float32) + m.astype(np.float32)).astype(np.float32).reshape(INNER, HIDDEN)
    model = two_layers({"w": np.ascontiguousarray(array.T), "head": np.eye(INNER, dtype=np.float32)})
    feeds = {"x": draw(5, HIDDEN)}
    before = run(model, feeds)
    apply(in_standard("int4", None, offset=True, offset_form=form), model)
    if form == "sums":
        np.testing.assert_array_equal(signed(packed(model, "w.int4")), q.reshape(INNER, HIDDEN) - 8)
    else:
        np.testing.assert_array_equal(codes(packed(model, "w.uint4").reshape(INNER, -1)), q.reshape(INNER, HIDDEN))
    np.testing.assert_allclose(run(model, feeds)["logits"], before["logits"], rtol=1e-5, atol=1e-5)


def test_weights_of_any_orientation() -> None:
    """As a checkpoint has them ([out, in], seen transposed), eager, and stacked."""
    w = weights()

    def stored(array: Array) -> LazyWeight:
        return TensorWeight(ir.tensor(np.ascontiguousarray(array)), ir.DataType.FLOAT, transposed=False)

    parts = [stored(part.T) for part in (w["down_w"][:, :20], w["down_w"][:, 20:])]
    model = make()
    model.graph.initializers["up_w"].const_value = transposed_weight(stored(w["up_w"].T))
    model.graph.initializers["gate_w"].const_value = ir.tensor(w["gate_w"])
    model.graph.initializers["down_w"].const_value = StackedWeight(parts, transposed=True)
    model.graph.initializers["table"].const_value = transposed_weight(stored(w["table"].T))
    plain = make()
    for each in (model, plain):
        apply(in_standard("int4", "int8", offset=True), each)
    for name in ("up_w", "gate_w", "down_w", "table", "head_w"):
        np.testing.assert_array_equal(stood_for(model, name), stood_for(plain, name))


def test_a_matrix_of_zeros() -> None:
    model = two_layers({"w": np.zeros((64, 64), np.float32), "head": draw(64, 64)})
    for options in (*({"weights": kind} for kind in FORMATS), WHOLE):
        quantized = ir.from_proto(ir.to_proto(model))
        apply(in_standard(head=None, **options), quantized)
        made = stood_for(quantized, "w")
        assert not made.any()
        assert (content(quantized, "w.scales").astype(np.float32) > 0).all()


def test_the_formats_are_those_of_the_arithmetic() -> None:
    """Numbers and scales go through the functions that are tested by themselves."""
    model = make()
    apply(in_standard("int4", "int8", offset=True), model)
    rows = np.ascontiguousarray(weights()["down_w"].T)
    np.testing.assert_array_equal(packed(model, "down_w.int4"), formats.offset_int4(rows, 32))
    np.testing.assert_array_equal(content(model, "down_w.offsets"), formats.int4_offsets(rows, 32).T * 32)
