from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmc.compiler.graph.operators import cached_attention
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.cleanup.simplify_shapes import SimplifyShapes
from llmc.passes.fusion.fuse_qk_norm import FuseQKNorm
from llmc.passes.fusion.fuse_rotary import FuseRotary
from llmc.passes.graph.graph_query import graph_input

from ..attention_graphs import CALL, DIM, PLAIN_ANGLES, ROTATE, feeds, head_path, make, text, weights
from ..graphs import apply, close, draw, left_alone, node_of, operators, run

ROWS = 200
NOT_OWN = "its angles depend on more than each token's own position"


def test_it_matches() -> None:
    model = make(text())
    tally = apply(FuseRotary(ROWS), model)
    assert tally.fired == tally.expected == {"rotary": 1}
    attention = node_of(model, "CachedAttention")
    variant = cached_attention.variant_of(attention)
    assert (variant.rotary, variant.qk_norm, variant.packed) == (True, False, False)
    assert cached_attention.get_input(attention, "position_ids") is graph_input(model, "position_ids")
    # The rotations that it left behind make no site of it.
    assert "RotaryEmbedding" in operators(model)
    assert left_alone(FuseRotary(ROWS), model) == []
    apply(RemoveDeadCode(), model)
    apply(SimplifyShapes(), model)
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["MatMul", "MatMul", "MatMul", "llmc::CachedAttention"]


def test_tables_are_the_angles() -> None:
    model = make(text())
    apply(FuseRotary(ROWS), model)
    attention = node_of(model, "CachedAttention")
    angles = np.arange(ROWS)[:, None] * weights()["inv_freq"].astype(np.float64)
    for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin)):
        table = cached_attention.get_input(attention, name)
        assert table is not None
        assert table.const_value is not None
        assert table.const_value.numpy().dtype == np.float32
        assert table.const_value.numpy().shape == (ROWS, DIM // 2)
        np.testing.assert_allclose(table.const_value.numpy(), function(angles), rtol=0, atol=2e-5)


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 3), seq=st.integers(1, 4), past=st.integers(0, 4), interleaved=st.booleans())
@example(batch=2, seq=3, past=1, interleaved=False)
@example(batch=2, seq=3, past=1, interleaved=True)
def test_numbers_agree(batch: int, seq: int, past: int, interleaved: bool) -> None:
    rotate = ROTATE.replace("RotaryEmbedding(", "RotaryEmbedding<interleaved=1>(") if interleaved else ROTATE
    model = make(text(rotate, rotate))
    given_feeds = feeds(batch, seq, past)
    # Rows of a batch at positions of their own, in no order.
    given_feeds["position_ids"] = np.random.default_rng(seq).integers(0, ROWS, (batch, seq))
    before = run(model, given_feeds)
    apply(FuseRotary(ROWS), model)
    assert node_of(model, "CachedAttention").attributes.get_int("interleaved") == int(interleaved)
    close(run(model, given_feeds), before)


def test_partial_heads() -> None:
    rotate = ROTATE.replace("RotaryEmbedding(", "RotaryEmbedding<rotary_embedding_dim=8>(")
    angles = PLAIN_ANGLES.replace("inv_freq", "quarter")
    model = make(text(rotate, rotate, angles=angles), {"quarter": weights()["inv_freq"][::2]})
    before = run(model, feeds())
    apply(FuseRotary(ROWS), model)
    assert node_of(model, "CachedAttention").attributes.get_int("rotary_embedding_dim") == 8
    close(run(model, feeds()), before)


