"""Small graphs for sessions, whose logits say exactly what lies in the cache; and sessions that tell what they bind.

Tokens are digits, so states and keys hold integers that float32 represents exactly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from llmc.compiler.base.contract import Contract
from llmc.runtimes.onnxruntime.session import OnnxRuntimeSession
from llmc.runtimes.session.engine import EngineInfo, Int64Array

WIDTH = 12
"""Width of the logits: the last slots of a row, or the digits of its state over again."""
BASE = 4
HEADER = '<ir_version: 10, opset_import: ["" : 23]>\n'
INPUTS = "int64[batch, sequence] input_ids, int64[batch, total] attention_mask"
VALID = """
    seq1 = Shape<start=1, end=2>(input_ids) minus = Neg(seq1)
    valid = Slice(attention_mask, minus, far, axis1)
    count = ReduceSum<keepdims=1>(valid, axis1)"""
STATES = f"""m ({INPUTS}, float[batch, 1] "past_key_values.0.recurrent_state",
    int64[batch, 2] "past_key_values.0.conv_state") => (float[batch, sequence, {WIDTH}] logits,
    float[batch, 1] "present.0.recurrent_state", int64[batch, 2] "present.0.conv_state") {{
    {VALID}
    before = CumSum(valid, one) after = Sub(count, before) place = Pow(base, after)
    digits = Mul(input_ids, valid) worth = Mul(digits, place) added = ReduceSum<keepdims=1>(worth, axis1)
    shift = Pow(base, count) shift_f = Cast<to=1>(shift) added_f = Cast<to=1>(added)
    moved = Mul("past_key_values.0.recurrent_state", shift_f)
    "present.0.recurrent_state" = Add(moved, added_f)
    all = Concat<axis=1>("past_key_values.0.conv_state", input_ids)
    last = Add(count, pair) "present.0.conv_state" = GatherElements<axis=1>(all, last)
    conv = Cast<to=1>("present.0.conv_state") ten = Pad(conv, pads)
    both = Add(ten, zeros) state = Concat<axis=1>("present.0.recurrent_state", both)
    row = Unsqueeze(state, axis1) batch1 = Shape<start=0, end=1>(input_ids)
    shape = Concat<axis=0>(batch1, seq1, width1) logits = Expand(row, shape) }}"""
"""Logits: the row's tokens as a number in base 4, the last two tokens, zeros."""
GROWING = f"""m ({INPUTS}, int64[batch, sequence] position_ids, float[batch, 2, past, 1] "past_key_values.0.key",
    float[batch, 2, past, 1] "past_key_values.0.value", float[batch, past, 3] "past_key_values.0.indexer_key")
    => (float[batch, sequence, {WIDTH}] logits, float[batch, 2, total, 1] "present.0.key",
    float[batch, 2, total, 1] "present.0.value", float[batch, total, 3] "present.0.indexer_key") {{
    seq1 = Shape<start=1, end=2>(input_ids) batch1 = Shape<start=0, end=1>(input_ids)
    ids = Cast<to=1>(input_ids) positions = Cast<to=1>(position_ids)
    ids3 = Unsqueeze(ids, axis2) positions3 = Unsqueeze(positions, axis2)
    both = Unsqueeze(ids3, axis1) key = Concat<axis=1>(both, both)
    places = Unsqueeze(positions3, axis1) value = Concat<axis=1>(places, places)
    index = Concat<axis=2>(ids3, ids3, positions3)
    "present.0.key" = Concat<axis=2>("past_key_values.0.key", key)
    "present.0.value" = Concat<axis=2>("past_key_values.0.value", value)
    "present.0.indexer_key" = Concat<axis=1>("past_key_values.0.indexer_key", index)
    head = Gather<axis=1>("present.0.key", one) head2 = Squeeze(head, axis2)
    place = Gather<axis=1>("present.0.value", one) place2 = Squeeze(place, axis2)
    index_id = Gather<axis=2>("present.0.indexer_key", one) index_place = Gather<axis=2>("present.0.indexer_key", two)
    a = Mul(head2, weight_a) b = Mul(place2, weight_b) c = Mul(index_id, weight_c)
    ab = Add(a, b) cd = Add(c, index_place) abcd = Add(ab, cd)
    mask = Cast<to=1>(attention_mask) held = Mul(abcd, mask)
    padded = Pad(held, front) end = Slice(padded, minus_width, far, axis1)
    row = Unsqueeze(end, axis1) shape = Concat<axis=0>(batch1, seq1, width1) logits = Expand(row, shape) }}"""
