"""Each part of a plan by hand on graphs of a few values: symbols, rows, scratch memory, limits, and advice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan
from llmc.runtimes.memory.facts import CacheInput, MemoryFacts
from llmc.runtimes.memory.plan import CUDA_ALLOWANCE, MemoryPlan, check_fits, plan_memory, scratch_bytes

KEY = CacheInput("past_key_values.0.key", "FLOAT16", 2.0, (3, None, 8), batched=True, copies=1)
STATE = CacheInput("past_key_values.1.state", "FLOAT", 4.0, (5,), batched=True, copies=2)


def graph(inner: str, rows: str = "1", ids: str = "batch, sequence", body: str = "x = Op(input_ids)") -> ir.Graph:
    """Ids, one value between, and logits."""
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (int64[{ids}] input_ids) => (float16[batch, {rows}, 64] logits) <{inner} x>
    {{ {body} logits = Head(x) }}"""
    return ir.from_onnx_text(text).graph


def facts(made: ir.Graph, target: str | None = "cpu", **fields: Any) -> MemoryFacts:
    known: dict[str, Any] = {"max_context": None, "weight_bytes": 1000, "cache": (KEY,), **fields}
    return MemoryFacts(Path("model.onnx"), made, target, **known)


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("batch, sequence", 3 * 10),
        ("batch, past", 3 * 90),
        ("batch, total", 3 * 100),
        ("batch, capacity", 3 * 100),
        ("batch, 1", 3),
        ("batch, sequence, total", 3 * 10 * 100),
    ],
)
def test_symbols(shape: str, values: int) -> None:
    """3 rows of 100 tokens, of which 10 are computed at once and 90 lie before them; ids live beside the value."""
    plan = plan_memory(facts(graph(f"float16[{shape}]")), context=100, batch=3, prefill_chunk=10)
    assert plan.activations == 2 * (3 * 10 * 8 + values * 2)


def test_the_inputs_name_the_sizes() -> None:
    plan = plan_memory(facts(graph("float16[rows, tokens]", ids="rows, tokens")), 100, 3, 10)
    assert plan.activations == 2 * (3 * 10 * 8 + 3 * 10 * 2)


def test_an_input_may_state_a_number() -> None:
    """It names no symbol; those of the other axes are known as ever."""
    for ids in ("1, sequence", "batch, 10"):
        plan = plan_memory(facts(graph("float16[batch, sequence]", ids=ids)), 100, 3, 10)
        assert plan.activations == 2 * ((10 if ids[0] == "1" else 30) * 8 + 3 * 10 * 2)


@pytest.mark.parametrize(("rows", "values"), [("1", 3 * 64), ("sequence", 3 * 10 * 64)])
def test_logits_are_no_activation(rows: str, values: int) -> None:
    plan = plan_memory(facts(graph("float16[batch, 1]", rows)), 100, 3, 10)
    assert plan.logits == 2 * values
    assert plan.activations == 2 * (3 * 10 * 8 + 3 * 2)


def test_the_cache_of_all_rows_and_the_bits_of_its_widest_value() -> None:
    """States have no slots, and say nothing of the bits."""
    made = graph("float16[batch, 1]")
    narrow = replace(KEY, name="past_key_values.0.value", dtype="INT8", bytes_per_value=1.0)
    plan = plan_memory(facts(made, cache=(narrow, KEY, STATE)), 100, 3)
    assert plan.kv_cache == 3 * 100 * 24 * (1 + 2) + 2 * 3 * 5 * 4
    assert plan.cache_bits == 16
    alone = plan_memory(facts(made, cache=(STATE,)), 100, 3)
    assert (alone.kv_cache, alone.cache_bits) == (2 * 3 * 5 * 4, 0)
    assert plan_memory(facts(made, cache=()), 100).cache_bits == 0


@pytest.mark.parametrize(
    ("target", "allowance", "factor"),
    [
        (None, 0, 2),
        ("cpu", 0, 2),
        ("openvino", 0, 2),
        ("cuda", CUDA_ALLOWANCE, 2),
        ("tensorrt-rtx", CUDA_ALLOWANCE, 1),
        ("tensorrt", CUDA_ALLOWANCE, 1),
    ],
)
def test_a_gpu_needs_room_for_itself_and_an_arena_twice_what_lives(
    target: str | None, allowance: int, factor: int
) -> None:
    plan = plan_memory(facts(graph("float16[batch, 1]"), target), 100, 3, 10)
    assert plan.workspace == allowance
    assert plan.activations == factor * (3 * 10 * 8 + 3 * 2)