def test_layers_with_the_same_angles_share_tables() -> None:
    """And layers with others (a model's local and global ones) have their own."""
    local = PLAIN_ANGLES.replace("inv_freq", "local_freq")
    for name in ("cos", "sin", "float_pos", "column", "angles"):
        local = local.replace(f"{name} =", f"{name}_l =").replace(f"({name}", f"({name}_l")
    calls = [f"{CALL}(q, k, v, past_k, past_v, attention_mask)"]
    for number, angles in ((2, "cos, sin"), (3, "cos_l, sin_l")):
        for n in "qk":
            calls.append(f"{n}_rot{number} = RotaryEmbedding({n}_core, {angles})")
            calls.append(f"{n}_back{number} = Transpose<perm=[0,2,1,3]>({n}_rot{number})")
            calls.append(f"{n}{number} = Reshape({n}_back{number}, {n}_merged)")
        inputs = f"q{number}, k{number}, v, past_k, past_v, attention_mask"
        calls.append(f"y{number}, pk{number}, pv{number} = {CALL}({inputs})")
    graph = text(angles=PLAIN_ANGLES + local, call="\n".join(calls)).replace("(y, pk, pv)", "(y, pk, pv, y2, y3)")
    model = make(graph, {"local_freq": weights()["inv_freq"] * 2})
    before = run(model, feeds())
    assert apply(FuseRotary(ROWS), model).fired == {"rotary": 3}
    close(run(model, feeds()), before)
    attentions = [node for node in model.graph if node.op_type == "CachedAttention"]
    tables = [cached_attention.get_input(node, "cos_cache") for node in attentions]
    assert tables[0] is tables[1]
    assert tables[2] is not tables[0]
    assert sum(name.startswith("rotary.") for name in model.graph.initializers) == 4


def test_layers_with_other_sines_have_tables_of_their_own() -> None:
    """Whatever a model means by it: rotations by (cos, sin) and by (cos, cos)."""
    calls = [f"{CALL}(q, k, v, past_k, past_v, attention_mask)"]
    for n in "qk":
        calls.append(f"{n}_rot2 = RotaryEmbedding({n}_core, cos, cos)")
        calls.append(f"{n}_back2 = Transpose<perm=[0,2,1,3]>({n}_rot2)\n{n}2 = Reshape({n}_back2, {n}_merged)")
    calls.append(f"y2, pk2, pv2 = {CALL}(q2, k2, v, past_k, past_v, attention_mask)")
    model = make(text(call="\n".join(calls)).replace("(y, pk, pv)", "(y, pk, pv, y2)"))
    before = run(model, feeds())
    assert apply(FuseRotary(ROWS), model).fired == {"rotary": 2}
    close(run(model, feeds()), before)


@pytest.mark.parametrize("options", [{"window": 2}, {"softcap": 0.5}, {"chunk": 2}])
def test_what_else_a_call_says_stays(options: dict[str, float]) -> None:
    stated = ", ".join(f"{name}={number}" for name, number in options.items())
    call = f"{CALL[:-1]}, {stated}>(q, k, v, past_k, past_v, attention_mask)"
    model = make(text(call=call))
    before = run(model, feeds())
    apply(FuseRotary(ROWS), model)
    close(run(model, feeds()), before)


def scaled(factor: str) -> str:
    """Angles multiplied by a factor that is computed from all positions."""
    return PLAIN_ANGLES.replace("column = ", f"{factor}\ncolumn0 = ").replace(
        "angles =", "column = Mul(column0, factor)\nangles ="
    )


LONGEST = "longest = ReduceMax<keepdims=0>(float_pos)"


@pytest.mark.parametrize("rows", [6, 40, 200])
@pytest.mark.parametrize(
    "factor",
    [
        f"{LONGEST}\nfactor = Add(longest, unit)",
        f"{LONGEST}\nlong = Greater(longest, original)\nfactor = Where(long, half, unit)",
        "shortest = ReduceMin<keepdims=0>(float_pos)\nfactor = Add(shortest, unit)",
        "factor = ReduceMean<keepdims=0>(float_pos)",
        "size = Size(float_pos)\nfactor = Cast<to=1>(size)",
    ],
    ids=["maximum", "threshold of the maximum", "minimum", "mean", "length"],
)
def test_angles_of_the_whole_sequence(factor: str, rows: int) -> None:
    """A threshold is how some models switch to other angles past their original context."""
    more = {name: np.asarray(x, np.float32) for name, x in (("unit", 1), ("half", 0.5), ("original", 4))}
    model = make(text(angles=scaled(factor)), more)
    assert left_alone(FuseRotary(rows), model) == [NOT_OWN]


