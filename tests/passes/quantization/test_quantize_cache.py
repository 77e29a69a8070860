from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.graph.graph_query import dims
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.quantization.cache_numbers import LARGEST_INT8, SMALLEST_SHARE, Reach
from llmc.passes.quantization.quantize_cache import ATTENTION, KEY_HEADROOM, VALUE_HEADROOM, QuantizeCache, Reaches

from ..graphs import Array, apply, draw, draw_all, left_alone, node_of, open_session, parse

HEADS, KV_HEADS, DIM, POSITIONS, LAYERS = 4, 2, 16, 40, 2
CHANNELS = KV_HEADS * DIM
HEADROOM = {"k": KEY_HEADROOM, "v": VALUE_HEADROOM, "key": KEY_HEADROOM, "value": VALUE_HEADROOM}
CACHE = [f"{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")]
LAYER = """
    {q}, "present.{i}.key", "present.{i}.value" = llmc.CachedAttention<num_heads=4, kv_num_heads=2, scale=0.25>(
        {x}, k, v, "past_key_values.{i}.key", "past_key_values.{i}.value", attention_mask, cos, sin, position_ids,
        {norms}, sink)"""


def make(norms: str = ", ", *, sink: bool = True) -> ir.Model:
    """Two layers of lowered attention, one after the other, over the same keys and values."""
    pasts = ", ".join(f'float[batch, 2, past, 16] "past_key_values.{name}"' for name in CACHE)
    presents = ", ".join(f'float[batch, 2, total, 16] "present.{name}"' for name in CACHE)
    layer = LAYER if sink else LAYER.replace(", sink)", ")")
    calls = layer.format(q="h", x="q", i=0, norms=norms) + layer.format(q="y", x="h", i=1, norms=norms)
    text = f"""m (int64[batch, seq] input_ids, int64[batch, total] attention_mask, int64[batch, seq] position_ids,
        float[batch, seq, 64] q, float[batch, seq, 32] k, float[batch, seq, 32] v, {pasts}) => (y, {presents})
        <float[batch, seq, 64] h> {{ {calls} }}"""
    angles = draw(POSITIONS, DIM // 2, scale=2)
    weights: dict[str, Array] = {"cos": np.cos(angles), "sin": np.sin(angles)}
    weights |= {"sink": draw(HEADS, seed=3)} if sink else {}
    model = parse(text, weights | {"q_norm": draw(DIM, seed=4), "k_norm": draw(DIM, seed=5)})
    apply(LowerAttention(query_seqlens=False, qk_norm=True), model)
    for number, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "GroupQueryAttention"]


def tokens(length: int) -> dict[str, Array]:
    """Channels of very different magnitude, as keys have them."""
    made: dict[str, Array] = draw_all({"q": (1, length, 64), "k": (1, length, 32), "v": (1, length, 32)}, seed=7)
    spread = np.geomspace(0.2, 8, CHANNELS).astype(np.float32)
    return {"q": 0.4 * made["q"], "k": made["k"] * spread[::-1], "v": made["v"] * spread}


def generate(
    model: ir.Model, chunks: Sequence[int], dtype: Any, data: Mapping[str, Array] | None = None
) -> tuple[Array, dict[str, Array]]:
    """Outputs of all tokens, and the cache at last."""
    session, outputs, done = open_session(model), [], 0
    data = data or tokens(sum(chunks))
    past = {f"past_key_values.{name}": np.zeros((1, KV_HEADS, 0, DIM), dtype) for name in CACHE}
    for length in chunks:
        feeds = {name: array[:, done : done + length] for name, array in data.items()} | past
        done += length
        feeds |= {"attention_mask": np.ones((1, done), np.int64), "input_ids": np.zeros((1, length), np.int64)}
        # Not read: the kernel rotates by the lengths.
        feeds["position_ids"] = np.zeros((1, length), np.int64)
        y, *present = session.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        outputs.append(y)
    return np.concatenate(outputs, axis=1), past


def ranges(past: Mapping[str, Array]) -> tuple[Array, Array]:
    """As a reference records them: [layers, channels] of keys and of values."""
    found = {name: np.abs(array).max(axis=(0, 2)).reshape(-1) for name, array in past.items()}
    keys, values = ([found[f"past_key_values.{i}.{kind}"] for i in range(LAYERS)] for kind in ("key", "value"))
    return np.stack(keys), np.stack(values)


