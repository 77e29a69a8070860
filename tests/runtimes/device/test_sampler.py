"""The sampling graph against the host's sampler, its memory contract, and what CUDA has kernels for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.device.draw import OPSET, TIES, split_for_top_k, split_vocabulary
from llmc.runtimes.device.sampler import (
    CANDIDATES,
    MAX_TOP_K,
    UNIFORM_STEPS,
    SamplerKind,
    build_sampler,
    kind_of,
    supports,
    uniforms,
)
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.sampling import Sampler, filter_tokens, random_uniform
from llmc.runtimes.session.sampling_params import SamplingParams

from . import sampler_steps
from .sampler_steps import FILTERS, GRAPHS, STATE, TYPES, Steps, random_logits

Array = np.ndarray[Any, Any]

_WIDE = {"float", "double", "float16", "int32", "int64"}
_FLOATS = {"float", "double", "float16"}
#: First version and element types of the kernels that docs/OperatorKernels.md of ONNX Runtime lists for CUDA.
CUDA: dict[str, tuple[int, set[str]]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), (14, _WIDE)),
    **dict.fromkeys(("Less", "Greater", "Equal", "Min"), (13, _WIDE)),
    "LessOrEqual": (16, _WIDE),
    **dict.fromkeys(("And", "Or"), (7, {"bool"})),
    "ArgMax": (13, _FLOATS),
    "Clip": (13, _WIDE),
    "Cast": (13, _WIDE | {"bool", "bfloat16"}),
    "CumSum": (14, _WIDE),
    "Exp": (13, _FLOATS),
    "Expand": (13, _WIDE),
    "Gather": (13, _WIDE),
    "GatherElements": (13, _WIDE),
    "Pad": (18, _FLOATS),
    "ReduceMax": (18, _WIDE),
    "ReduceSum": (13, _WIDE),
    "Reshape": (14, _WIDE | {"bool", "bfloat16"}),
    "ScatterElements": (18, _WIDE),
    "TopK": (11, _WIDE),
    "Where": (16, _WIDE),
}


def count_differences(params: SamplingParams, vocab: int, dtype: str, rows: int = 64, steps: int = 32) -> int:
    """Steps in which the graph and the host's sampler choose otherwise, of ``rows * steps``."""
    graph = Steps(params, vocab, rows, dtype=dtype)
    host = [Sampler(params, vocab, row) for row in range(rows)]
    different = 0
    for step in range(steps):
        logits = random_logits(step, rows, vocab, dtype)
        expected = [host[row].sample(logits[row], step) for row in range(rows)]
        different += int((graph(logits) != expected).sum())
    return different


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("fields", FILTERS, ids=str)
def test_the_host_draws_the_same_tokens(fields: dict[str, float], dtype: str) -> None:
    params = SamplingParams(temperature=0.8, seed=5, **fields)
    assert count_differences(params, 1000, dtype) <= 2  # of 2,048