@pytest.mark.parametrize("weak", [1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("angle", ["cos", "sin"])
def test_a_weak_dependence_on_the_sequence(weak: float, angle: str) -> None:
    """Of cosines or sines alone: times 1 + weak x the highest position, 1 to 5 here."""
    changed = PLAIN_ANGLES.replace(f"{angle} =", f"{angle}0 =")
    changed += f"""
        {LONGEST}\nless = Mul(longest, weak)\nfactor = Add(less, unit)\n{angle} = Mul({angle}0, factor)"""
    more = {name: np.asarray(x, np.float32) for name, x in (("unit", 1), ("weak", weak))}
    assert left_alone(FuseRotary(6), make(text(angles=changed), more)) == [NOT_OWN]


def test_angles_of_the_place_from_the_end() -> None:
    """Right for ascending positions of any length, and for a single one: wrong in another order."""
    ranked = """axes = Unsqueeze(position_ids, two)
        sorted, at = TopK<axis=1, largest=0>(position_ids, count)
        float_pos = Cast<to=1>(sorted)"""
    counted = "all = Shape<start=1, end=2>(position_ids)\n" + ranked.replace("count)", "all)")
    angles = PLAIN_ANGLES.replace("float_pos = Cast<to=1>(position_ids)", counted)
    assert left_alone(FuseRotary(ROWS), make(text(angles=angles))) == [NOT_OWN]


def test_angles_of_the_place_in_the_sequence() -> None:
    """cumsum(1) counts tokens: right for one order of positions only."""
    counted = """nothing = Div(position_ids, big)
        ones = Add(nothing, unit)
        counted = CumSum(ones, axis)
        place = Sub(counted, unit)"""
    angles = PLAIN_ANGLES.replace("float_pos = Cast<to=1>(position_ids)", f"{counted}\nfloat_pos = Cast<to=1>(place)")
    more = {"big": np.asarray(10**6), "unit": np.asarray(1), "axis": np.asarray(1)}
    assert left_alone(FuseRotary(ROWS), make(text(angles=angles), more)) == [NOT_OWN]


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (text(q="{n}_rot = Tanh({n}_core)"), "its query comes from Tanh, not from a rotary embedding"),
        (text(k="{n}_rot = Tanh({n}_core)"), "its key comes from Tanh, not from a rotary embedding"),
        (
            text(call=f"{CALL}(q, raw, v, past_k, past_v, attention_mask)", more_inputs=", float[b, s, 32] raw"),
            "its key comes from the graph's input, not from a rotary embedding",
        ),
        (
            text(call=f"{CALL}(q, , , past_k, past_v, attention_mask)"),
            "its query is packed already",
        ),
        (
            text(k="{n}_rot = RotaryEmbedding({n}_core, sin, cos)"),
            "its query and key are rotated by different angles",
        ),
        (
            text(k="{n}_rot = RotaryEmbedding({n}_core, cos, cos)"),
            "its query and key are rotated by different angles",
        ),
        (
            text(k="{n}_rot = RotaryEmbedding({n}_core, sin, sin)"),
            "its query and key are rotated by different angles",
        ),
        (
            text(*["{n}_rot = RotaryEmbedding({n}_core, table, table, position_ids)"] * 2),
            "its query and key are rotated by different angles",
        ),
        (
            text(k=ROTATE.replace("Embedding(", "Embedding<interleaved=1>(")),
            "its query and key are rotated in different ways",
        ),
        (
            text(k=ROTATE.replace("Embedding(", "Embedding<rotary_embedding_dim=8>(")),
            "its query and key are rotated in different ways",
        ),
        (
            text(q=ROTATE.replace("Rotary", "com.microsoft.Rotary")),
            "its query comes from RotaryEmbedding, not from a rotary embedding",
        ),
        (
            text(angles=PLAIN_ANGLES.replace("inv_freq", "scale"), more_inputs=f", float[{DIM // 2}] scale"),
            "its angles depend on the input scale",
        ),
        (
            text(angles="shape = Shape(x)\ncos = Identity(fixed)\nsin = Identity(fixed)"),
            "its angles are constants, not computed from the position",
        ),
        (
            text(angles="cos = Cos(fixed)\nsin = Sin(fixed)"),
            "its angles have the shape (1, 3, 8), not one row per position",
        ),
        (
            text(call=f"{CALL}(q, k, v, past_k, past_v, attention_mask, , , , q_norm, k_norm)"),
            "it normalizes its query and key itself, and would do so before the rotation",
        ),
    ],
    ids=[
        *("query", "key", "input", "packed", "angles", "sines", "cosines", "tables of its own", "way", "part"),
        *("another domain", "another input", "constants", "constant angles", "normalized inside"),
    ],
)  # fmt: skip
def test_near_misses(graph: str, reason: str) -> None:
    model = make(graph, {"fixed": draw(1, 3, DIM // 2), "table": draw(ROWS, DIM // 2)})
    for node in model.graph:
        if node.domain == "com.microsoft":
            node.outputs[0].shape = ir.Shape(["batch", 4, "seq", DIM])
            # The walk from attention goes through layouts whose shapes were not inferred behind it.
            for value in (output for other in model.graph for output in other.outputs if output.name == "q_back"):
                value.shape = ir.Shape(["batch", "seq", 4, DIM])
    assert left_alone(FuseRotary(ROWS), model) == [reason]
    assert FuseRotary(ROWS)(model).tally.expected == {"rotary": 1}


def test_an_operator_that_cannot_be_computed_here() -> None:
    angles = PLAIN_ANGLES.replace("cos = Cos(angles)", "cos = com.microsoft.Gelu(angles)")
    model = make(text(angles=angles))
    cos = next(value for node in model.graph for value in node.outputs if value.name == "cos")
    cos.shape = ir.Shape(["batch", "seq", DIM // 2])
    assert left_alone(FuseRotary(ROWS), model) == ["its angles depend on Gelu, which cannot be computed here"]


def test_angles_need_not_state_their_shape() -> None:
    """They are computed, and then have one."""
    model = make(text())
    cos = next(value for node in model.graph for value in node.outputs if value.name == "cos")
    cos.shape = None
    assert apply(FuseRotary(ROWS), model).fired == {"rotary": 1}


def test_a_graph_without_positions() -> None:
    graph = text().replace("position_ids", "places")
    assert left_alone(FuseRotary(ROWS), make(graph)) == ["the graph has no position_ids"]


def test_a_rotation_before_the_transpose() -> None:
    """ONNX rotates the third axis of four: this one rotates by head, which is a mistake, but the model's own."""
    path = """
    {n}_lin = MatMul(x, {n}_w)
    {n}_split = Reshape({n}_lin, {n}_heads)
    {n}_rot = RotaryEmbedding({n}_split, cos, sin)
    {n} = Reshape({n}_rot, {n}_merged)"""
    graph = text()
    for n in "qk":
        graph = graph.replace(head_path(n, ROTATE), path.format(n=n))
    reason = "the rotary embedding of its query is not laid out [batch, heads, seq, dim]"
    assert left_alone(FuseRotary(ROWS), make(graph)) == [reason]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("q_back = Transpose<perm=[0,2,1,3]>", "q_back = Transpose<perm=[0,3,1,2]>", "transposes something else"),
        ("q = Reshape(q_back, q_merged)", "q = Reshape(q_rot, q_merged)", "does not split or merge 4 heads"),
    ],
)  # fmt: skip
def test_other_layout_changes(old: str, new: str, reason: str) -> None:
    reasons = left_alone(FuseRotary(ROWS), make(text().replace(old, new)))
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_a_graph_without_rotation_has_no_sites() -> None:
    model = make(text("{n}_rot = Tanh({n}_core)", "{n}_rot = Tanh({n}_core)"))
    assert left_alone(FuseRotary(ROWS), model) == []


def test_norms_follow_it_inside() -> None:
    """Normalize, then rotate, as attention does it."""
    model = make(text(norms=("BHSD", "BHSD")))
    before = run(model, feeds())
    apply(FuseRotary(ROWS), model)
    apply(FuseQKNorm(), model)
    close(run(model, feeds()), before)