def test_the_allowance_is_more_than_was_measured() -> None:
    assert CUDA_ALLOWANCE == 832 * 1024 * 1024


def test_parts_and_total_as_json() -> None:
    plan = MemoryPlan(1, 20, 300, 4000, 50000, 7, 8, 9, 16, "cuda", ("this", "that"))
    assert (plan.total, plan.to_json()["total"]) == (54321, 54321)
    assert list(plan.parts.items()) == [
        *(("weights", 1), ("KV cache", 20), ("logits", 300), ("activations", 4000), ("workspace", 50000))
    ]
    assert plan.to_json() == {
        "context": 7,
        "batch": 8,
        "chunk": 9,
        "cache_bits": 16,
        "target": "cuda",
        "not_counted": ["this", "that"],
        "weights": 1,
        "kv_cache": 20,
        "logits": 300,
        "activations": 4000,
        "workspace": 50000,
        "total": 54321,
    }
    small = replace(plan, workspace=CUDA_ALLOWANCE - 1).once_loaded
    assert (small.weights, small.workspace, small.kv_cache) == (0, 0, 20)


BUCKETS = (Bucket(8, "a", 7000), Bucket(64, "b", 9000))
ENGINES = CapacityPlan(BUCKETS, max_batch=4, chunk=16, max_context=50)


def test_a_short_engine_computes_no_more_than_its_cache_holds() -> None:
    made = facts(graph("float16[batch, past]"), "tensorrt-rtx", engines=ENGINES)
    short, long = plan_memory(made, 8, 1), plan_memory(made, 9, 1)
    assert short.activations == 4 * 8 * 8
    assert long.activations == 4 * 16 * 8 + 4 * (64 - 16) * 2
    assert (short.weights, long.weights, short.chunk, long.chunk) == (7000, 9000, 8, 9)
    assert (short.kv_cache, long.kv_cache) == (8 * 24 * 2, 64 * 24 * 2)


def test_just_what_the_engine_holds_is_let_through() -> None:
    made = facts(graph("float16[batch, 1]"), "tensorrt-rtx", engines=ENGINES, max_context=50)
    assert plan_memory(made, 50, 4).batch == 4
    with pytest.raises(UsageError, match="--batch 5"):
        plan_memory(made, 50, 5)
    with pytest.raises(UsageError, match=r"--context 51 is more than the 50 tokens of model\.onnx"):
        plan_memory(made, 51, 4)


