"""Experts one at a time compute what ONNX Runtime's operator computes, in every form in which it is lowered to."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from llmc.compiler.calibration.expert_layer import ExpertLayer, is_known
from llmc.compiler.graph.lazy_weight import Array
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.lower_moe import LowerMoE
from llmc.passes.quantization.sites import Site, find_sites

from ...passes.experts_graphs import EXPERTS, ROUTERS, Layer
from ...passes.graphs import run

LAYERS = {
    "silu gate": Layer(),
    "gates first, clamped, biases": Layer(limit=0.5, alpha=1.702, beta=1.0, biases=True),
    "in turns, [in, out]": Layer(transposed=True, interleaved=True, alpha=1.3, beta=0.5),
    "relu": Layer("relu", gated=False, biases=True),
    "silu": Layer("silu", gated=False),
    "gelu by tanh": Layer("gelu_tanh", gated=False),
    "no activation": Layer("identity", gated=False),
    "one expert": Layer(chosen=1, router=ROUTERS["softmax of the chosen"]),
}


def lowered(layer: Layer) -> tuple[ir.Model, Site]:
    model = layer.model(lazy=True)
    LowerMoE()(model)
    RemoveDeadCode()(model)
    (site,) = [site for site in find_sites(model) if site.kind == "experts"]
    return model, site


def values(model: ir.Model, names: list[ir.Value], feeds: dict[str, Array]) -> list[Array]:
    """What nodes of a graph make."""
    model.graph.outputs[:] = [*names]
    for value in names:
        value.dtype = ir.DataType.FLOAT
    return list(run(model, feeds).values())


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_sum_over_experts_is_what_the_operator_makes(name: str) -> None:
    model, site = lowered(LAYERS[name])
    assert is_known(site)
    layer = ExpertLayer.of(site)
    hidden = LAYERS[name].feeds(20)["x"]
    probs, expected = values(model, [layer.probs, layer.output], LAYERS[name].feeds(20))
    shares, x = layer.routed(torch.from_numpy(probs)), torch.from_numpy(hidden)
    total = torch.zeros_like(x)
    for index in range(layer.count):
        upper, lower = (
            torch.from_numpy(np.array(item[index].read(0, item[index].height)))
            for item in (layer.first, layer.second)
        )
        a = layer.activation(layer.biased(x @ upper.T, 0, index))
        total += shares[:, index, None] * layer.biased(a @ lower.T, 1, index)
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert float(np.abs(expected).max()) > 0.01


def test_a_token_goes_to_so_many_experts_whose_weights_sum_to_one() -> None:
    layer = ExpertLayer.of(lowered(Layer())[1])
    shares = layer.routed(torch.tensor([[0.0, 2.0, -1e30, 1.0, -1e30, -1.0]]))
    assert layer.chosen == 3
    assert shares.count_nonzero() == 3
    parts = np.exp([0.0, 2.0, 1.0])
    np.testing.assert_allclose(shares[0, [0, 1, 3]].numpy(), parts / parts.sum(), rtol=1e-6)
    # An expert that the router gave nothing is none, also where fewer than three are left.
    assert layer.routed(torch.tensor([[0.0, *[-1e30] * 5]])).tolist() == [[1.0, 0, 0, 0, 0, 0]]


def test_matrices_have_names_and_shapes_of_their_own() -> None:
    layer = ExpertLayer.of(lowered(Layer())[1])
    assert layer.count == EXPERTS
    assert layer.stacks == ("fc1", "fc2")
    assert [(item.name, item.height, item.features) for item in (layer.first[2], layer.second[5])] == [
        ("fc1[2]", 128, 32),
        ("fc2[5]", 32, 64),
    ]
    # In the kernel's order: rows of gate and upper product in turns.
    weights = Layer().weights()["fc1"][2]
    np.testing.assert_array_equal(layer.first[2].read(2, 5), weights[[1, 65, 2]])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("normalize_routing_weights", 0), ("activation_type", "tanh"), ("swiglu_fusion", 0), ("swiglu_fusion", 2)],
)
def test_other_forms_are_not_known(attribute: str, value: int | str) -> None:
    _, site = lowered(Layer())
    kind = ir.AttrInt64 if isinstance(value, int) else ir.AttrString
    site.node.attributes[attribute] = kind(attribute, value)  # type: ignore[arg-type]
    assert not is_known(site)


def test_experts_that_were_not_lowered_are_not_known() -> None:
    (site,) = [site for site in find_sites(Layer().model()) if site.kind == "experts"]
    assert not is_known(site)
