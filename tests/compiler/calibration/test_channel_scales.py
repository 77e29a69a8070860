"""By what channels are divided: loud ones by more, where activations are rounded, and by powers of two."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.options import Zero
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration.activations import rounded_activations
from llmc.compiler.calibration.channel_scales import STRENGTHS, channel_scales
from llmc.compiler.graph.lazy_weight import Array
from llmc.passes.quantization.move_scales import MoveScales

VOCABULARY, WIDTH, LENGTH, WINDOWS = 60, 64, 12, 4
TEXT = f"""<ir_version: 10, opset_import: ["" : 23]>
m (int64[batch, sequence] input_ids, int64[batch, total] attention_mask)
 => (float[batch, sequence, {VOCABULARY}] logits)
<{{weights}}> {{{{
    hidden = Gather("embed.weight", input_ids)
    h = RMSNormalization(hidden, "g.weight")
    q = MatMul(h, "q.weight")
    k = MatMul(h, "k.weight")
    both = Add(q, k)
    n = LayerNormalization(both, "l.weight", "l.bias")
    wide = MatMul(n, "wide.weight")
    last = RMSNormalization(wide, "last.weight")
    logits = MatMul(last, "head.weight")
}}}}"""
LOUD, DEAD = 7, 9


def make() -> ir.Model:
    generator = np.random.default_rng(0)
    shapes = {"embed": (VOCABULARY, WIDTH), "q": (WIDTH, 64), "k": (WIDTH, 64), "wide": (64, WIDTH),
              "head": (WIDTH, VOCABULARY), "g": (WIDTH,), "l": (64,), "last": (WIDTH,)}  # fmt: skip
    arrays = {f"{name}.weight": generator.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["l.bias"] = generator.normal(0, 1, 64).astype(np.float32)
    arrays["g.weight"][LOUD], arrays["g.weight"][DEAD] = 300, 0
    names = ", ".join(f'float{list(array.shape)} "{name}" = {{0}}' for name, array in arrays.items())
    model = ir.from_onnx_text(TEXT.format(weights=names))
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(array.shape)
    return model


def tokens() -> Array:
    return np.random.default_rng(1).integers(0, VOCABULARY, (WINDOWS, LENGTH))


def scales(
    plan: Mapping[str, str], *, model: ir.Model | None = None, kept: tuple[Zero, ...] = (), threads: int = 1
) -> dict[str, Array]:
    return channel_scales(model or make(), plan, kept, tokens(), threads, NO_PROGRESS)


def weight(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[f"{name}.weight"].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float64)


def read_by_products() -> Array:
    """What query and key read, [tokens, features]."""
    model = make()
    x = weight(model, "embed")[tokens().reshape(-1)]
    made: Array = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * weight(model, "g")
    return made


@pytest.mark.parametrize(("scheme", "bits"), [("q4", 4), ("q6", 6), ("q8", 8), ("int4@32", 4)])
def test_scales_follow_channels_and_columns(scheme: str, bits: int) -> None:
    """By the formula, as far as powers of two reach; the fewer bits, the less."""
    found = scales({"linear": scheme, "head": scheme})
    assert set(found) == {"q", "wide"}
    columns = np.concatenate([weight(make(), name).T for name in "qk"])
    with np.errstate(divide="ignore"):
        ratio = np.sqrt((read_by_products() ** 2).sum(0) / (columns**2).sum(0))
        wanted = STRENGTHS[bits] * np.log2(ratio)
    alive = np.arange(WIDTH) != DEAD
    exponents = np.log2(found["q"])
    assert exponents.dtype == np.float32
    np.testing.assert_array_equal(exponents, np.rint(exponents))
    np.testing.assert_allclose(exponents[alive], (wanted - wanted[alive].mean())[alive], atol=0.51)
    assert exponents[LOUD] >= 2 * STRENGTHS[bits] * 2
    assert exponents[DEAD] == 0


def test_what_is_rounded_loses_less() -> None:
    x, by = read_by_products().astype(np.float32), scales({"linear": "q8", "head": "q8"})["q"]
    columns = np.concatenate([weight(make(), name).T for name in "qk"]).astype(np.float32)

    def error(divided: Array) -> float:
        import torch

        rounded = rounded_activations(torch.from_numpy(np.ascontiguousarray(x / divided))).numpy()
        return float((((rounded * divided - x) @ columns.T) ** 2).mean())

    assert error(by) < 0.5 * error(np.ones_like(by))


def test_activations_of_16_bits_and_floats_need_none() -> None:
    assert scales({"linear": "q8:a16", "head": "q8:a16"}) == {}
    assert scales({"head": "q8"}) == {}
    assert scales({}) == {}


def test_the_smallest_weights_of_a_group_say_how_far() -> None:
    mixed, few = scales({"linear": "q8", "k": "q4", "head": "q8"}), scales({"linear": "q4", "head": "q4"})
    np.testing.assert_array_equal(mixed["q"], few["q"])
    assert (mixed["wide"] != few["wide"]).any()
    beside = scales({"linear": "q8", "k": "q4:a16", "head": "q8"})
    np.testing.assert_array_equal(beside["q"], scales({"linear": "q8", "head": "q8"})["q"])


def test_weights_on_a_grid_are_left_alone() -> None:
    model = make()
    value = model.graph.initializers["k.weight"]
    levels = np.random.default_rng(2).integers(-8, 8, (WIDTH, 64)).astype(np.float32)
    levels[::32], levels[1::32] = -8, 7
    value.const_value = ir.tensor(levels / 16, name="k.weight")
    plan = {"linear": "int4@32", "head": "int8@32"}
    assert set(scales(plan, model=model, kept=("none", "offset"))) == {"wide"}
    assert set(scales(plan, model=model)) == {"q", "wide"}


def test_the_number_of_threads_changes_nothing() -> None:
    plan = {"linear": "q4", "head": "q8"}
    one, three = (scales(plan, threads=threads) for threads in (1, 3))
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in three.items()
    }


def test_the_graph_is_left_as_it_is_and_takes_the_scales() -> None:
    model = make()
    found = scales({"linear": "q4", "head": "q8"}, model=model)
    for name in ("g", "l", "q", "k", "wide"):
        np.testing.assert_array_equal(weight(model, name), weight(make(), name))
    result = MoveScales(scales=found)(model)
    assert result.modified
    np.testing.assert_array_equal(weight(model, "k"), weight(make(), "k") * found["q"][:, None])


def test_a_graph_that_does_not_run_is_an_error() -> None:
    model = make()
    node = next(node for node in model.graph if node.op_type == "Add")
    node.op_type = "NoSuchOperator"
    with pytest.raises(EngineError):
        scales({"linear": "q4", "head": "q8"}, model=model)
