"""What a constant is for, by what reads it and where; and what is stored once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.insight.weight_census import (
    ATTENTION,
    EMBEDDING,
    FEED_FORWARD,
    HEAD,
    NORMS,
    OTHER,
    ROTARY,
    SCALES,
    ZERO_POINTS,
    SharedWeight,
    kind_of,
    take_census,
)

FLOAT, INT64, UINT8 = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8
MICROSOFT = "com.microsoft"


def constant(name: str, *shape: int, dtype: ir.DataType = FLOAT, place: tuple[str, int] | None = None) -> ir.Value:
    """An initializer; with ``place``, of bytes at an offset of a file."""
    value = ir.val(name, dtype, shape)
    if place is None:
        value.const_value = ir.tensor(np.zeros(shape, dtype.numpy()), name=name)
    else:
        size = int(np.prod(shape)) * 4
        value.const_value = ir.ExternalTensor(place[0], place[1], size, dtype, shape=ir.Shape(shape), name=name)
    return value


def kind(value: ir.Value, head: ir.Node | None = None) -> str:
    assert value.const_value is not None
    return kind_of(value, value.const_value, head)


def model(nodes: list[ir.Node], outputs: list[ir.Value]) -> ir.Model:
    free = {value for node in nodes for value in node.inputs if value is not None and value.producer() is None}
    weights = [value for value in free if value.const_value is not None]
    inputs = [value for value in free if value.const_value is None]
    # In the order of their names: a set has none.
    weights.sort(key=lambda value: value.name or "")
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


# --- by position ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op_type", "domain", "position", "expected"),
    [
        ("DequantizeLinear", "", 1, SCALES),
        ("DequantizeLinear", "", 2, ZERO_POINTS),
        ("QuantizeLinear", "", 1, SCALES),
        ("QuantizeLinear", "", 2, ZERO_POINTS),
        ("DequantizeLinear", MICROSOFT, 1, SCALES),
        ("RotaryEmbedding", "", 1, ROTARY),
        ("RotaryEmbedding", "", 2, ROTARY),
        ("RotaryEmbedding", "", 3, OTHER),
        ("RotaryEmbedding", MICROSOFT, 1, OTHER),
        ("RotaryEmbedding", MICROSOFT, 2, ROTARY),
        ("RotaryEmbedding", MICROSOFT, 3, ROTARY),
        ("MatMulNBits", MICROSOFT, 1, OTHER),
        ("MatMulNBits", MICROSOFT, 2, SCALES),
        ("MatMulNBits", MICROSOFT, 3, ZERO_POINTS),
        ("GatherBlockQuantized", MICROSOFT, 0, EMBEDDING),
        ("GatherBlockQuantized", MICROSOFT, 2, SCALES),
        ("GatherBlockQuantized", MICROSOFT, 3, ZERO_POINTS),
        *(("MatMulNBits", "llmc", position, SCALES) for position in (2, 5)),
        ("MatMulNBits", "llmc", 3, ZERO_POINTS),
        ("MatMulNBits", "llmc", 4, OTHER),
        *(("GatherNBits", "llmc", position, EMBEDDING) for position in (1, 4)),
        *(("GatherNBits", "llmc", position, SCALES) for position in (2, 5)),
        ("GatherNBits", "llmc", 0, OTHER),
        ("DynamicQuantizeMatMul", MICROSOFT, 2, SCALES),
        ("MatMulBlockQuantizedFp8Weight", MICROSOFT, 2, SCALES),
        ("GroupQueryAttention", MICROSOFT, 7, ROTARY),
        ("GroupQueryAttention", MICROSOFT, 8, ROTARY),
        ("GroupQueryAttention", MICROSOFT, 11, ATTENTION),
        ("GroupQueryAttention", MICROSOFT, 14, NORMS),
        ("GroupQueryAttention", MICROSOFT, 15, NORMS),
        ("CachedAttention", "llmc", 6, ROTARY),
        ("CachedAttention", "llmc", 7, ROTARY),
        ("CachedAttention", "llmc", 9, NORMS),
        ("CachedAttention", "llmc", 10, NORMS),
        ("CachedAttention", "llmc", 11, ATTENTION),
        *(("QMoE", MICROSOFT, position, SCALES) for position in (3, 6, 9)),
        *(("QMoE", MICROSOFT, position, ZERO_POINTS) for position in (11, 12, 13)),
        ("RMSNormalization", "", 0, OTHER),
        ("RMSNormalization", "", 1, NORMS),
        ("LayerNormalization", "", 2, NORMS),
        ("SkipSimplifiedLayerNormalization", MICROSOFT, 2, NORMS),
        ("Gather", "", 0, EMBEDDING),
        ("Gather", "", 1, OTHER),
    ],
)
def test_kinds_by_position(op_type: str, domain: str, position: int, expected: str) -> None:
    value = constant("unnamed", 4, 2)
    inputs: list[ir.Value | None] = [None] * position
    ir.node(op_type, [*inputs, value], domain=domain)
    assert kind(value) == expected


def test_a_vector_that_is_looked_up_is_no_embedding() -> None:
    value = constant("unnamed", 4)
    ir.node("Gather", [value, None])
    assert kind(value) == OTHER


@pytest.mark.parametrize(("shape", "expected"), [((4, 2), HEAD), ((4,), OTHER)])
def test_the_heads_matrix_and_not_its_bias(shape: tuple[int, ...], expected: str) -> None:
    value = constant("unnamed", *shape)
    head = ir.node("Gemm", [None, None, value])
    assert kind(value, head) == expected
    assert kind(value) == OTHER


def test_a_table_that_is_looked_up_and_multiplied_with_is_the_embedding() -> None:
    value = constant("unnamed", 4, 2)
    ir.node("Gather", [value, None])
    assert kind(value, ir.node("MatMul", [None, value])) == EMBEDDING


def test_a_use_behind_nodes_that_hand_on_counts() -> None:
    """What they are told, as a shape, does not."""
    value, shape = constant("unnamed", 4, 2), constant("shape", 2)
    turned = ir.node("Transpose", [value])
    shaped = ir.node("Reshape", [turned.outputs[0], shape])
    ir.node("RMSNormalization", [None, shaped.outputs[0]])
    assert kind(value) == NORMS
    assert kind(shape) == OTHER


# --- by name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.rotary_emb.inv_freq", ROTARY),
        ("cos_cache", ROTARY),
        ("model.layers.0.input_layernorm.weight", NORMS),
        ("transformer.h.0.ln_1.weight", NORMS),
        ("transformer.ln_f.weight", NORMS),
        ("lm_head.weight", HEAD),
        ("model.embed_tokens.weight", EMBEDDING),
        ("transformer.wte.weight", EMBEDDING),
        ("model.layers.0.mlp.gate_proj.weight", FEED_FORWARD),
        ("layers.0.feed_forward.w2.weight", FEED_FORWARD),
        ("model.layers.0.self_attn.o_proj.weight", ATTENTION),
        ("layers.0.wq.weight", ATTENTION),
        ("alnico.weight", OTHER),
    ],
)
def test_kinds_by_name(name: str, expected: str) -> None:
    value = constant(name, 4, 2)
    ir.node("MatMul", [None, value], name="odd")
    assert kind(value) == expected


def test_the_constants_name_goes_before_the_nodes() -> None:
    value, unnamed = constant("self_attn.q_proj.weight", 4, 2), constant("onnx::MatMul_17", 4, 2)
    ir.node("MatMul", [None, value], name="/model/mlp/MatMul")
    ir.node("MatMul", [None, unnamed], name="/model/mlp/MatMul")
    assert (kind(value), kind(unnamed)) == (ATTENTION, FEED_FORWARD)


def test_a_rotary_table_that_is_looked_up_is_no_embedding() -> None:
    value = constant("rotary.cos_cache", 16, 4)
    ir.node("Gather", [value, None])
    assert kind(value) == ROTARY


@pytest.mark.parametrize("dtype", [INT64, ir.DataType.BOOL])
def test_shapes_and_axes_are_no_parameters_whatever_their_name(dtype: ir.DataType) -> None:
    value = constant("self_attn.shape", 4, 2, dtype=dtype)
    ir.node("Reshape", [None, value])
    assert kind(value) == OTHER


# --- the whole ------------------------------------------------------------------------------------------------------


def tied(*places: tuple[str, int], shape: tuple[int, int] = (8, 4)) -> ir.Model:
    """A head, first in the file, and an embedding table, at two places."""
    head, table = constant("a_head", *shape, place=places[0]), constant("table", 8, 4, place=places[1])
    look = ir.node("Gather", [table, ir.val("ids")])
    turned = ir.node("Transpose", [head])
    product = ir.node("MatMul", [look.outputs[0], turned.outputs[0]])
    product.outputs[0].name = "logits"
    return model([look, turned, product], [product.outputs[0]])


def test_bytes_that_are_stored_once_count_once_and_as_the_embedding() -> None:
    census = take_census(tied(("w", 64), ("w", 64)))
    assert [(group.name, group.tensors, group.bytes) for group in census.by_kind] == [(EMBEDDING, 1, 128)]
    assert [(group.name, group.tensors, group.bytes) for group in census.by_dtype] == [("FLOAT", 1, 128)]
    assert census.shared == (SharedWeight("a_head", "table", 128),)
    assert (census.bytes, census.tied_head) == (128, True)


@pytest.mark.parametrize(
    ("places", "shape"),
    [((("w", 64), ("w", 192)), (8, 4)), ((("v", 64), ("w", 64)), (8, 4)), ((("w", 64), ("w", 64)), (4, 4))],
    ids=["another offset", "another file", "another length"],
)
def test_other_bytes_count_each(places: tuple[tuple[str, int], ...], shape: tuple[int, int]) -> None:
    census = take_census(tied(*places, shape=shape))
    assert (census.shared, census.tied_head) == ((), False)
    assert [group.name for group in census.by_kind] == [EMBEDDING, HEAD]
    assert census.bytes == 128 + 16 * shape[0]


def test_a_head_that_shares_bytes_with_no_embedding_is_not_tied() -> None:
    """Two uses of one matrix in the head and the layer before it."""
    weight = constant("w", 4, 4, place=("w", 0))
    first = ir.node("MatMul", [ir.val("x"), weight])
    product = ir.node("MatMul", [first.outputs[0], weight])
    product.outputs[0].name = "logits"
    assert not take_census(model([first, product], [product.outputs[0]])).tied_head


def test_groups_have_an_order() -> None:
    """Kinds as people read a model, types by their bytes."""
    weights = [
        constant("a.mlp.weight", 4, 4),
        constant("b.layernorm.weight", 4),
        constant("c.zero", 3, dtype=UINT8),
        constant("d.embed", 8, 4),
        constant("e.mlp.weight", 2, 4),
        constant("f.shape", 40, dtype=INT64),
        constant("g.half", 6, dtype=ir.DataType.FLOAT16),
    ]
    node = ir.node("Odd", [ir.val("x"), *weights])
    census = take_census(model([node], [node.outputs[0]]))
    assert [(group.name, group.tensors, group.bytes) for group in census.by_kind] == [
        (EMBEDDING, 1, 128),
        (FEED_FORWARD, 2, 64 + 32),
        (NORMS, 1, 16),
        (OTHER, 3, 3 + 320 + 12),
    ]
    assert [(group.name, group.tensors, group.bytes) for group in census.by_dtype] == [
        ("INT64", 1, 320),
        ("FLOAT", 4, 240),
        ("FLOAT16", 1, 12),
        ("UINT8", 1, 3),
    ]
    assert census.bytes == 128 + 96 + 16 + 335


def test_constants_of_subgraphs_and_nodes_count() -> None:
    inner = constant("mlp.inner", 2, 2)
    branch_node = ir.node("MatMul", [ir.val("y"), inner])
    branch = ir.Graph([], [], nodes=[branch_node], initializers=[inner], opset_imports={"": 23})
    made = ir.node("Constant", [], {"value": ir.tensor(np.zeros(3, np.float32), name="c")})
    number = ir.node("Constant", [], {"value_int": 3})
    choice = ir.node("If", [ir.val("flag"), made.outputs[0], number.outputs[0]], {"then_branch": branch})
    census = take_census(model([made, number, choice], [choice.outputs[0]]))
    assert [(group.name, group.tensors, group.bytes) for group in census.by_kind] == [
        (FEED_FORWARD, 1, 16),
        (OTHER, 1, 12),
    ]