def symmetric(keys: Array, values: Array) -> Reaches:
    """As far down as up."""
    return tuple((Reach(-k, k, 0 * k, 0 * k), Reach(-v, v, 0 * v, 0 * v)) for k, v in zip(keys, values, strict=True))


def test_int8_matches() -> None:
    model = make()
    recorded = (np.full((LAYERS, CHANNELS), 3.0), np.arange(1, LAYERS * CHANNELS + 1).reshape(LAYERS, -1) / 10)
    graph_pass = QuantizeCache.from_ranges("int8", recorded)
    tally = apply(graph_pass, model)
    assert tally.fired == tally.expected == {"quantized_cache": LAYERS}
    cache = [
        value for value in (*model.graph.inputs, *model.graph.outputs) if (value.name or "")[-3:] in {"key", "lue"}
    ]
    assert len(cache) == 4 * LAYERS
    assert {value.dtype for value in cache} == {ir.DataType.INT8}
    for layer, node in enumerate(attentions(model)):
        assert (
            node.attributes.get_string("k_quant_type") == node.attributes.get_string("v_quant_type") == "PER_CHANNEL"
        )
        assert node.attributes.get_int("kv_cache_bit_width") == 8
        for kind, part in zip("kv", recorded, strict=True):
            scale = ATTENTION.get(node, f"{kind}_scale")
            assert scale is model.graph.initializers[f"cache.{layer}.{kind}_scale"]
            assert (scale.dtype, dims(scale)) == (ir.DataType.FLOAT, [KV_HEADS, 1, DIM])
            assert scale.const_value is not None
            wanted = np.maximum(part[layer], SMALLEST_SHARE * part[layer].max()) * HEADROOM[kind] / LARGEST_INT8
            np.testing.assert_allclose(scale.const_value.numpy().reshape(-1), wanted, rtol=1e-6)
        assert ATTENTION.get(node, "head_sink") is model.graph.initializers["sink"]


def test_int8_numbers_are_near_those_of_a_float_cache() -> None:
    chunks = [9, 1, 1, 5]
    exact, past = generate(make(), chunks, np.float32)
    keys, values = ranges(past)
    model = make()
    apply(QuantizeCache.from_reaches("int8", symmetric(keys, values)), model)
    quantized, cache = generate(model, chunks, np.int8)
    assert {array.dtype for array in cache.values()} == {np.dtype(np.int8)}
    assert np.abs(quantized - exact).max() < 0.02 * np.abs(exact).max()
    for layer in range(LAYERS):
        for kind, part in (("key", keys), ("value", values)):
            scale = (part[layer] * HEADROOM[kind] / LARGEST_INT8).reshape(KV_HEADS, 1, DIM)
            stored = cache[f"past_key_values.{layer}.{kind}"].astype(np.float32) * scale
            off = np.abs(stored - past[f"past_key_values.{layer}.{kind}"])
            # The second layer's keys are the first's: both read the same.
            assert (off <= scale * 0.51).all(), (layer, kind)