@pytest.mark.parametrize("vocab", [1, 3, 513, 1031, 4096, 9000])
@pytest.mark.parametrize("fields", [{}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_any_vocabulary_is_drawn_from(fields: dict[str, float], vocab: int) -> None:
    assert count_differences(SamplingParams(temperature=0.6, **fields), vocab, "float32", rows=8) <= 1


def test_bfloat16_logits() -> None:
    assert count_differences(SamplingParams(temperature=1.0, top_k=30, top_p=0.9), 500, "bfloat16", rows=8) == 0
    assert count_differences(SamplingParams(), 500, "bfloat16", rows=8) == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_greedy_takes_the_lowest_of_equal_tokens(dtype: str) -> None:
    logits = random_logits(1, 5, 6000, dtype)
    logits[0, [70, 1500, 5999]] = 40.0
    logits[1] = 60.0  # their sum is beyond float16
    logits[2] = -60.0
    graph = Steps(SamplingParams(), 6000, 5, dtype=dtype)
    assert graph(logits).tolist() == [70, 0, 0, *logits[3:].argmax(axis=1)]


MIX = [*(replace(params, seed=row) for row, params in enumerate(GRAPHS)), SamplingParams(temperature=1.6, top_k=64)]


@pytest.mark.parametrize("vocab", [100, 1031, 9000])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_gets_what_it_gets_alone_whatever_the_others_ask_for(dtype: str, vocab: int) -> None:
    """Greedy ones, too; along the way logits with ties, which are common in half precision, and a broken row."""
    together = Steps(MIX, vocab, len(MIX), dtype=dtype)
    alone = []
    for row, params in enumerate(MIX):
        alone.append(Steps(params, vocab, 1, dtype=dtype))
        alone[-1].uniforms = together.uniforms[:, [row]]
    for step in range(24):
        logits = random_logits(step, len(MIX), vocab, dtype)
        if step % 3 == 1:
            logits = np.round(logits)
        logits[step % len(MIX), 7] = np.nan
        given = together(logits)
        assert given.tolist() == [int(one(logits[[row]])[0]) for row, one in enumerate(alone)]
        assert given[step % len(MIX)] == -1


def test_a_mix_of_rows_draws_what_the_host_draws() -> None:
    graph = Steps(MIX * 4, 1000, 4 * len(MIX))
    host = [Sampler(params, 1000, row) for row, params in enumerate(MIX * 4)]
    different = 0
    for step in range(48):
        logits = random_logits(step, len(host), 1000)
        expected = [one.sample(row, step) for one, row in zip(host, logits, strict=True)]
        different += int((graph(logits) != expected).sum())
    assert different <= 2  # of 2,112


def test_few_kinds_serve_all_settings() -> None:
    def kind(*settings: SamplingParams, vocab: int = 5000) -> SamplerKind:
        return kind_of(settings, vocab)

    greedy, whole = SamplingParams(top_k=70), SamplingParams(temperature=0.5, min_p=0.1)
    few, many = (SamplingParams(temperature=0.5, top_k=top_k) for top_k in (64, 65))
    nucleus = SamplingParams(temperature=0.5, top_p=0.9)
    assert kind(greedy, greedy) == SamplerKind()
    assert kind(greedy, few) == kind(replace(few, top_p=0.5, seed=4)) == SamplerKind(CANDIDATES[0])
    assert kind(many) == kind(few, nucleus) == SamplerKind(CANDIDATES[1])
    assert kind(greedy, whole) == kind(replace(whole, top_k=5000)) == SamplerKind(0, True)
    assert kind(whole, few) == SamplerKind(CANDIDATES[0], True)
    assert kind(few, vocab=100) == kind(nucleus, vocab=100) == SamplerKind(100)


def test_ties_with_the_kth_token_are_kept_up_to_the_bound() -> None:
    draws = np.tile(np.linspace(0, 1 - 2.0**-24, 400), (1, 1))
    logits = np.zeros((400, 900), np.float32)
    logits[:, 500:520] = 1.0
    graph = Steps(SamplingParams(temperature=1.0, top_k=3), 900, 400, draws=draws)
    assert set(graph(logits).tolist()) == set(range(500, 520))
    logits[:, 100:300] = 1.0
    graph = Steps(SamplingParams(temperature=1.0, top_k=3), 900, 400, draws=draws)
    drawn = set(graph(logits).tolist())
    assert len(drawn) == 3 + TIES
    assert drawn < {*range(100, 300), *range(500, 520)}


def test_ties_inside_top_p_are_those_of_the_host() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.6, seed=9)
    logits = np.round(random_logits(2, 64, 300, spread=1.5))
    assert all(
        np.unique(logits[row][filter_tokens(logits[row], params)[0]]).size < 6 for row in range(64)
    )  # the cut lies in ties
    graph, host = Steps(params, 300, 64), [Sampler(params, 300, row) for row in range(64)]
    for step in range(20):
        assert graph(logits).tolist() == [host[row].sample(logits[row], step) for row in range(64)]


def test_top_p_is_renormalised_over_its_candidates() -> None:
    vocab, rows = 3 * CANDIDATES[-1], 4 * CANDIDATES[-1]
    row = np.full(vocab, -1.0, np.float32)
    row[1::3] = 1.0  # as many of them as there are candidates, with 0.787 of the mass
    draws = (np.arange(rows)[None] + 0.5) / rows
    graph = Steps(SamplingParams(temperature=1.0, top_p=0.95), vocab, rows, draws=draws)
    counts = np.bincount(graph(np.tile(row, (rows, 1))), minlength=vocab)
    assert counts[1::3].tolist() == [rows // CANDIDATES[-1]] * CANDIDATES[-1]


@pytest.mark.parametrize("fields", [{}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.05}], ids=str)
def test_frequencies_follow_the_distribution(fields: dict[str, float]) -> None:
    params = SamplingParams(temperature=1.2, seed=11, **fields)
    logits = random_logits(5, 1, 600, spread=1.5)
    graph = Steps(params, 600, 1000)
    counts = sum(np.bincount(graph(np.tile(logits, (1000, 1))), minlength=600) for _ in range(20))
    tokens, scaled = filter_tokens(logits[0], params)
    expected = np.zeros(600)
    expected[tokens] = np.exp(scaled - scaled.max(), dtype=np.float64)
    expected *= 20_000 / expected.sum()
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    rest, expected_rest = counts[~often].sum(), expected[~often].sum()
    chi_square = ((counts[often] - expected[often]) ** 2 / expected[often]).sum()
    chi_square += (rest - expected_rest) ** 2 / max(expected_rest, 1)
    degrees = int(often.sum())
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("vocab", [1031, 9000])
@pytest.mark.parametrize("params", GRAPHS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_broken_and_finished_rows_get_no_token(params: SamplingParams, dtype: str, vocab: int) -> None:
    logits = random_logits(0, 7, vocab, dtype)
    logits[0, 800] = np.nan
    logits[1, 0] = np.inf
    logits[2] = np.nan
    logits[3, [5, 6]] = np.inf, -np.inf
    logits[4, :1000] = -np.inf  # masked tokens are no fault
    graph = Steps(params, vocab, 7, dtype=dtype)
    graph.active[5] = 0
    tokens = graph(logits)
    assert tokens[[0, 1, 2, 3, 5]].tolist() == [-1] * 5
    assert 1000 <= tokens[4] < vocab
    assert 0 <= tokens[6] < vocab
    assert graph.seqlens_k.tolist() == [1, 2, 3, 4, 5, 5, 7]


def with_nan_last(*arguments: Any, **options: Any) -> onnx.ModelProto:
    """The sampler on a runtime whose TopK puts NaN behind all others; ONNX Runtime's on the CPU puts it first."""
    model = build_sampler(*arguments, **options)
    nodes = []
    for node in model.graph.node:
        if node.op_type == "TopK" and node.input[0] in ("logits", model.graph.node[0].output[0]):
            nodes.append(onnx.helper.make_node("IsNaN", [node.input[0]], ["is nan"]))
            nodes.append(onnx.helper.make_node("Where", ["is nan", "least", node.input[0]], ["sorted"]))
            node.input[0] = "sorted"
        nodes.append(node)
    assert len(nodes) == len(model.graph.node) + 2
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(onnx.helper.make_tensor("least", TensorProto.FLOAT, [], [-np.inf]))
    return model


@pytest.mark.parametrize("fields", [{"top_k": 5}, {"top_k": 5, "top_p": 0.9}, {"top_p": 0.9}], ids=str)
def test_nan_that_is_no_candidate_is_seen(fields: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_steps, "build_sampler", with_nan_last)
    logits = random_logits(0, 3, 1031)
    logits[[0, 2], [5, 1030]] = np.nan
    tokens = Steps(SamplingParams(temperature=0.7, **fields), 1031, 3)(logits)
    assert tokens[[0, 2]].tolist() == [-1, -1]
    assert tokens[1] >= 0


def test_a_set_that_reaches_top_p_exactly_takes_no_more() -> None:
    """Four equally likely tokens, of which two are half: the highest ids, as on the host."""
    row = np.full(700, -np.inf, np.float32)
    row[[3, 300, 301, 650]] = 0.5
    draws = np.linspace(0, 1 - 2.0**-24, 40)[None]
    for fields in ({"top_p": 0.5}, {"top_p": 0.5, "top_k": 9}):
        params = SamplingParams(temperature=1.0, **fields)
        assert filter_tokens(row, params)[0].tolist() == [301, 650]
        drawn = Steps(params, 700, 40, draws=draws)(np.tile(row, (40, 1)))
        assert sorted(set(drawn.tolist())) == [301, 650]


@pytest.mark.parametrize("vocab", [1031, 2053])
def test_no_token_behind_the_vocabulary_is_drawn(vocab: int) -> None:
    """Primes, whose blocks are padded; logits far below 0, so that padding of 0 would have all the mass."""
    draws = np.linspace(0, 1 - 2.0**-24, 300)[None]
    drawn = Steps(SamplingParams(temperature=1.0), vocab, 300, draws=draws)(np.full((300, vocab), -9.0, np.float32))
    assert abs(drawn - np.floor(draws[0] * vocab)).max() <= 1
    assert drawn.max() == vocab - 1


@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("params", GRAPHS[1:], ids=str)
def test_a_token_without_probability_is_never_drawn(params: SamplingParams, draw: float) -> None:
    logits = np.full((3, 2000), -np.inf, np.float32)
    logits[:, [600, 1500]] = 0.5
    logits[1, [600, 601]] = 0.25, 90.0
    logits[2] = -200.0
    logits[2, 1999] = 20.0
    graph = Steps(params, 2000, 3, draws=np.full((64, 3), draw))
    tokens = graph(logits)
    assert tokens[0] in (600, 1500)
    assert tokens[1:].tolist() == [601, 1999]


def test_draws_at_the_end_of_a_block_stay_inside_it() -> None:
    blocks, width = split_vocabulary(4096)
    row = random_logits(3, 1, 4096, spread=1.0)[0]
    row[::width] = -np.inf  # the first token of each block: where a draw past the end of the one before would land
    ends = np.cumsum(np.exp(row, dtype=np.float64).reshape(blocks, width).sum(axis=1))[:-1]
    near = (ends / np.exp(row, dtype=np.float64).sum()).astype(np.float32)
    draws = np.concatenate([near + np.float32(shift * 2.0**-24) for shift in range(-8, 8)])
    graph = Steps(SamplingParams(temperature=1.0), 4096, draws.size, draws=draws[None])
    assert (graph(np.tile(row, (draws.size, 1))) % width != 0).all()


@pytest.mark.parametrize("params", GRAPHS, ids=str)
def test_outputs_may_lie_in_the_memory_of_their_inputs(params: SamplingParams) -> None:
    rows, steps = 3, 6
    apart, in_place = (Steps(params, 700, rows, in_place=place) for place in (False, True))
    held = in_place.step, in_place.seqlens_k
    tokens = []
    for step in range(steps):
        logits = random_logits(step, rows, 700, spread=1.0)
        if step == 3:
            apart.active[1] = in_place.active[1] = 0
        tokens.append(in_place(logits).tolist())
        assert apart(logits).tolist() == tokens[-1]
    assert held[0].tolist() == [0 if params.greedy else steps]
    assert held[1].tolist() == [steps, 1 + 3, 2 + steps] == apart.seqlens_k.tolist()
    assert [row[1] for row in tokens[3:]] == [-1] * 3
    assert len({row[0] for row in tokens}) > 1  # each step read logits and uniforms of its own


@pytest.mark.parametrize("params", GRAPHS[:2], ids=str)
def test_lengths_of_64_bits(params: SamplingParams) -> None:
    graph = Steps(params, 50, 3, lengths_type=TensorProto.INT64)
    graph.seqlens_k, graph.active[1] = np.array([2**40, 5, 7]), 0
    graph(random_logits(0, 3, 50))
    assert graph.seqlens_k.tolist() == [2**40 + 1, 5, 8]


@pytest.mark.parametrize("params", GRAPHS, ids=str)
def test_inputs_that_are_overwritten_are_read_by_the_node_that_writes(params: SamplingParams) -> None:
    model = build_sampler(kind_of([params], 700), 700, TensorProto.FLOAT16)
    for output, name in list(STATE.items())[int(params.greedy) :]:
        readers = [node for node in model.graph.node if name in node.input]
        assert [list(node.output) for node in readers] == [[output]]
        assert readers[0].op_type == "Add"  # elementwise: no element is read after another was written


@pytest.mark.parametrize("vocab", [700, 1031, 9000])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("params", GRAPHS, ids=str)
def test_cuda_has_a_kernel_for_every_node(params: SamplingParams, dtype: str, vocab: int) -> None:
    for kind in (kind_of([params], vocab), SamplerKind(min(CANDIDATES[0], vocab), True)):
        model = build_sampler(kind, vocab, TYPES[dtype])
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        values = [*inferred.input, *inferred.output, *inferred.value_info]
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        types |= {item.name: item.data_type for item in inferred.initializer}
        for node in inferred.node:
            version, allowed = CUDA[node.op_type]
            assert onnx.defs.get_schema(node.op_type, OPSET).since_version == version, node.op_type
            tensors = {"Where": [node.output[0]], "Cast": [node.input[0], node.output[0]]}
            for tensor in tensors.get(node.op_type, [node.input[0]]):
                name = TensorProto.DataType.Name(types[tensor]).lower()
                assert name in allowed, (node.op_type, tensor, name)


def test_the_greedy_graph_is_small() -> None:
    graph = build_sampler(SamplerKind(), 4096, TensorProto.FLOAT).graph
    assert len([node for node in graph.node if node.op_type != "Reshape"]) == 7
    assert {item.name for item in graph.input} == {"logits", "active", "seqlens_k"}


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 2**33))
def test_uniforms_are_those_of_the_host_rounded_down(seed: int, row: int, begin: int) -> None:
    rows = [None, RowState(0, SamplingParams(temperature=1.0, seed=seed), row, 3, 1)]
    rounded = uniforms(rows, begin)
    assert (rounded.dtype, rounded.shape) == (np.float32, (UNIFORM_STEPS, 2))
    for step, value in enumerate(rounded[:, 1]):
        exact = random_uniform(seed, row, 3 + begin + step)
        assert float(value) <= exact < float(np.nextafter(value, np.float32(2)))
        assert value < 1


