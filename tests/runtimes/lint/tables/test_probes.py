"""Probes hold what their traps are about, and a near miss lacks nothing else."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llmc.runtimes.lint.tables.attention_traps import attention, gqa, tensor_scatter
from llmc.runtimes.lint.tables.probe import Probe, make_probe, random
from llmc.runtimes.lint.tables.record_traps import TRAPS
from llmc.runtimes.lint.tables.weight_traps import blocked_weight, transposed_table


def shape_of(item: onnx.ValueInfoProto) -> tuple[Any, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim)


def shapes(probe: Probe) -> dict[str, tuple[Any, ...]]:
    graph = probe.model.graph
    return {item.name: shape_of(item) for item in (*graph.input, *graph.output)}


def weights(probe: Probe) -> dict[str, Any]:
    return {item.name: numpy_helper.to_array(item) for item in probe.model.graph.initializer}


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.name for trap in TRAPS])
def test_arrays_fit_the_inputs_and_names_come_once(trap: Any) -> None:
    for probe in (trap.probe, trap.near_miss):
        found = {item.name: item for item in probe.model.graph.input}
        assert list(found) == list(probe.inputs)
        for name, array in probe.inputs.items():
            sizes = shape_of(found[name])
            assert len(sizes) == array.ndim
            assert all(
                isinstance(size, str) or size == length for size, length in zip(sizes, array.shape, strict=True)
            )
    assert trap.runtimes
    assert len([other for other in TRAPS if other.name == trap.name]) == 1


@pytest.mark.parametrize(("buffer", "slots", "present"), [(False, 5, 8), (True, 12, 12)])
def test_a_chunk_after_a_past(buffer: bool, slots: int, present: int) -> None:
    """``seqlens_k`` is one less than the tokens, which are those of the past and the new ones."""
    probe = gqa(batch=2, symbolic=False, buffer=buffer)
    assert probe.inputs["seqlens_k"].tolist() == [7, 7]
    assert probe.inputs["total"].tolist() == 8
    found = shapes(probe)
    assert found["query"] == (2, 3, 8 * 16)
    assert (found["past_key"], found["present_key"]) == ((2, 2, slots, 16), (2, 2, present, 16))
    assert found["y"] == (2, 3, 64)
    assert probe.valid == {"present_key": 8, "present_value": 8}
    node = probe.model.graph.node[0]
    assert list(node.input)[3:9] == ["past_key", "past_value", "seqlens_k", "total", "cos", "sin"]


def test_symbols_of_a_cache_tell_a_buffer_from_one_that_grows() -> None:
    grows, buffer = shapes(gqa()), shapes(gqa(buffer=True, symbolic_batch=True))
    assert (grows["past_key"][2], grows["present_key"][2], grows["query"][0]) == ("past", "total_length", 1)
    assert (buffer["past_key"][2], buffer["present_key"][2], buffer["query"][0]) == ("capacity", "capacity", "batch")


def test_rotation_and_chunk_lengths_are_there_on_request() -> None:
    def node(**options: Any) -> Any:
        return gqa(**options).model.graph.node[0]

    def rotates(**options: Any) -> int:
        return next((item.i for item in node(**options).attribute if item.name == "do_rotary"), 0)

    assert (rotates(), rotates(rotary=False)) == (1, 0)
    assert (len(node(rotary=False).input), len(node().input), len(node(chunks=True).input)) == (7, 9, 17)
    cos = weights(gqa())["cos"]
    assert cos.shape == (64, 8)
    assert cos[3, 1] == pytest.approx(np.cos(3 * 10000 ** (-1 / 8)), rel=1e-6)


def test_masks_lengths_and_pasts_of_attention() -> None:
    """Five of eight slots are seen by a mask, and by lengths."""
    mask = attention(mask=True).inputs["mask"]
    assert (mask.shape, mask.sum(axis=-1).ravel().tolist()) == ((1, 1, 2, 8), [5, 5])
    assert attention(lengths=True).inputs["lengths"].tolist() == [5]
    past = shapes(attention(past=3))
    assert (past["k"], past["past_key"], past["present_key"]) == ((1, 2, 2, 16), (1, 2, 3, 16), (1, 2, 5, 16))
    assert shapes(attention(value_width=8))["y"] == (1, 4, 2, 8)
    assert list(attention(lengths=True).model.graph.node[0].input) == ["q", "k", "v", "", "", "", "lengths"]


def test_a_cache_that_is_written_into() -> None:
    assert shapes(tensor_scatter())["cache"] == (1, 2, 8, 16)
    assert shapes(tensor_scatter(rank=3))["cache"] == (1, 8, 16)
    assert shapes(tensor_scatter(symbolic=True))["cache"] == (1, 2, "slots", 16)
    assert [node.op_type for node in tensor_scatter(inner=True).model.graph.node] == ["Neg", "TensorScatter"]


@pytest.mark.parametrize(
    ("options", "shape", "blocks"),
    [
        ({}, (64, 32), (2, 32)),
        ({"axis": 1}, (64, 32), (64, 1)),
        ({"axis": 1, "transposed": True}, (32, 64), (32, 2)),
    ],
)
def test_blocks_of_a_weight(options: dict[str, Any], shape: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    found = weights(blocked_weight(**options))
    assert (found["stored"].shape, found["scales"].shape) == (shape, blocks)
    assert "zeros" not in found
    assert (
        weights(blocked_weight(**options, zero_point=3))["zeros"].astype(int).tolist() == np.full(blocks, 3).tolist()
    )


@pytest.mark.parametrize(("dtype", "lowest"), [(ml_dtypes.int4, -7), (ml_dtypes.uint4, 0), (np.int8, -7)])
def test_weights_are_of_either_sign_where_their_type_has_one(dtype: Any, lowest: int) -> None:
    stored = weights(blocked_weight(dtype=dtype))["stored"].astype(int)
    assert (stored.min(), stored.max()) == (lowest, 7)


def test_a_table_with_a_scale_a_token() -> None:
    probe = transposed_table(zero_point=True)
    assert {name: array.shape for name, array in weights(probe).items()} == {
        "stored": (32, 64),
        "scales": (32,),
        "zeros": (32,),
    }
    assert not weights(probe)["zeros"].any()
    assert "zeros" not in weights(transposed_table(zero_point=False))


def test_random_arrays_are_the_same_every_time_and_differ_by_seed() -> None:
    assert (random(2, 3) == random(2, 3)).all()
    assert (random(2, 3) != random(2, 3, seed=1)).all()
    assert random(2, 3, dtype=np.float16).dtype == np.float16


def test_a_weight_keeps_its_own_type_under_its_new_name() -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "old")
    probe = make_probe([], {}, {}, weights={"new": tensor, "other": np.ones((2, 2)).T})
    assert [item.name for item in probe.model.graph.initializer] == ["new", "other"]
    assert tensor.name == "old"
    assert probe.valid == {}
