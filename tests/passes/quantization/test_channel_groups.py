"""Which products read one value, and where its channels come from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.graph_pass import NearMiss
from llmc.passes.quantization.channel_groups import ChannelGroup, ChannelGroups
from llmc.passes.quantization.sites import find_sites

from ..graphs import Array, draw, parse

SHAPES: Mapping[str, tuple[int, ...]] = {
    "g.weight": (64,),
    "b.weight": (64,),
    "q.weight": (64, 32),
    "k.weight": (64, 32),
    "wide.weight": (32, 64),
    "head.weight": (64, 96),
}
READERS = """
    q = MatMul(h, "q.weight")
    k = MatMul(h, "k.weight")
    both = Add(q, k)
    stream = MatMul(both, "wide.weight")
    logits = MatMul(stream, "head.weight")"""


def make(norm: str, readers: str = READERS) -> ir.Model:
    text = f"""m (float[1, tokens, 64] x, float[64] given) => (float[1, tokens, 96] logits) {{
        h = {norm}
        {readers}
    }}"""
    weights: dict[str, Array] = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    return parse(text, {name: array for name, array in weights.items() if f'"{name}"' in text})


def group(model: ir.Model) -> ChannelGroup:
    groups = ChannelGroups(model, find_sites(model))
    (norm,) = groups.makers
    assert groups.named(norm) == "q"
    return groups.at(norm)


def places(group: ChannelGroup) -> list[tuple[str, int]]:
    """Constants in which channels are divided, each with the place of the first channel."""
    return [(source.constant.name or "", source.first) for source in group.sources]


@pytest.mark.parametrize(
    ("norm", "parameters"),
    [
        ('RMSNormalization(x, "g.weight")', (1,)),
        ('LayerNormalization(x, "g.weight", "b.weight")', (1, 2)),
        ('LayerNormalization(x, "g.weight")', (1,)),
        ('RMSNormalization<axis=2>(x, "g.weight")', (1,)),
        ('com.microsoft.SkipSimplifiedLayerNormalization(x, x, "g.weight")', (2,)),
    ],
)
def test_all_products_that_read_a_norm_are_one_group(norm: str, parameters: tuple[int, ...]) -> None:
    seen = group(make(norm))
    assert tuple(source.index for source in seen.sources) == parameters
    assert {source.node for source in seen.sources} == {seen.value.producer()}
    assert ([site.name for site in seen.sites], seen.name, seen.features) == (["q", "k"], "q", 64)
    assert seen.upper is None


NORM = 'RMSNormalization(x, "g.weight")'


@pytest.mark.parametrize(
    ("norm", "readers", "reason"),
    [
        (NORM, READERS.replace("Add(q, k)", "Max(q, k)") + "\n    more = Exp(h)", "something else"),
        ("RMSNormalization(x, given)", READERS, "is computed"),
        ('RMSNormalization<axis=1>(x, "g.weight")', READERS, "last axis"),
        (NORM, READERS.replace('MatMul(both, "wide.weight")', 'MatMul(k, "wide.weight")').replace(
            'k = MatMul(h, "k.weight")', 'k = MatMul(h, "q.weight")'), "q is used elsewhere"),
        (NORM, """turned = Transpose<perm=[1, 0]>("wide.weight")
            q = MatMul(h, turned)
            k = MatMul(h, "k.weight")
            both = Add(q, k)
            stream = MatMul(both, "wide.weight")
            logits = MatMul(stream, "head.weight")""", "transposed"),
    ],
)  # fmt: skip
def test_a_near_miss_says_why(norm: str, readers: str, reason: str) -> None:
    model = make(norm, readers)
    groups = ChannelGroups(model, find_sites(model))
    with pytest.raises(NearMiss, match=reason):
        groups.at(groups.makers[0])


def test_a_norm_that_is_an_output_is_left_alone() -> None:
    model = make(NORM)
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "RMSNormalization").outputs[0])
    with pytest.raises(NearMiss, match="something else"):
        group(model)


def test_the_products_nearest_to_the_logits_are_left_alone() -> None:
    model = make(NORM, 'logits = MatMul(h, "head.weight")')
    groups = ChannelGroups(model, find_sites(model))
    with pytest.raises(NearMiss, match="head's"):
        groups.at(groups.makers[0])


def test_weights_that_two_layers_share_are_left_alone() -> None:
    model = make(NORM)
    tensors = model.graph.initializers
    tensors["k.weight"].const_value = tensors["q.weight"].const_value
    with pytest.raises(NearMiss, match="used elsewhere"):
        group(model)


def test_a_norm_that_no_product_reads_has_no_name() -> None:
    model = make(NORM, 'y = Exp(h)\n    logits = MatMul(y, "head.weight")')
    groups = ChannelGroups(model, find_sites(model))
    assert groups.named(groups.makers[0]) is None
    np.testing.assert_equal(len(groups.makers), 1)


GATED = """
    pair = MatMul(x, "pair.weight")
    gate, up = Split<axis=-1, num_outputs=2>(pair)
    active = Gelu(gate)
    inner = Mul(active, up)
    down = MatMul(inner, "wide.weight")
    logits = MatMul(down, "head.weight")"""
BIASED = GATED.replace("pair = MatMul(", "plain = MatMul(").replace(
    "gate, up", "pair = Add(plain, bias)\n    gate, up"
)
APART = GATED.replace('gate, up = Split<axis=-1, num_outputs=2>(pair)', 'gate = MatMul(x, "q.weight")').replace(
    'pair = MatMul(x, "pair.weight")', 'up = MatMul(x, "k.weight")')  # fmt: skip


def gated(body: str) -> ChannelGroups:
    text = f"m (float[1, tokens, 64] x) => (float[1, tokens, 96] logits) {{ {body} }}"
    shapes = {**SHAPES, "pair.weight": (64, 64)}
    weights: dict[str, Array] = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    used = {name: array for name, array in weights.items() if f'"{name}"' in text} | {"bias": draw(64, seed=9)}
    model = parse(text, used if "bias" in body else {name: used[name] for name in used if name != "bias"})
    return ChannelGroups(model, find_sites(model))


@pytest.mark.parametrize(
    ("body", "wanted", "upper"),
    [
        (GATED, [("pair.weight", 32)], "pair"),
        (GATED.replace("Mul(active, up)", "Mul(up, active)"), [("pair.weight", 32)], "pair"),
        (GATED.replace("gate, up = Split", "up, gate = Split"), [("pair.weight", 0)], "pair"),
        (BIASED, [("pair.weight", 32), ("bias", 32)], "pair"),
        (APART, [("k.weight", 0)], "k"),
    ],
)
def test_a_gated_block_is_divided_in_its_upper_product(body: str, wanted: list[tuple[str, int]], upper: str) -> None:
    groups = gated(body)
    (maker,) = groups.makers
    seen = groups.at(maker)
    assert (places(seen), seen.name, seen.features) == (wanted, "wide", 32)
    assert seen.upper is not None
    assert seen.upper.name == upper


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (GATED.replace("Mul(active, up)", "Mul(active, later)").replace(
            "inner =", "later = Tanh(up)\n    inner ="), "neither of its factors"),
        (GATED.replace("Mul(active, up)", "Mul(both, up)").replace(
            "inner =", "both = Add(active, up)\n    inner ="), "neither of its factors"),
        (GATED.replace("axis=-1", "axis=1").replace("[1, tokens, 64] x", "[1, 2, 64] x"), "neither of its factors"),
        (GATED.replace("down = MatMul", "seen = Exp(pair)\n    down = MatMul"), "neither of its factors"),
        (APART.replace('"k.weight"', '"q.weight"'), "q is used elsewhere"),
        (GATED.replace("down = MatMul", "seen = Exp(inner)\n    down = MatMul"), "something else"),
    ],
)  # fmt: skip
def test_a_near_miss_of_a_gated_block_says_why(body: str, reason: str) -> None:
    groups = gated(body)
    with pytest.raises(NearMiss, match=reason):
        groups.at(groups.makers[0])


def test_a_plain_block_has_no_group() -> None:
    """A nonlinearity passes no scale on."""
    groups = gated("""
        up = MatMul(x, "q.weight")
        active = Gelu(up)
        down = MatMul(active, "wide.weight")
        logits = MatMul(down, "head.weight")""")
    assert groups.makers == []