def far_from_zero(length: int) -> dict[str, Array]:
    """Values all of which have a large constant, and keys which have one after the rotation."""
    data = tokens(length)
    constants = 40 * draw(2, CHANNELS, seed=9)
    angles = np.tile(draw(POSITIONS, DIM // 2, scale=2)[:length], 2 * KV_HEADS)
    half = np.roll(constants[0].reshape(KV_HEADS, DIM), DIM // 2, axis=-1) * np.repeat([1, -1], DIM // 2)
    data["k"] = data["k"] + np.cos(angles) * constants[0] + np.sin(angles) * half.reshape(-1)
    data["v"] = data["v"] + constants[1]
    return {name: array.astype(np.float32) for name, array in data.items()}


def reaches_of(past: Mapping[str, Array]) -> Reaches:
    """What a text's walk sees."""
    made: list[tuple[Reach, Reach]] = []
    for layer in range(LAYERS):
        parts = [past[f"past_key_values.{layer}.{kind}"] for kind in ("key", "value")]
        seen = [
            Reach(*(part.reshape(-1) for part in (x.min((0, 2)), x.max((0, 2)), x.mean((0, 2)), x[0, :, 0])))
            for x in parts
        ]
        made.append((seen[0], seen[1]))
    return tuple(made)


def test_numbers_far_from_zero_lie_about_a_centre() -> None:
    """Beside the same without; and the first slot, which lies on the grid, loses nothing."""
    data, chunks = far_from_zero(14), [9, 5]
    exact, past = generate(make(sink=False), chunks, np.float32, data)
    reaches, errors = reaches_of(past), []
    for numbers in (QuantizeCache.from_reaches("int8", reaches), QuantizeCache.from_ranges("int8", ranges(past))):
        model = make(sink=False)
        assert apply(numbers, model).fired == {"quantized_cache": LAYERS}
        quantized, cache = generate(model, chunks, np.int8, data)
        errors.append(np.abs(quantized - exact)[:, chunks[0] :].max())
        for name, array in cache.items() if numbers.centred else ():
            layer, kind = name.removeprefix("past_key_values.").split(".")
            scale = scales_of(model, int(layer), kind[0]).reshape(KV_HEADS, 1, DIM)
            centred = numbers.centred[int(layer)]
            assert centred is not None
            centre = np.asarray(centred[kind == "value"].centres).reshape(KV_HEADS, 1, DIM)
            off = np.abs(array.astype(np.float32) * scale + centre - past[name])
            assert (off <= scale * 0.52).all()
            assert (off[:, :, :1] <= scale * 0.02).all()
    assert errors[1] > 4 * errors[0]


def scales_of(model: ir.Model, layer: int, kind: str) -> Array:
    tensor = model.graph.initializers[f"cache.{layer}.{kind}_scale"].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy()).reshape(-1)


def test_fp8_about_a_centre_keeps_one_scale() -> None:
    _, past = generate(make(sink=False), [9], np.float32, far_from_zero(9))
    numbers, model = QuantizeCache.from_reaches("fp8", reaches_of(past)), make(sink=False)
    apply(numbers, model)
    for layer, centred in enumerate(numbers.centred):
        assert centred is not None
        for kind, part, plain in zip("kv", centred, numbers.scales[layer], strict=True):
            assert scales_of(model, layer, kind).tolist() == list(part.scales)
            assert part.scales < plain, "numbers are smaller"
    assert [node.op_type for node in model.graph].count("MatMul") == LAYERS


def test_attention_that_sees_a_centre_has_none() -> None:
    """A sink's score stays where it is, so ranges are those about zero."""
    _, past = generate(make(), [9], np.float32, far_from_zero(9))
    reaches = reaches_of(past)
    model = make()
    apply(QuantizeCache.from_reaches("int8", reaches), model)
    assert {node.op_type for node in model.graph} == {node.op_type for node in make().graph}
    for layer, seen in enumerate(reaches):
        assert seen is not None
        for name, part, room in zip("kv", seen, (KEY_HEADROOM, VALUE_HEADROOM), strict=True):
            wanted = np.maximum(part.magnitudes, SMALLEST_SHARE * part.magnitudes.max()) * room / LARGEST_INT8
            np.testing.assert_allclose(scales_of(model, layer, name), wanted, rtol=1e-5)


def test_values_alone_lie_about_a_centre_behind_norms() -> None:
    _, past = generate(make(sink=False), [9], np.float32, far_from_zero(9))
    reaches = reaches_of(past)
    model = make(norms="q_norm, k_norm", sink=False)
    numbers = QuantizeCache.from_reaches("int8", reaches)
    apply(numbers, model)
    for layer in range(LAYERS):
        centred = numbers.centred[layer]
        assert centred is not None
        scales = [scales_of(model, layer, name) for name in "kv"]
        np.testing.assert_allclose(scales[0], numbers.scales[layer][0], rtol=1e-6)
        np.testing.assert_allclose(scales[1], centred[1].scales, rtol=1e-6)
        assert np.abs(np.asarray(numbers.scales[layer][1]) / scales[1] - 1).max() > 1
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMul") == 0
    assert kinds.count("Add") == 2 * LAYERS


def test_a_range_that_is_exceeded_is_cut_off() -> None:
    _, past = generate(make(), [9], np.float32)
    keys, values = ranges(past)
    model = make()
    apply(QuantizeCache.from_ranges("int8", (keys / 2, values / 2)), model)
    _, cache = generate(model, [9], np.int8)
    largest = max(int(np.abs(array.astype(np.int32)).max()) for array in cache.values())
    assert largest in {127, 128}


def test_channels_that_are_turned_into_each_other_share_the_larger_range() -> None:
    """At another position one holds what the other holds here; not where ranges hold everywhere, and never values."""
    recorded = np.linspace(1, 2, LAYERS * CHANNELS).reshape(LAYERS, CHANNELS)
    for everywhere in (False, True):
        model = make()
        from_text = QuantizeCache.from_reaches("int8", symmetric(recorded, recorded))
        apply(from_text if everywhere else QuantizeCache.from_ranges("int8", (recorded, recorded)), model)
        for layer in range(LAYERS):
            keys, values = (
                np.asarray(model.graph.initializers[f"cache.{layer}.{kind}_scale"].const_value).reshape(KV_HEADS, DIM)
                for kind in "kv"
            )
            own = recorded[layer].reshape(KV_HEADS, DIM)
            larger = own if everywhere else np.tile(own[:, DIM // 2 :], 2)
            np.testing.assert_allclose(keys, larger * KEY_HEADROOM / LARGEST_INT8, rtol=1e-6)
            np.testing.assert_allclose(values, own * VALUE_HEADROOM / LARGEST_INT8, rtol=1e-6)


def test_fp8_scales_are_powers_of_two_that_leave_room() -> None:
    """Largest magnitudes come to between an eighth and a quarter of what float8 holds."""
    reached = [100.0, 0.5]
    keys, values = (np.asarray(reached)[:, None] * np.ones(CHANNELS), np.zeros((LAYERS, CHANNELS)))
    keys[:, 0] = 0.001
    scales = QuantizeCache.from_ranges("fp8", (keys, values)).scales
    assert scales == (((1.0,), (1.0,)), ((2.0**-7,), (1.0,)))
    (louder,) = QuantizeCache.from_ranges("fp8", (keys[:1] * 1.2, values[:1])).scales
    assert louder[0] == (2.0,)


def test_a_layer_with_empty_ranges_has_none() -> None:
    nothing, recorded = np.zeros(0, np.float32), np.ones(CHANNELS)
    for kind, dtype in (("int8", ir.DataType.INT8), ("fp8", ir.DataType.FLOAT8E4M3FN)):
        model = make()
        ranges = ([nothing, recorded], [nothing, recorded])
        tally = apply(QuantizeCache.from_ranges(kind, ranges), model)  # type: ignore[arg-type]
        assert [r.reason for r in tally.rejections] == ["ranges of 1 layers were recorded, and it is layer 0"]
        types = [value.dtype for value in model.graph.inputs if (value.name or "").startswith("past")]
        assert types == [ir.DataType.FLOAT] * 2 + [dtype] * 2


@pytest.mark.parametrize("recorded", [None, (np.full((LAYERS, CHANNELS), 90.0), np.full((LAYERS, CHANNELS), 60.0))])
def test_fp8_has_one_scale_for_a_layer(recorded: tuple[Array, Array] | None) -> None:
    """1 where nothing is known, or where that leaves room."""
    model = make(norms="q_norm, k_norm")
    tally = apply(QuantizeCache.from_ranges("fp8", recorded), model)
    assert tally.fired == {"quantized_cache": LAYERS}
    for layer, node in enumerate(attentions(model)):
        assert (
            node.attributes.get_string("k_quant_type") == node.attributes.get_string("v_quant_type") == "PER_TENSOR"
        )
        names = [value.name if value is not None else None for value in node.inputs[10:16]]
        scales = [f"cache.{layer}.k_scale", f"cache.{layer}.v_scale"]
        assert names == [None, "sink", *scales, "q_norm", "k_norm"], "what stood behind the scales stays there"
        for name in scales:
            tensor = model.graph.initializers[name].const_value
            assert tensor is not None
            assert tensor.numpy().tolist() == [1.0]
        for value in (*node.inputs[3:5], *node.outputs[1:3]):
            assert value is not None
            assert value.dtype == ir.DataType.FLOAT8E4M3FN


def test_a_quiet_channel_gets_a_share_of_the_loudest() -> None:
    recorded = np.zeros((1, CHANNELS), np.float32)
    recorded[0, 5] = 10
    keys, _ = QuantizeCache.from_ranges("int8", (recorded, recorded)).scales[0]
    assert keys[5] == pytest.approx(10 * KEY_HEADROOM / LARGEST_INT8)
    np.testing.assert_allclose(keys[:5] + keys[6:], SMALLEST_SHARE * 10 * KEY_HEADROOM / LARGEST_INT8, rtol=1e-6)
    silent, _ = QuantizeCache.from_ranges("int8", (0 * recorded, recorded)).scales[0]
    assert min(silent) == max(silent) == pytest.approx(1e-6 * KEY_HEADROOM / LARGEST_INT8)


def test_scales_by_hand() -> None:
    """More than was seen, in 127 steps; 2 % of the layer's loudest channel where one was quieter."""
    keys, values = np.asarray([[12.7, 0.0, 6.35], [127.0, 2.0, 5.08]]), np.full((2, 3), 2.54)
    made = QuantizeCache.from_ranges("int8", (keys, values)).scales
    np.testing.assert_allclose(made[0][0], [0.11, 0.0022, 0.055], rtol=1e-6)
    np.testing.assert_allclose(made[1][0], [1.1, 0.022, 0.044], rtol=1e-6)
    np.testing.assert_allclose([made[0][1], made[1][1]], 0.025, rtol=1e-6)


def test_scales_are_no_part_of_the_record() -> None:
    recorded = np.ones((LAYERS, CHANNELS))
    graph_pass = QuantizeCache.from_ranges("int8", (recorded, recorded))
    assert graph_pass.configuration() == {"kind": "int8"}
    assert QuantizeCache("int8").scales == (), "they belong to the one that was made with them"


def test_int8_needs_ranges() -> None:
    model = make()
    reason = "an int8 cache needs scales, and no ranges of keys and values were recorded"
    assert left_alone(QuantizeCache.from_ranges("int8", None), model) == [reason] * LAYERS


@pytest.mark.parametrize(
    ("layers", "channels", "reasons"),
    [
        (LAYERS, 24, ["it has 2 x 16 channels and 24 scales"] * LAYERS),
        (0, CHANNELS, ["an int8 cache needs scales, and no ranges of keys and values were recorded"] * LAYERS),
    ],
)
def test_ranges_of_another_cache(layers: int, channels: int, reasons: list[str]) -> None:
    recorded = np.ones((layers, channels))
    graph_pass = QuantizeCache.from_ranges("int8", (recorded, recorded))
    assert left_alone(graph_pass, make()) == reasons


def test_a_layer_without_ranges_keeps_its_type() -> None:
    recorded = np.ones((1, CHANNELS))
    model = make()
    tally = apply(QuantizeCache.from_ranges("int8", (recorded, recorded)), model)
    assert tally.fired == {"quantized_cache": 1}
    assert [r.reason for r in tally.rejections] == ["ranges of 1 layers were recorded, and it is layer 1"]
    types = [value.dtype for value in model.graph.inputs if (value.name or "").startswith("past")]
    assert types == [ir.DataType.INT8] * 2 + [ir.DataType.FLOAT] * 2


def test_a_layer_is_known_by_the_number_in_its_caches_name() -> None:
    """Not by its place among those that have a cache: layers with a state of their own lie between."""
    model = make()
    for value in model.graph.inputs:
        value.name = (value.name or "").replace("values.1.", "values.11.").replace("values.0.", "values.3.")
    recorded = np.arange(1.0, 13.0)[:, None].repeat(CHANNELS, axis=1)
    apply(QuantizeCache.from_ranges("int8", (recorded, recorded / 2)), model)
    names = [f"cache.{layer}.{kind}_scale" for layer in (3, 11) for kind in "kv"]
    tensors = [model.graph.initializers[name].const_value for name in names]
    scales = [float(tensor.numpy().max()) for tensor in tensors if tensor is not None]
    np.testing.assert_allclose(scales, np.asarray([4 * 1.1, 2 * 1.25, 12 * 1.1, 6 * 1.25]) / 127, rtol=1e-6)


def test_a_bias_is_a_near_miss() -> None:
    model = make()
    bias = ir.Value(name="bias", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 1, "seq", "total"]))
    model.graph.inputs.append(bias)
    attentions(model)[0].replace_input_with(10, bias)
    tally = apply(QuantizeCache("fp8"), model)
    assert [r.reason for r in tally.rejections] == ["it has a bias, with which the kernel takes no quantized cache"]
    assert tally.fired == {"quantized_cache": 1}


def test_a_cache_that_is_no_input_is_a_near_miss() -> None:
    model = make()
    for node in attentions(model):
        inner = ir.node("Identity", [node.inputs[3]], name=f"{node.name}/copy")
        model.graph.insert_before(node, inner)
        node.replace_input_with(3, inner.outputs[0])
    assert left_alone(QuantizeCache("fp8"), model) == ["its cache is no input of the graph"] * LAYERS


def test_attention_without_a_cache_is_no_site() -> None:
    text = """m (float[b, s, 64] q, float[b, s, 32] k, float[b, s, 32] v) => (y) {
        y = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v)
    }"""
    model = parse(text)
    assert left_alone(QuantizeCache("fp8"), model) == []
    assert node_of(model, "GroupQueryAttention").attributes.get_string("k_quant_type", "") == ""
