from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.engine.take_lengths import TakeLengths
from llmc.passes.graph.graph_query import dims
from llmc.passes.lowering.last_token_logits import LastTokenLogits
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.use_standard_attention import UseStandardAttention

from ..graphs import Array, apply, close, draw, draw_all, left_alone, operators, parse, run

VOCABULARY, HIDDEN, HEADS, KV_HEADS, DIM, POSITIONS = 40, 24, 4, 2, 16, 32
PAST = ("past_key_values.0.key", "past_key_values.0.value")
LENGTHS = ["seqlens_k", "total_sequence_length", "chunk_lengths"]
TEXT = """m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, int64[batch, seq] position_ids,
    float[batch, 2, past, 16] "past_key_values.0.key", float[batch, 2, past, 16] "past_key_values.0.value")
    => (float[batch, seq, 40] logits, float[batch, 2, length, 16] "present.0.key",
        float[batch, 2, length, 16] "present.0.value"{outputs})
    <float[batch, seq, 64] y>
{{
    words = Gather(table, input_ids)
    {embedded}
    q = MatMul(x, q_w)
    k = MatMul(x, k_w)
    v = MatMul(x, v_w)
    y, "present.0.key", "present.0.value" = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.3>(
        q, k, v, "past_key_values.0.key", "past_key_values.0.value", attention_mask, {rotary})
    logits = MatMul(y, head)
    {more}
}}"""
LEARNED = "places = Gather(table_of_positions, position_ids) \n x = Add(words, places)"
PLAIN = "x = Identity(words)"


def make(
    embedded: str = LEARNED, *, logits: str = "last", lowered: bool = True, outputs: str = "", more: str = ""
) -> ir.Model:
    q, k = HEADS * DIM, KV_HEADS * DIM
    shapes = {"table": (VOCABULARY, HIDDEN), "table_of_positions": (POSITIONS, HIDDEN), "q_w": (HIDDEN, q)}
    shapes |= {"k_w": (HIDDEN, k), "v_w": (HIDDEN, k), "head": (q, VOCABULARY)}
    angles = draw(POSITIONS, DIM // 2, scale=2)
    weights: dict[str, Array] = draw_all(shapes, scale=0.4)
    weights |= {"cos": np.cos(angles), "sin": np.sin(angles), "axis": np.asarray([1])}
    rotary = "cos, sin, position_ids" if embedded == PLAIN else ", , "
    model = parse(TEXT.format(embedded=embedded, rotary=rotary, outputs=outputs, more=more), weights)
    if lowered:
        if logits == "last":
            apply(LastTokenLogits(), model)
        apply(LowerAttention(query_seqlens=False), model)
    return model


def inputs(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.inputs]


def feeds(held: list[int], valid: list[int], slots: int) -> dict[str, Array]:
    """A chunk after ``held`` tokens a row; what both graphs are told about it."""
    batch, seq = len(held), max(valid)
    columns = np.arange(seq)
    pairs = zip(held, valid, strict=True)
    mask = [np.r_[np.ones(count), np.zeros(slots - count), columns < new] for count, new in pairs]
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (batch, seq))
    made: dict[str, Array] = {"input_ids": ids, "attention_mask": np.asarray(mask, np.int64)}
    made["position_ids"] = np.asarray(held)[:, None] + columns
    made |= {name: draw(batch, KV_HEADS, slots, DIM, seed=5 + i) for i, name in enumerate(PAST)}
    # Padding counts as tokens here: what it makes lies behind each row's own.
    made["seqlens_k"] = np.asarray(held, np.int32) + np.int32(seq - 1)
    made["total_sequence_length"] = np.asarray(slots + seq, np.int32)
    made["chunk_lengths"] = np.asarray(valid)
    return made


def test_lengths_become_inputs_and_the_mask_goes() -> None:
    model = make()
    tally = apply(TakeLengths(), model)
    assert tally.fired == {"positions": 1, "lengths": 3, "unused inputs": 1}
    assert not tally.rejections
    assert inputs(model) == ["input_ids", *PAST, *LENGTHS]
    taken = {value.name: (value.dtype, dims(value)) for value in model.graph.inputs[-3:]}
    assert taken == {
        "seqlens_k": (ir.DataType.INT32, ["batch"]),
        "total_sequence_length": (ir.DataType.INT32, []),
        "chunk_lengths": (ir.DataType.INT64, ["batch"]),
    }
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert list(attention.inputs[5:7]) == list(model.graph.inputs[-3:-1])
    assert "ReduceSum" not in operators(model)
    RemoveDeadCode()(model)
    assert operators(model).count("com.microsoft::GroupQueryAttention") == 1


@pytest.mark.parametrize(
    ("held", "valid", "slots"),
    [([0, 0], [6, 6], 0), ([0, 0, 0], [6, 2, 4], 0), ([5], [3], 5), ([5, 5], [1, 1], 5)],
    ids=["prompts", "ragged prompts", "a chunk", "a step"],
)
@pytest.mark.parametrize("embedded", [LEARNED, PLAIN], ids=["positions outside", "rotary inside"])
def test_numbers_agree(embedded: str, held: list[int], valid: list[int], slots: int) -> None:
    given = feeds(held, valid, slots)
    model = make(embedded)
    before = run(model, given)
    apply(TakeLengths(), model)
    after = run(model, given)
    close({"logits": after["logits"]}, {"logits": before["logits"]})
    assert before["logits"].shape == (len(held), 1, VOCABULARY)
    for name in ("present.0.key", "present.0.value"):
        for row, count in enumerate(np.add(held, valid)):
            np.testing.assert_allclose(
                after[name][row, :, :count], before[name][row, :, :count], rtol=1e-5, atol=1e-5
            )