@given(st.integers(1, 400_000))
def test_blocks_hold_the_vocabulary(vocab: int) -> None:
    blocks, width = split_vocabulary(vocab)
    assert max(blocks, width) <= 1024
    assert vocab <= blocks * width < vocab + width


@given(st.integers(1, 400_000), st.integers(1, 1088))
def test_groups_for_top_k_divide_the_vocabulary(vocab: int, count: int) -> None:
    groups = split_for_top_k(vocab, min(count, vocab))
    assert vocab % groups == 0
    assert groups == 1 or vocab // groups >= count


def test_groups_for_top_k_of_common_vocabularies() -> None:
    for vocab in (32_000, 49_152, 50_257, 128_256, 151_936, 262_144):
        assert vocab // 60 > split_for_top_k(vocab, 50 + TIES) >= 10
        assert split_for_top_k(vocab, 1) >= 29


def test_what_the_device_leaves_to_the_host() -> None:
    for params in (SamplingParams(repetition_penalty=1.1), SamplingParams(temperature=1.0, top_k=MAX_TOP_K + 1)):
        assert not supports(params)
    assert supports(SamplingParams(top_k=5000))  # greedy: no filter applies
    assert supports(SamplingParams(temperature=1.0, top_k=MAX_TOP_K))


@pytest.mark.parametrize(("vocab", "element", "said"), [(100, TensorProto.INT32, 6), (0, TensorProto.FLOAT, 1)])
def test_sizes_and_types_that_make_no_sampler(vocab: int, element: int, said: int) -> None:
    with pytest.raises(UsageError, match=f"element type {said} and {vocab} tokens cannot be sampled"):
        build_sampler(SamplerKind(), vocab, element)
