from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.graph.graph_query import dims
from llmc.passes.lowering.equal_head_widths import EqualHeadWidths
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.pad_heads import PadHeads

from ..graphs import Array, apply, close, draw, draw_all, left_alone, node_of, operators, parse, run

HEADS, KV_HEADS = 4, 2
CALL = f"llmc.CachedAttention<num_heads={HEADS}, kv_num_heads={KV_HEADS}, scale=0.3"
ROTATED = ", cos, sin, position_ids"
NORMED = ", , , , q_norm, k_norm"


def make(key: int, value: int, more: str = "", options: str = "", layers: int = 1, shared: bool = False) -> ir.Model:
    """Attention of heads ``key`` and ``value`` wide; of several layers, which may read one cache."""
    pasts = [f'float[batch, {KV_HEADS}, past, {w}] "past_key_values.{i}.{n}"' for i in range(1 if shared else layers)
             for n, w in (("key", key), ("value", value))]  # fmt: skip
    outputs = ", ".join(f'"present.{i}.key", "present.{i}.value"' for i in range(layers))
    calls = []
    for i in range(layers):
        past = f'"past_key_values.{0 if shared else i}.key", "past_key_values.{0 if shared else i}.value"'
        calls.append(
            f'y{i}, "present.{i}.key", "present.{i}.value" = '
            f"{CALL}{options}>(q, k, v, {past}, attention_mask{more}) z{i} = MatMul(y{i}, w_o)"
        )
    total = " ".join(f"t{i} = Add({'z0' if i == 1 else f't{i - 1}'}, z{i})" for i in range(1, layers))
    last = f"t{layers - 1}" if layers > 1 else "z0"
    text = f"""m (int64[batch, sequence] input_ids, float[batch, sequence, {HEADS * key}] q,
        float[batch, sequence, {KV_HEADS * key}] k, float[batch, sequence, {KV_HEADS * value}] v,
        int64[batch, total] attention_mask,
        int64[batch, sequence] position_ids, {", ".join(pasts)}) => (z, {outputs}) {{
        {" ".join(calls)} {total} z = Identity({last}) }}"""
    angles = np.outer(np.arange(32), 10.0 ** -np.linspace(0, 1, key // 2)).astype(np.float32)
    weights: dict[str, Array] = {"w_o": draw(HEADS * value, 5, seed=9), "cos": np.cos(angles), "sin": np.sin(angles)}
    weights |= {"q_norm": 1 + draw(key, seed=7, scale=0.2), "k_norm": 1 + draw(key, seed=8, scale=0.2)}
    model = parse(text, weights)
    for node in model.graph:
        if cached_attention.is_cached_attention(node):
            for output, shape in zip(
                node.outputs,
                (["batch", "sequence", HEADS * value], *(["batch", KV_HEADS, "total", w] for w in (key, value))),
                strict=True,
            ):
                output.shape, output.dtype = ir.Shape(shape), ir.DataType.FLOAT
    return model


def feeds(model: ir.Model, past: int, seq: int) -> dict[str, Array]:
    """Two rows, the second padded on the left; zeros where a head was widened by the pass."""
    mask = np.ones((2, past + seq), np.int64)
    mask[1, :2] = 0
    shapes = {value.name or "": dims(value) for value in model.graph.inputs}
    sizes = {"batch": 2, "past": past, "sequence": seq}
    floats: dict[str, Any] = {
        name: [sizes.get(dim, dim) for dim in shape or ()]
        for name, shape in shapes.items()
        if name not in {"input_ids", "attention_mask", "position_ids"}
    }
    made: dict[str, Array] = dict(draw_all(floats, seed=20))
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, past:]
    return made | {"input_ids": np.zeros((2, seq), np.int64), "attention_mask": mask, "position_ids": positions}


def widened(given: dict[str, Array], model: ir.Model) -> dict[str, Array]:
    """The same call for the graph after the pass: zeros beside keys or values of the past."""
    made = dict(given)
    for value in model.graph.inputs:
        shape = dims(value)
        if value.name and value.name.startswith("past") and shape is not None:
            assert isinstance(shape[3], int)
            missing = shape[3] - given[value.name].shape[3]
            made[value.name] = np.pad(given[value.name], [(0, 0)] * 3 + [(0, missing)])
    return made


def check(model: ir.Model, fired: int) -> None:
    """The outputs are as before, and what was widened holds zeros."""
    cases = [(0, 5), (4, 3), (6, 1)]
    calls = [feeds(model, *case) for case in cases]
    before = [run(model, call) for call in calls]
    tally = apply(EqualHeadWidths(), model)
    assert tally.fired == tally.expected == {"padded heads": fired}
    for call, expected in zip(calls, before, strict=True):
        actual = run(model, widened(call, model))
        for name, array in expected.items():
            if name.startswith("present"):
                assert not actual[name][..., array.shape[3] :].any()
                actual[name] = actual[name][..., : array.shape[3]]
        close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "more", "options"),
    [
        (24, 16, "", ""),
        (16, 24, "", ""),
        (24, 8, ROTATED, ""),
        (24, 16, NORMED, ", norm_epsilon=0.001"),
        (16, 24, "", ", softcap=2.0, window=3"),
        (24, 16, "", ", window=3"),
    ],
)
def test_the_narrower_side_is_padded(key: int, value: int, more: str, options: str) -> None:
    model = make(key, value, more, options)
    check(model, 1)
    width = max(key, value)
    call = node_of(model, cached_attention.NAME)
    assert [dims(value) for value in model.graph.inputs[-2:]] == [["batch", KV_HEADS, "past", width]] * 2
    assert [dims(value) for value in call.outputs[1:]] == [["batch", KV_HEADS, "total", width]] * 2
    assert call.attributes.get_float("scale", 0.0) == pytest.approx(0.3)
    assert dims(next(node for node in model.graph if node.op_type == "MatMul").inputs[0]) == [
        "batch", "sequence", HEADS * value,
    ]  # fmt: skip


