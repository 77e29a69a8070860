from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.graph_pass import FusionPass, GraphPass, GraphPassResult, Loss, NearMiss, Tally, node_label
from llmc.passes.pipeline import GraphRequest, cuda_passes
from llmc.passes.quantization.quantize_cache import QuantizeCache
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from .graphs import parse
from .plans import in_blocks


@dataclass(frozen=True)
class NameTanh(FusionPass):
    """Names every Tanh whose input is an input of the graph."""

    what: ClassVar[str] = "tanh"
    name: str = "found"

    def sites(self, model: ir.Model) -> list[ir.Node]:
        return [node for node in model.graph if node.op_type == "Tanh"]

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        if node.inputs[0] not in model.graph.inputs:
            raise NearMiss("its input is computed")
        node.name = self.name

    def finish(self, model: ir.Model) -> None:
        model.graph.opset_imports["done"] = 1


def make() -> ir.Model:
    return parse("m (float[n] x) => (y, z) { y = Tanh(x)\nz = Tanh(y) }")


def test_sites_that_are_not_fused_are_told_with_the_reason() -> None:
    model = make()
    result = NameTanh()(model)
    assert isinstance(result, GraphPassResult)
    assert result.modified
    assert (result.tally.fired, result.tally.expected) == ({"tanh": 1}, {"tanh": 2})
    (rejection,) = result.tally.rejections
    assert (rejection.node, rejection.reason) == ("Tanh(z)", "its input is computed")
    assert "done" in model.graph.opset_imports


def test_a_near_miss_does_not_end_the_search() -> None:
    model = parse("m (float[n] x) => (y, z) { a = Sin(x)\nz = Tanh(a)\ny = Tanh(x) }")
    result = NameTanh()(model)
    assert isinstance(result, GraphPassResult)
    assert (result.tally.fired, result.tally.expected) == ({"tanh": 1}, {"tanh": 2})
    assert [rejection.node for rejection in result.tally.rejections] == ["Tanh(z)"]


def test_a_pass_that_only_refuses_changes_nothing() -> None:
    model = parse("m (float[n] x) => (z) { a = Sin(x)\nz = Tanh(a) }")
    result = NameTanh()(model)
    assert isinstance(result, GraphPassResult)
    assert not result.modified
    assert result.tally.expected == {"tanh": 1}
    assert "done" not in model.graph.opset_imports


def test_a_pass_without_sites_expects_nothing() -> None:
    model = parse("m (float[n] x) => (y) { y = Sin(x) }")
    result = NameTanh()(model)
    assert isinstance(result, GraphPassResult)
    assert not result.modified
    assert result.tally == Tally()
    assert "done" not in model.graph.opset_imports


def test_configuration_is_the_fields() -> None:
    assert NameTanh("other").configuration() == {"name": "other"}
    assert GraphPass().configuration() == {}


def test_labels() -> None:
    node = next(iter(make().graph))
    assert node_label(node) == "Tanh(y)"
    node.name = "layer/Tanh"
    assert node_label(node) == "layer/Tanh"
    assert node_label(ir.node("Tanh", [None])) == "Tanh(?)"


def test_counts_add_up() -> None:
    tally = Tally()
    tally.count("a")
    tally.count("a", 2)
    assert tally.fired == {"a": 3}


def test_a_pass_costs_nothing_unless_it_says_so() -> None:
    request = GraphRequest(64, quantization=in_blocks(), quantized_cache=QuantizeCache("fp8"))
    lossy = {type(item).__name__: item.loss for item in cuda_passes(request) if item.loss is not Loss.ROUNDING}
    assert QuantizeWeights(solvers={"layers.0": RoundToNearest()}).loss is Loss.CALIBRATED
    assert lossy == {
        "ConvertFloat": Loss.FLOATS,
        "QuantizeCache": Loss.NUMBERS,
        "QuantizeWeights": Loss.NUMBERS,
    }