def test_positions_follow_each_rows_length() -> None:
    """Rows of 5 and 2 tokens decode one more: positions 5 and 2."""
    model = make(more="seen = Identity(position_ids)", outputs=", seen")
    apply(TakeLengths(), model)
    given = feeds([5, 2], [1, 1], 5)
    assert run(model, given)["seen"].tolist() == [[5], [2]]
    assert run(model, feeds([3], [4], 3))["seen"].tolist() == [[3, 4, 5, 6]]
    assert run(model, feeds([0, 0], [3, 1], 0))["seen"].tolist() == [[0, 1, 2], [0, 1, 2]]
    [positions] = [node.outputs[0] for node in model.graph if (node.name or "").startswith("position_ids/Add")]
    assert (positions.dtype, dims(positions)) == (ir.DataType.INT64, ["batch", "seq"])


def test_no_chunk_lengths_where_all_logits_are_wanted() -> None:
    model = make(logits="all")
    assert apply(TakeLengths(), model).fired["lengths"] == 2
    assert inputs(model) == ["input_ids", *PAST, *LENGTHS[:2]]


@pytest.mark.parametrize(
    ("more", "reader"),
    [
        ("seen = ReduceMax<keepdims=0>(attention_mask, axis)", "ReduceMax"),
        ("seen = Cast<to=1>(attention_mask)", "Cast"),
    ],
)
def test_a_mask_that_something_else_reads_stays(more: str, reader: str) -> None:
    model = make(more=more, outputs=", seen")
    tally = apply(TakeLengths(), model)
    assert inputs(model) == ["input_ids", "attention_mask", *PAST, *LENGTHS]
    [rejection] = tally.rejections
    assert rejection.reason == "something else than attention reads the mask, so it stays an input"
    assert reader in rejection.node
    assert "unused inputs" not in tally.fired


def test_every_reader_of_the_mask_is_named() -> None:
    model = make(
        more="seen = Cast<to=1>(attention_mask) \n more = ReduceMax<keepdims=0>(attention_mask, axis)",
        outputs=", seen, more",
    )
    tally = apply(TakeLengths(), model)
    assert sorted(rejection.node.split("(")[0] for rejection in tally.rejections) == ["Cast", "ReduceMax"]
    assert "attention_mask" in inputs(model)


def test_what_has_one_output_that_is_read_stays() -> None:
    model = make(more="first, second = Split<axis=2, num_outputs=2>(y) \n seen = Neg(second)", outputs=", seen")
    given = feeds([0, 0], [3, 2], 0)
    before = run(model, given)["seen"]
    apply(TakeLengths(), model)
    np.testing.assert_allclose(run(model, given)["seen"][0], before[0], rtol=1e-5, atol=1e-5)


def test_lengths_that_something_else_reads_keep_the_mask() -> None:
    model = make()
    total = next(output for node in model.graph for output in node.outputs if output.name == "total_lengths")
    seen = ir.node("Neg", [total], name="elsewhere")
    seen.outputs[0].name = "seen"
    model.graph.append(seen)
    model.graph.outputs.append(seen.outputs[0])
    tally = apply(TakeLengths(), model)
    assert [rejection.node for rejection in tally.rejections] == ["total_lengths/ReduceSum"]
    assert "attention_mask" in inputs(model)


@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize(
    ("held", "valid"), [([0, 0], [6, 6]), ([0, 0, 0], [6, 2, 4]), ([5], [3]), ([5, 2], [4, 1]), ([9, 3], [1, 1])],
    ids=["prompts", "ragged prompts", "a chunk", "a ragged chunk", "a step"],
)  # fmt: skip
def test_a_cache_of_fixed_length_takes_what_each_row_held(held: list[int], valid: list[int], logits: str) -> None:
    """And the positions are computed of it: the first token of a chunk stands behind what its row held."""
    model = make(lowered=False, more="seen = Identity(position_ids)", outputs=", seen")
    if logits == "last":
        apply(LastTokenLogits(), model)
    apply(UseStandardAttention("scatter"), model)
    slots = 12
    given = feeds(held, valid, slots)
    before = run(model, given)
    tally = apply(TakeLengths(), model)
    assert tally.fired == {"positions": 1, "lengths": 2 if logits == "last" else 1, "unused inputs": 1}
    wanted = ["past_lengths", "chunk_lengths"] if logits == "last" else ["past_lengths"]
    assert inputs(model) == ["input_ids", *PAST, *wanted]
    after = run(model, given | {"past_lengths": np.asarray(held)})
    close(after, before, rtol=1e-6, atol=1e-6)


def test_attention_that_is_not_lowered_is_left_alone() -> None:
    model = make(lowered=False)
    assert left_alone(TakeLengths(), model) == []
