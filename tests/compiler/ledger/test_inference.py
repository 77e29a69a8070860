"""Calls of one row: what goes in, what is carried to the next."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import EngineError
from llmc.compiler.ledger.inference import Array, call_feeds, held_after, keeps, load_graph, run_graph

DECODER = """<ir_version: 10, opset_import: ["" : 23]>
tiny (int64[batch, sequence] input_ids, int64[batch, total] attention_mask, int64[batch, sequence] position_ids,
      float[batch, 2, past, 4] "past_key_values.0.key", float[batch, 3] "past_key_values.0.conv_state" EXTRA)
 => (float[batch, sequence] logits, float[batch, 2, total, 4] "present.0.key", float[batch, 3] "present.0.conv_state")
{ logits = Cast <to = 1> (input_ids)
  one = Constant <value = float[1, 2, 2, 4] {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}> ()
  "present.0.key" = Concat <axis = 2> ("past_key_values.0.key", one)
  two = Constant <value = float {2}> ()
  "present.0.conv_state" = Add("past_key_values.0.conv_state", two) }"""
TOKENS = np.asarray([5, 6])
PAST: dict[str, Array] = {
    "past_key_values.0.key": np.full((1, 2, 3, 4), 7, np.float32),
    "past_key_values.0.conv_state": np.full((1, 3), 8, np.float32),
}


def decoder(extra: str = ""):
    return load_graph(ir.from_onnx_text(DECODER.replace("EXTRA", extra)))


def test_a_first_call_has_an_empty_cache():
    feeds = call_feeds(decoder(), Contract(), TOKENS, {})
    assert feeds["input_ids"].tolist() == [[5, 6]]
    assert feeds["attention_mask"].tolist() == [[1, 1]]
    assert feeds["position_ids"].tolist() == [[0, 1]]
    assert feeds["past_key_values.0.key"].shape == (1, 2, 0, 4)
    assert feeds["past_key_values.0.conv_state"].tolist() == [[0, 0, 0]]


def test_a_later_call_goes_on_from_what_is_held():
    feeds = call_feeds(decoder(), Contract(), TOKENS, PAST)
    assert feeds["attention_mask"].tolist() == [[1] * 5]
    assert feeds["position_ids"].tolist() == [[3, 4]]
    assert feeds["past_key_values.0.key"].shape == (1, 2, 3, 4)
    assert feeds["past_key_values.0.conv_state"].tolist() == [[8, 8, 8]]


def test_a_fixed_buffer_has_room_for_the_new():
    key = call_feeds(decoder(), Contract(cache="shared"), TOKENS, PAST)["past_key_values.0.key"]
    assert key[0, 0, :, 0].tolist() == [7, 7, 7, 0, 0]


def test_an_unknown_input_is_named():
    with pytest.raises(EngineError, match=r"nothing says what seqlens_k is in a call of one row"):
        call_feeds(decoder(", int32[batch] seqlens_k"), Contract(), TOKENS, {})


def test_what_a_call_leaves_is_the_next_ones_past():
    inference = decoder()
    held = held_after(inference, {}, 2, run_graph(inference, call_feeds(inference, Contract(), TOKENS, {})))
    assert held["past_key_values.0.key"].shape == (1, 2, 2, 4)
    assert held["past_key_values.0.conv_state"].tolist() == [[2, 2, 2]]
    later = held_after(inference, held, 2, run_graph(inference, call_feeds(inference, Contract(), TOKENS, held)))
    assert later["past_key_values.0.key"].shape == (1, 2, 4, 4)
    assert later["past_key_values.0.conv_state"].tolist() == [[4, 4, 4]]


def test_slots_that_nothing_was_written_to_are_not_carried():
    """A buffer may be longer than what the row holds."""
    values = {"present.0.key": np.ones((1, 2, 9, 4), np.float32), "present.0.conv_state": np.ones((1, 3), np.float32)}
    assert held_after(decoder(), PAST, 2, values)["past_key_values.0.key"].shape == (1, 2, 5, 4)


def test_a_cache_of_another_kind_of_number_keeps_nothing():
    assert keeps(decoder(), {})
    assert keeps(decoder(), PAST)
    assert not keeps(decoder(), {"past_key_values.0.key": np.ones((1, 2, 3, 4), np.int8)})


def test_a_refused_graph_and_a_failed_kernel_are_engine_errors():
    with pytest.raises(EngineError, match=r"CPU provider refuses the graph: .*NoSuch"):
        load_graph(
            ir.from_onnx_text(
                '<ir_version: 10, opset_import: ["" : 23]> g (float[1] x) => (float[1] y) { y = NoSuch(x) }'
            )
        )
    inference = decoder()
    feeds = call_feeds(inference, Contract(), TOKENS, {})
    feeds["past_key_values.0.key"] = np.zeros((2, 2, 1, 4), np.float32)
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        run_graph(inference, feeds)
