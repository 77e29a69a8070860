"""How far keys and values reach: by layer and channel, over all windows, at every position of the context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration.cache_ranges import cache_ranges
from llmc.compiler.graph.lazy_weight import Array
from llmc.passes.quantization.cache_numbers import Reach
from llmc.passes.quantization.quantize_cache import Reaches

VOCABULARY, WIDTH, LENGTH, WINDOWS, CONTEXT = 50, 32, 12, 3, 400
LAYER = """
    q{i} = MatMul({x}, "q{i}.weight")
    k{i} = MatMul({x}, "k{i}.weight")
    v{i} = MatMul({x}, "v{i}.weight")
    y{i}, "present.{i}.key", "present.{i}.value" = com.microsoft.GroupQueryAttention<num_heads=2, kv_num_heads=1,
        do_rotary=1>(q{i}, k{i}, v{i}, "past_key_values.{i}.key", "past_key_values.{i}.value", ends, total{tables})
    x{i} = MatMul(y{i}, "o{i}.weight")"""


def make(layers: Sequence[int], *, rotates: bool = True) -> ir.Model:
    caches = [f"{layer}.{kind}" for layer in layers for kind in ("key", "value")]
    pasts = ", ".join(f'float[batch, 1, past, 16] "past_key_values.{name}"' for name in caches)
    presents = ", ".join(f'float[batch, 1, total, 16] "present.{name}"' for name in caches)
    inputs = ["hidden", *(f"x{layer}" for layer in layers)]
    tables = ", cos, sin" if rotates else ""
    body = "".join(LAYER.format(x=x, i=i, tables=tables) for x, i in zip(inputs[:-1], layers, strict=True))
    weights = {"embed.weight": (VOCABULARY, WIDTH), "head.weight": (WIDTH, VOCABULARY)}
    for layer in layers:
        weights |= {f"{name}{layer}.weight": (WIDTH, 16 if name in "kv" else WIDTH) for name in "qkvo"}
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in weights.items()}
    angles = np.outer(np.arange(CONTEXT), 100.0 ** -(np.arange(8) / 8))
    arrays |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    arrays |= {"one": np.asarray([1], np.int64), "at": np.asarray(1, np.int64)}
    names = ", ".join(
        f'{"int64" if a.dtype == np.int64 else "float"}{list(a.shape) or ""} "{n}" = {{0}}' for n, a in arrays.items()
    )
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    m (int64[batch, sequence] input_ids, int64[batch, total] attention_mask, {pasts})
     => (float[batch, sequence, {VOCABULARY}] logits, {presents}) <{names}> {{
        hidden = Gather("embed.weight", input_ids)
        lengths = ReduceSum<keepdims=0>(attention_mask, one)
        before = Sub(lengths, one)
        ends = Cast<to=6>(before)
        shape = Shape(attention_mask)
        size = Gather(shape, at)
        total = Cast<to=6>(size)
        {body if rotates else body.replace("do_rotary=1", "do_rotary=0")}
        logits = MatMul({inputs[-1]}, "head.weight")
    }}"""
    model = ir.from_onnx_text(text)
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
        model.graph.initializers[name].shape = ir.Shape(array.shape)
    for node in model.graph:
        for output in node.outputs[1:3]:
            output.shape = ir.Shape(["batch", 1, "total", 16])
    return model


def tokens() -> Array:
    return np.random.default_rng(1).integers(0, VOCABULARY, (WINDOWS, LENGTH))


def weight(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float64)


def first_layer(model: ir.Model, kind: str) -> Array:
    """Keys or values of the first layer before any rotation, [tokens, 16]."""
    return weight(model, "embed.weight")[tokens().reshape(-1)] @ weight(model, f"{kind}0.weight")


def both(ranges: Reaches | None) -> list[tuple[Reach, Reach]]:
    """Of the layers that have any."""
    assert ranges is not None
    return [layer for layer in ranges if layer is not None]


def bytes_of(ranges: Reaches | None) -> list[bytes]:
    reaches = [reach for layer in both(ranges) for reach in layer]
    return [part.tobytes() for reach in reaches for part in (reach.low, reach.high, reach.first)]


def test_values_reach_as_far_as_in_the_loudest_window() -> None:
    model = make([0, 1])
    ranges = cache_ranges(model, tokens(), 2, NO_PROGRESS)
    assert ranges is not None
    (keys, values), (_, others) = both(ranges)
    parts = [part for reach in (keys, values, others) for part in (reach.low, reach.high, reach.first)]
    assert {(part.shape, part.dtype) for part in parts} == {((16,), np.dtype(np.float32))}
    seen = first_layer(model, "v")
    np.testing.assert_allclose(values.low, seen.min(0), rtol=1e-4)
    np.testing.assert_allclose(values.high, seen.max(0), rtol=1e-4)
    np.testing.assert_allclose(values.magnitudes, np.abs(seen).max(0), rtol=1e-4)
    assert np.abs(others.high - values.high).max() > 0.1