"""Logits: for each of the last slots 1000 x (the key's token) + 100 x position + 10 x (the indexer's) + position."""
SHARED = f"""m ({INPUTS}, float[batch, 2, slots, 1] "past_key_values.0.key")
    => (float[batch, sequence, {WIDTH}] logits, float[batch, 2, slots, 1] "present.0.key") {{
    {VALID}
    held = ReduceSum<keepdims=1>(attention_mask, axis1) begin = Sub(held, count)
    size = Shape(input_ids) ones = ConstantOfShape<value = int64[1] {{1}}>(size)
    places1 = CumSum(ones, one) within = Sub(places1, one) slot = Add(begin, within)
    slot4 = Unsqueeze(slot, axes13) slots4 = Concat<axis=1>(slot4, slot4)
    ids = Cast<to=1>(input_ids) key = Unsqueeze(ids, axes13) keys = Concat<axis=1>(key, key)
    "present.0.key" = ScatterElements<axis=2>("past_key_values.0.key", slots4, keys)
    head = Gather<axis=1>("present.0.key", one) head2 = Squeeze(head, axis2)
    longer = Pad(head2, behind) first = Slice(longer, zero1, width1, axis1)
    seen = Less(columns, held) visible = Where(seen, first, hidden)
    row = Unsqueeze(visible, axis1) batch1 = Shape<start=0, end=1>(input_ids)
    shape = Concat<axis=0>(batch1, seq1, width1) logits = Expand(row, shape) }}"""
"""Logits: the tokens in the row's first slots, as many as it holds, then -1. Padding is written, too.

The mask's sum and that of its last columns say what a row holds and what is new, as GroupQueryAttention reads them.
"""
SLOPES = """m (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
    float[batch, 1, past, 1] "past_key_values.0.key") => (float[batch, sequence, 4] logits,
    float[batch, 1, total, 1] "present.0.key") {
    ids = Cast<to=1>(input_ids) key = Unsqueeze(ids, axes13)
    "present.0.key" = Concat<axis=2>("past_key_values.0.key", key)
    less = Sub(ids, one_f) less3 = Unsqueeze(less, axis2) logits = Mul(less3, slopes) }"""
"""Logits: 0, 1, 2 and 3 x (token - 1), of which the last or the first is the largest."""
NUMBERS: dict[str, Any] = {
    "one": 1,
    "two": 2,
    "base": BASE,
    "axis1": [1],
    "axis2": [2],
    "far": [2**31 - 1],
    "pair": [[0, 1]],
    "pads": [0, 0, 0, WIDTH - 3],
    "front": [0, WIDTH, 0, 0],
    "minus_width": [-WIDTH],
    "width1": [WIDTH],
    "zero1": [0],
    "axes13": [1, 3],
    "behind": [0, 0, 0, WIDTH],
    "columns": [list(range(WIDTH))],
    "hidden": -1.0,
    "one_f": 1.0,
    "slopes": [0.0, 1.0, 2.0, 3.0],
    "weight_a": 1000.0,
    "weight_b": 100.0,
    "weight_c": 10.0,
    "zeros": 0.0,
}


def load(text: str, *, half: bool = False) -> ort.InferenceSession:
    """ONNX Runtime's session of a graph; ``half`` makes its floats float16."""
    if half:
        text = text.replace("float[", "float16[").replace("Cast<to=1>", "Cast<to=10>")
    model = onnx.parser.parse_model(HEADER + text)
    for name, number in NUMBERS.items():
        array = np.asarray(number)
        if array.dtype == np.float64:
            array = array.astype(np.float16 if half else np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def open_session(
    graph: str | Any, *, fused: bool = False, contract: Contract | None = None, **fields: Any
) -> OnnxRuntimeSession:
    """A session over a graph, by its text or loaded; keywords replace fields of its EngineInfo."""
    info = replace(EngineInfo("test", WIDTH, 1, 64, "all", "grow", 4, 4, "fp32", 1), **fields)
    called = contract or Contract(rows="slot0" if fused else "mask", cache=info.cache, logits=info.logits)
    return OnnxRuntimeSession(load(graph) if isinstance(graph, str) else graph, info, called)


class Watched:
    """An inference session that remembers at which addresses each of its inputs and outputs was bound."""

    def __init__(self, inference: ort.InferenceSession) -> None:
        self._inference = inference
        self.bound: dict[str, list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inference, name)

    def io_binding(self) -> Any:
        return _WatchedBinding(self._inference.io_binding(), self.bound)

    def run_with_iobinding(self, binding: Any) -> None:
        self._inference.run_with_iobinding(binding.inner)


class _WatchedBinding:
    def __init__(self, inner: Any, bound: dict[str, list[int]]) -> None:
        self.inner, self._bound = inner, bound

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self._bound.setdefault(name, []).append(value.data_ptr())
        self.inner.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self._bound.setdefault(name, []).append(value.data_ptr())
        self.inner.bind_ortvalue_output(name, value)


def chunk(rows: list[list[int]]) -> tuple[Int64Array, Int64Array]:
    """Right-padded ``input_ids`` and lengths; what stands in the padding is a token, too."""
    width = max(1, *map(len, rows))
    ids = np.full((len(rows), width), BASE - 1, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids, np.asarray([len(row) for row in rows], np.int64)