def test_every_layer() -> None:
    check(make(24, 16, layers=2), 2)


@pytest.mark.parametrize(("key", "value"), [(24, 16), (16, 24)])
def test_layers_that_read_one_cache(key: int, value: int) -> None:
    """Its width was set when the first of them was padded."""
    check(make(key, value, layers=2, shared=True), 2)


def test_the_kernel_then_takes_it() -> None:
    model = make(24, 16, ROTATED)
    assert left_alone(LowerAttention(query_seqlens=True), model) == ["its keys are 24 wide and its values 16"]
    EqualHeadWidths()(model)
    PadHeads()(model)
    assert LowerAttention(query_seqlens=True)(model).modified
    assert "com.microsoft::GroupQueryAttention" in operators(model)


def test_equal_widths_are_no_site() -> None:
    assert left_alone(EqualHeadWidths(), make(16, 16)) == []


def test_a_cache_of_unknown_widths_is_no_site() -> None:
    model = make(24, 16)
    for value in model.graph.inputs:
        if (value.name or "").startswith("past"):
            value.shape = None
    assert left_alone(EqualHeadWidths(), model) == []


@pytest.mark.parametrize(("more", "options"), [(ROTATED, ""), (NORMED, ", norm_epsilon=0.001")])
def test_zeros_do_not_go_through_rotation_or_norms(more: str, options: str) -> None:
    reason = "its keys are narrower than its values, and rotated or normalized inside"
    assert left_alone(EqualHeadWidths(), make(16, 24, more, options)) == [reason]


def test_packed_inputs_are_left_alone() -> None:
    model = make(24, 16)
    call = node_of(model, cached_attention.NAME)
    for name in ("key", "value"):
        call.replace_input_with(cached_attention.INPUTS.index(name), None)
    assert left_alone(EqualHeadWidths(), model) == ["its query, key and value are packed already"]


@pytest.mark.parametrize(("key", "value", "name"), [(24, 16, "v"), (16, 24, "q"), (16, 24, "k")])
def test_a_width_that_is_not_known(key: int, value: int, name: str) -> None:
    """Whichever side it is, nothing is padded before all is known."""
    model = make(key, value)
    unknown = next(item for item in model.graph.inputs if item.name == name)
    unknown.shape = ir.Shape(["batch", "sequence", None])
    assert left_alone(EqualHeadWidths(), model) == [f"the width of {name} is not known"]
