from __future__ import annotations

import pytest

from llmc.passes.graph_pass import NearMiss
from llmc.passes.lowering.lower_moe import LowerMoE
from llmc.passes.quantization.sites import find_sites, require_blocks

from ..experts_graphs import EXPERTS, HIDDEN, INNER, Layer
from ..graphs import draw, parse
from ..quantized_graphs import HIDDEN as WIDTH
from ..quantized_graphs import INNER as INSIDE
from ..quantized_graphs import TIED, VOCABULARY, make


@pytest.mark.parametrize("lazy", [False, True])
def test_sites_of_a_model(lazy: bool) -> None:
    """In the order of the graph, weights as [out, in]."""
    model = make(TIED, lazy=lazy)
    sites = find_sites(model)
    assert [(site.kind, site.name, site.node.op_type) for site in sites] == [
        ("embedding", "table", "Gather"), ("linear", "up_w", "MatMul"), ("linear", "gate_w", "MatMul"),
        ("linear", "down_w", "MatMul"), ("head", "table", "MatMul"),
    ]  # fmt: skip
    shapes = [weight.stored_shape for site in sites for _, weight in site.weights]
    inner, outer = (INSIDE, WIDTH), (WIDTH, INSIDE)
    assert shapes == [(VOCABULARY, WIDTH), inner, inner, outer, (VOCABULARY, WIDTH)]
    assert sites[0].weights[0][1].identity() == sites[-1].weights[0][1].identity() or not lazy
    assert [site.kind for site in find_sites(model, head=False)].count("linear") == 4


def test_names_are_the_layers() -> None:
    text = "m (float[n, 64] x) => (y) { y = MatMul(x, w) }"
    model = parse(text, {"w": draw(64, 40)})
    value = model.graph.initializers.pop("w")
    value.name = "layers.0.up_proj.weight"
    model.graph.initializers[value.name] = value
    [site] = find_sites(model, head=False)
    assert site.name == "layers.0.up_proj"


def test_experts_are_two_stacks_or_a_body() -> None:
    layer = Layer()
    body = layer.model()
    [site] = [site for site in find_sites(body) if site.kind == "experts"]
    assert site.weights == ()
    LowerMoE()(body)
    [site] = [site for site in find_sites(body) if site.kind == "experts"]
    assert [weight.stored_shape for _, weight in site.weights] == [
        (EXPERTS, 2 * INNER, HIDDEN), (EXPERTS, HIDDEN, INNER)
    ]  # fmt: skip


def test_rows_of_whole_blocks() -> None:
    require_blocks(64, 32)
    require_blocks(40, None)
    with pytest.raises(NearMiss, match="its 40 input features are no multiple of the block size 32"):
        require_blocks(40, 32)