def products(*nodes: str) -> ir.Graph:
    """Products of [batch, sequence, 32] with scales of the type in the name, each to the width given."""
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float16[batch, sequence, 32] x, uint8[1] w, float[1] scales32, float16[1] scales16)
     => (float16[batch, sequence, 96] y)
    <float16[batch, sequence, 8] y8, float16[batch, sequence, 96] y96, float16[batch, 1, 200] y200>
    {{ {" ".join(nodes)} y = Op(y96) }}"""
    return ir.from_onnx_text(text).graph


SMALL = "y8 = com.microsoft.MatMulNBits <K = 32, N = 8> (x, w, scales32)"
WIDE = "y96 = com.microsoft.MatMulNBits <K = 32, N = 96> (x, w, scales16)"
HEAD = "y200 = com.microsoft.MatMulNBits <K = 32, N = 200> (x, w, scales32)"
BARE = "y96 = com.microsoft.MatMulNBits <K = 32, N = 96> (x, w)"


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ((WIDE,), 32 * 96 * 2),
        ((SMALL,), 32 * 8 * 4),
        ((BARE,), 32 * 96 * 4),
        ((BARE.replace("w)", 'w, "", w)'),), 32 * 96 * 4),
        ((WIDE, SMALL), 32 * 96 * 2),
        ((SMALL, WIDE), 32 * 96 * 2),
        ((HEAD,), 0),  # one row a sequence, and one sequence
        ((WIDE, "p, q, r = com.microsoft.GroupQueryAttention(y96)"), 1 * 40 * 96 * 2),
        (("p = com.microsoft.Gelu(x)",), 0),
    ],
)
def test_scratch_is_that_of_the_hungriest_operator(nodes: tuple[str, ...], size: int) -> None:
    assert scratch_bytes(products(*nodes), {"batch": 1, "sequence": 40}) == size


def test_a_single_row_is_multiplied_without_scratch() -> None:
    assert scratch_bytes(products(WIDE), {"batch": 1, "sequence": 1}) == 0
    assert scratch_bytes(products(WIDE), {"batch": 1, "sequence": 2}) == 32 * 96 * 2
    assert scratch_bytes(products(HEAD), {"batch": 2, "sequence": 1}) == 32 * 200 * 4


@pytest.mark.parametrize(
    ("target", "last"),
    [
        ("cuda", None),
        ("cpu", "weights that ONNX Runtime copies"),
        (None, "weights that ONNX Runtime copies"),
        ("tensorrt-rtx", "kernels that TensorRT compiles when it opens the engine"),
    ],
)
def test_what_is_not_counted_is_named(target: str | None, last: str | None) -> None:
    experts = "x = com.microsoft.MoE(input_ids) y = com.microsoft.QMoE(x)"
    named = list(plan_memory(facts(graph("float16[batch, 1]", body=experts), target), 10).not_counted)
    assert named[:2] == [
        "1 QMoE with outputs whose size the graph does not state",
        "what 2 operators of experts need while they run",
    ]
    assert len(named) == 2 + (last is not None)
    assert last is None or named[2].startswith(last)


def test_what_a_body_holds_is_named() -> None:
    body = "x = If(input_ids) <then_branch = t () => (float16[1] p) { q = Op()  p = Op(q) }>"
    named = plan_memory(facts(graph("float16[batch, 1]", body=body), "cuda"), 10).not_counted
    assert named == ("part of what 1 If hold while they run",)


PLAN = MemoryPlan(600, 300, 10, 200, 50, 100, 4, 16, 16, "cuda")


def advice(plan: MemoryPlan, free: int) -> str:
    with pytest.raises(EngineError) as refused:
        check_fits(plan, free)
    return str(refused.value).rpartition("; ")[2]


def test_just_enough_memory_is_enough() -> None:
    check_fits(PLAN, 1160)
    advice(PLAN, 1159)


@pytest.mark.parametrize(("free", "alone"), [(649, True), (650, False)])
def test_weights_and_workspace_that_do_not_fit_are_beyond_help(free: int, alone: bool) -> None:
    assert advice(PLAN, free).startswith("the weights alone do not fit") == alone
    assert not advice(replace(PLAN, weights=0, workspace=900), 800).startswith("the weights alone")


@pytest.mark.parametrize(
    ("changes", "helps"),
    [
        ({}, False),
        ({"activations": 290}, False),  # 290 + 10 = 300: no more than the cache
        ({"activations": 291}, True),
        ({"logits": 101}, True),
        ({"activations": 291, "chunk": 2}, True),
        ({"activations": 291, "chunk": 1}, False),
    ],
)
def test_a_smaller_chunk_helps_where_it_holds_more_than_the_cache(changes: dict[str, Any], helps: bool) -> None:
    assert ("prefill chunk" in advice(replace(PLAN, **changes), 700)) == helps


@pytest.mark.parametrize(("context", "batch"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_what_is_one_already_cannot_be_smaller(context: int, batch: int) -> None:
    said = advice(replace(PLAN, context=context, batch=batch), 700)
    assert ("--context" in said, "smaller batch" in said) == (context > 1, batch > 1)


@pytest.mark.parametrize(("bits", "target", "helps"), [(16, "cuda", True), (9, "cuda", True), (8, "cuda", False)])
def test_an_int8_cache_helps_where_it_is_wider(bits: int, target: str, helps: bool) -> None:
    assert ("int8 KV cache" in advice(replace(PLAN, cache_bits=bits, target=target), 700)) == helps


@pytest.mark.parametrize(
    ("size", "text"),
    [(1 << 30, "1.00 GiB"), ((1 << 30) - 1, "1024.0 MiB"), (3 << 29, "1.50 GiB"), (5 << 19, "2.5 MiB")],
)
def test_sizes_as_people_read_them(size: int, text: str) -> None:
    plan = MemoryPlan(size, 0, 0, 0, 0, 1, 1, 1, 0, None)
    with pytest.raises(EngineError, match=f"^{text} are needed for context 1, batch 1, chunk 1 .weights {text}., "):
        check_fits(plan, 0)
