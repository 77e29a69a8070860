"""Memory of a small decoder, part by part; and the sentence that refuses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import ArtifactError, EngineError, UsageError
from llmc.compiler.base.targets import get_target
from llmc.runtimes.memory.capacity_plan import Bucket, CapacityPlan
from llmc.runtimes.memory.facts import read_facts
from llmc.runtimes.memory.plan import CUDA_ALLOWANCE, MemoryPlan, check_fits, plan_memory

FLOAT16, INT64 = ir.DataType.FLOAT16, ir.DataType.INT64
LAYERS, KV_HEADS, DIM, WIDTH, VOCABULARY = 2, 2, 8, 32, 64
PLAN = MemoryPlan(
    weights=6 << 30,
    kv_cache=3 << 30,
    logits=1 << 20,
    activations=1 << 30,
    workspace=1 << 29,
    context=8192,
    batch=4,
    chunk=512,
    cache_bits=16,
    target="cuda",
)


def decoder(
    *, cache: ir.DataType = FLOAT16, slots: str = "capacity", rows: int | str = 1, states: bool = False
) -> ir.Model:
    """Embedding, quantized projection, attention per layer, head; all values have shapes."""
    ids = ir.val("input_ids", INT64, ["batch", "sequence"])
    mask = ir.val("attention_mask", INT64, ["batch", "total"])
    x = ir.val("x", FLOAT16, ["batch", "sequence", WIDTH])
    table = ir.val("table", FLOAT16, [VOCABULARY, WIDTH], const_value=_tensor("table", np.float16, VOCABULARY, WIDTH))
    packed = ir.val("packed", ir.DataType.UINT8, [96, 1, 16], const_value=_tensor("packed", np.uint8, 96, 1, 16))
    scales = ir.val("scales", FLOAT16, [96, 1], const_value=_tensor("scales", np.float16, 96, 1))
    nodes = [ir.node("Gather", [table, ids], outputs=[x])]
    inputs, outputs = [ids, mask], []
    for layer in range(LAYERS):
        wide = ir.val(f"wide.{layer}", FLOAT16, ["batch", "sequence", 96])
        products = {"K": WIDTH, "N": 96, "bits": 4, "block_size": 32}
        nodes.append(ir.node("MatMulNBits", [x, packed, scales], products, domain="com.microsoft", outputs=[wide]))
        past = [
            ir.val(f"past_key_values.{layer}.{name}", cache, ["batch", KV_HEADS, slots, DIM])
            for name in ("key", "value")
        ]
        present = [
            ir.val(f"present.{layer}.{name}", cache, ["batch", KV_HEADS, slots, DIM]) for name in ("key", "value")
        ]
        x = ir.val(f"x.{layer}", FLOAT16, ["batch", "sequence", WIDTH])
        attention = ("GroupQueryAttention", [wide, None, None, *past], {"num_heads": 4, "kv_num_heads": KV_HEADS})
        nodes.append(ir.node(*attention, domain="com.microsoft", outputs=[x, *present]))
        inputs += past
        outputs += present
    if states:
        before = ir.val("past_key_values.9.conv_state", ir.DataType.FLOAT, ["batch", 16, 3])
        after = ir.val("present.9.conv_state", ir.DataType.FLOAT, ["batch", 16, 3])
        nodes.append(ir.node("Neg", [before], outputs=[after]))
        inputs.append(before)
        outputs.append(after)
    logits = ir.val("logits", FLOAT16, ["batch", rows, VOCABULARY])
    nodes.append(ir.node("Head", [x], domain="test", outputs=[logits]))
    graph = ir.Graph(
        inputs,
        [logits, *outputs],
        nodes=nodes,
        initializers=[table, packed, scales],
        opset_imports={"": 23, "com.microsoft": 1, "test": 1},
    )
    return ir.Model(graph, ir_version=10)


def _tensor(name: str, dtype: type[np.generic], *shape: int) -> ir.TensorProtocol:
    return ir.tensor(np.zeros(shape, dtype), name=name)


WEIGHTS = VOCABULARY * WIDTH * 2 + 96 * 16 + 96 * 2


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    ir.save(decoder(), tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    return tmp_path


def test_the_parts(saved: Path) -> None:
    facts = replace(read_facts(saved), target="cuda")
    plan = plan_memory(facts, context=100, batch=3, prefill_chunk=10)
    assert plan.weights == (saved / "model.onnx.data").stat().st_size
    assert plan.weights >= WEIGHTS
    # A bare ONNX file says nothing about its cache: past and present are two buffers.
    assert plan.kv_cache == 2 * (LAYERS * 2 * KV_HEADS * DIM * 2 * 100 * 3)
    assert plan.logits == 3 * VOCABULARY * 2
    mask_and_ids = 3 * (100 + 10) * 8
    assert plan.activations == get_target("cpu").arena_factor * (mask_and_ids + 3 * 10 * (WIDTH + 96) * 2)
    assert plan.workspace == CUDA_ALLOWANCE + max(WIDTH * 96 * 2, 3 * 10 * 96 * 2)
    assert plan.total == sum(plan.parts.values())
    assert plan.cache_bits == 16
    assert plan.not_counted == ()


def test_a_single_row_needs_no_dequantized_matrix(saved: Path) -> None:
    facts = replace(read_facts(saved), target="cuda")
    assert plan_memory(facts, 100, prefill_chunk=1).workspace == CUDA_ALLOWANCE + 96 * 2
    assert plan_memory(facts, 100, prefill_chunk=2).workspace == CUDA_ALLOWANCE + WIDTH * 96 * 2


def test_a_tensorrt_engine_is_counted_as_it_was_built(saved: Path) -> None:
    """The file and the cache of the engine that runs; activations of the largest run that it was built for."""
    buckets = (Bucket(64, "engine_64.plan", 7000), Bucket(256, "engine_256.plan", 9000))
    engines = CapacityPlan(buckets, max_batch=4, chunk=16, max_context=200)
    facts = replace(read_facts(saved), target="tensorrt-rtx", engines=engines)
    plans = [plan_memory(facts, context, batch=1) for context in (30, 64, 65)]
    assert [plan.weights for plan in plans] == [7000, 7000, 9000]
    assert [plan.kv_cache // (2 * LAYERS * 2 * KV_HEADS * DIM * 2) for plan in plans] == [64, 64, 256]
    assert plans[2].activations == 4 * (256 + 16) * 8 + 4 * 16 * (WIDTH + 96) * 2
    assert (plans[2].workspace, plans[2].chunk) == (CUDA_ALLOWANCE, 16)
    stripped = replace(facts, engines=replace(engines, stripped=True))
    assert plan_memory(stripped, 30).weights == 7000 + facts.weight_bytes
    with pytest.raises(UsageError, match="--batch 5 is more than the 4 rows that the engine was built for"):
        plan_memory(facts, 30, batch=5)
    with pytest.raises(UsageError, match="257 tokens are more than this engine's longest cache of 256"):
        plan_memory(facts, 257)


@pytest.mark.parametrize(
    ("dtype", "bits"), [(FLOAT16, 16), (ir.DataType.INT8, 8), (ir.DataType.FLOAT8E4M3FN, 8), (ir.DataType.INT4, 4)]
)
def test_the_cache_has_the_type_of_its_inputs(tmp_path: Path, dtype: ir.DataType, bits: int) -> None:
    ir.save(decoder(cache=dtype), tmp_path / "engine.onnx")
    facts = read_facts(tmp_path)
    assert facts.cache_bytes_per_token == 2 * (LAYERS * 2 * KV_HEADS * DIM) * bits // 8
    plan = plan_memory(facts, context=64, batch=2)
    assert plan.kv_cache == facts.cache_bytes_per_token * 128
    assert plan.cache_bits == bits


def test_one_buffer_where_past_and_present_are_the_same_memory(saved: Path) -> None:
    facts = read_facts(saved)
    shared = replace(facts, cache=tuple(replace(entry, copies=1) for entry in facts.cache))
    assert 2 * plan_memory(shared, 10).kv_cache == plan_memory(facts, 10).kv_cache


def test_states_do_not_grow_and_have_two_buffers(tmp_path: Path) -> None:
    ir.save(decoder(states=True), tmp_path / "model.onnx")
    ir.save(decoder(), tmp_path / "without.onnx")
    for context in (10, 1000):
        with_states = plan_memory(tmp_path, context, batch=5).kv_cache
        assert with_states - plan_memory(tmp_path / "without.onnx", context, batch=5).kv_cache == 2 * 5 * 16 * 3 * 4
    assert read_facts(tmp_path).cache_bytes_per_token == read_facts(tmp_path / "without.onnx").cache_bytes_per_token


def test_logits_of_every_position(tmp_path: Path) -> None:
    ir.save(decoder(rows="sequence"), tmp_path / "model.onnx")
    assert plan_memory(tmp_path, 100, batch=3, prefill_chunk=10).logits == 3 * 10 * VOCABULARY * 2


def test_the_engines_graph_comes_first(saved: Path) -> None:
    ir.save(decoder(rows="sequence"), saved / "engine.onnx")
    assert read_facts(saved).graph_file.name == "engine.onnx"


def test_weights_are_not_read(saved: Path) -> None:
    (saved / "model.onnx.data").unlink()
    assert plan_memory(saved, 10).weights == WEIGHTS


def test_a_chunk_is_at_most_the_context(saved: Path) -> None:
    assert plan_memory(saved, 10, prefill_chunk=4096).chunk == 10
    assert plan_memory(saved, 10) == plan_memory(saved, 10, prefill_chunk=10)


@pytest.mark.parametrize("numbers", [(0, 1, None), (10, 0, None), (10, 1, 0)])
def test_nothing_is_refused(saved: Path, numbers: tuple[int, int, int | None]) -> None:
    with pytest.raises(UsageError, match="give at least 1"):
        plan_memory(saved, *numbers)


def test_a_context_beyond_the_engines_is_refused(saved: Path) -> None:
    with pytest.raises(UsageError, match="--context 101 is more than the 100 tokens"):
        plan_memory(replace(read_facts(saved), max_context=100), 101)


def test_no_graph(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no engine\.onnx and no model\.onnx"):
        read_facts(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_facts(tmp_path / "nothing")
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_facts(tmp_path)


def test_an_unknown_size_is_said(tmp_path: Path) -> None:
    model = decoder()
    next(node for node in model.graph if node.op_type == "Gather").outputs[0].shape = None
    ir.save(model, tmp_path / "model.onnx")
    assert plan_memory(tmp_path, 10).not_counted[0] == "1 Gather with outputs whose size the graph does not state"


def test_what_fits_is_let_through() -> None:
    check_fits(PLAN, PLAN.total)


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(EngineError) as refused:
        check_fits(PLAN, PLAN.total - 1, "GPU 0")
    assert str(refused.value) == (
        "10.50 GiB are needed for context 8192, batch 4, chunk 512 (weights 6.00 GiB, KV cache 3.00 GiB, logits "
        "1.0 MiB, activations 1.00 GiB, workspace 512.0 MiB), and GPU 0 has 10.50 GiB free; use a smaller --context, "
        "a smaller batch or an int8 KV cache"
    )


def test_an_open_engine_has_its_weights() -> None:
    plan = replace(PLAN, workspace=CUDA_ALLOWANCE + 1000).once_loaded
    assert (plan.weights, plan.workspace, plan.kv_cache) == (0, 1000, PLAN.kv_cache)
    check_fits(plan, plan.total)
    with pytest.raises(EngineError, match=r"\(KV cache 3\.00 GiB, logits") as refused:
        check_fits(plan, 100)
    assert "weights" not in str(refused.value)
    assert replace(PLAN, workspace=0).once_loaded.workspace == 0


@pytest.mark.parametrize(
    ("changes", "free", "says", "not_says"),
    [
        ({}, 6 << 30, "the weights alone do not fit", "--context"),
        ({"cache_bits": 8}, 8 << 30, "a smaller batch", "int8"),
        ({"target": "cpu"}, 8 << 30, "a smaller batch", "int8"),
        ({"batch": 1}, 8 << 30, "a smaller --context or an int8 KV cache", "smaller batch"),
        ({"activations": 4 << 30}, 8 << 30, "use a smaller prefill chunk, a smaller --context", "larger device"),
        ({"batch": 1, "context": 1, "chunk": 1, "cache_bits": 8}, 8 << 30, "use a larger device", "--context"),
    ],
)
def test_the_advice_is_what_would_help(changes: dict[str, object], free: int, says: str, not_says: str) -> None:
    with pytest.raises(EngineError) as refused:
        check_fits(replace(PLAN, **changes), free)  # type: ignore[arg-type]
    advice = str(refused.value).rpartition(";")[2]
    assert says in advice
    assert not_says not in advice