def test_means_and_first_slots() -> None:
    """First slots of all windows; the mean of a key is that of the whole context, and fast pairs have none."""
    model = make([0])
    ((keys, values),) = both(cache_ranges(model, tokens(), 2, NO_PROGRESS))
    for kind, reach in (("k", keys), ("v", values)):
        first = first_layer(model, kind).reshape(WINDOWS, LENGTH, 16)[:, 0]
        np.testing.assert_allclose(reach.first, first.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values.mean, first_layer(model, "v").mean(0), rtol=1e-4, atol=1e-6)
    assert not keys.mean.any(), "in 400 positions the slowest pair turns seven radians"


def test_the_mean_of_a_key_that_is_turned_little() -> None:
    """Over the whole context, which is other than where the windows stand."""
    model = make([0])
    angles = np.outer(np.arange(CONTEXT), [0.9 / CONTEXT, 1.1 / CONTEXT, *[0.5] * 6]).astype(np.float32)
    for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
        model.graph.initializers[name].const_value = ir.tensor(table, name=name)
    ((keys, _),) = both(cache_ranges(model, tokens(), 2, NO_PROGRESS))
    assert np.flatnonzero(keys.mean).tolist() == [0, 8]
    one, other = first_layer(model, "k").reshape(WINDOWS, LENGTH, 16)[:, 1:].mean((0, 1))[[0, 8]]
    cosine, sine = np.cos(angles[:, 0]).mean(), np.sin(angles[:, 0]).mean()
    np.testing.assert_allclose(
        keys.mean[[0, 8]], [one * cosine - other * sine, other * cosine + one * sine], atol=0.02
    )


def test_the_first_slots_key_is_seen_where_it_stands() -> None:
    """It is in no other slot, so a loud one is not turned."""
    model = make([0])
    table = np.array(weight(model, "embed.weight"), np.float32)
    table[0] *= 50
    model.graph.initializers["embed.weight"].const_value = ir.tensor(table, name="embed.weight")
    windows = np.ones((WINDOWS, LENGTH), np.int64)
    windows[:, 0] = 0
    ((keys, _),) = both(cache_ranges(model, windows, 1, NO_PROGRESS))
    loud, quiet = (table[row].astype(np.float64) @ weight(model, "k0.weight") for row in (0, 1))
    length = np.tile(np.hypot(quiet[:8], quiet[8:]), 2)
    assert (keys.magnitudes <= np.maximum(np.abs(loud), length) * 1.001).all()
    assert (keys.magnitudes >= np.abs(loud) * 0.999).all()
    assert (np.tile(np.hypot(loud[:8], loud[8:]), 2) > 2 * keys.magnitudes).any()


def test_keys_reach_as_far_as_they_will_anywhere_in_the_context() -> None:
    """Slow pairs included, which a window of a few tokens does not see turn."""
    model = make([0])
    ranges = cache_ranges(model, tokens(), 1, NO_PROGRESS)
    assert ranges is not None
    keys = both(ranges)[0][0].magnitudes
    before = first_layer(model, "k")
    cosines, sines = weight(model, "cos"), weight(model, "sin")
    low, high = before[:, None, :8], before[:, None, 8:]
    turned = np.abs(np.concatenate([low * cosines - high * sines, high * cosines + low * sines], -1))
    turned[::LENGTH] = np.abs(before[::LENGTH, None])
    anywhere, near = turned.max((0, 1)), turned[:, :LENGTH].max((0, 1))
    assert (near < 0.8 * anywhere).any()
    assert (keys <= anywhere * 1.0001).all()
    assert (keys >= 0.95 * anywhere).all()


def test_without_tables_a_channel_reaches_as_far_as_its_pair_is_long() -> None:
    model = make([0], rotates=False)
    ranges = cache_ranges(model, tokens(), 1, NO_PROGRESS)
    assert ranges is not None
    keys = both(ranges)[0][0].magnitudes
    before = first_layer(model, "k")
    lengths = np.tile(np.hypot(before[:, :8], before[:, 8:]), 2)
    lengths[::LENGTH] = np.abs(before[::LENGTH])
    np.testing.assert_allclose(keys, lengths.max(0), rtol=1e-4)


def test_layers_are_known_by_their_numbers() -> None:
    ranges = cache_ranges(make([1, 3]), tokens(), 1, NO_PROGRESS)
    assert ranges is not None
    assert [layer is not None for layer in ranges] == [False, True, False, True]


def test_the_number_of_threads_changes_nothing() -> None:
    one, two = (cache_ranges(make([0, 1]), tokens(), threads, NO_PROGRESS) for threads in (1, 3))
    assert one is not None
    assert two is not None
    assert bytes_of(one) == bytes_of(two)


def test_a_graph_without_a_cache_has_no_ranges() -> None:
    model = make([0])
    for value in model.graph.inputs:
        value.name = (value.name or "").replace("past_key_values.", "state.")
    assert cache_ranges(model, tokens(), 1, NO_PROGRESS) is None


def test_a_graph_that_does_not_run_is_an_error() -> None:
    model = make([0])
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    attention.attributes["num_heads"] = ir.AttrInt64("num_heads", 3)
    with pytest.raises(EngineError):
        cache_ranges(model, tokens(), 1, NO_PROGRESS)
