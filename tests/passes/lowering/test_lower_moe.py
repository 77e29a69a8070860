from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.graph.graph_query import dims
from llmc.passes.lowering.lower_moe import MOE, LowerMoE
from llmc.passes.pipeline import GraphRequest, cpu_passes
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from ..experts_graphs import CHOSEN, EXPERTS, HIDDEN, INNER, ROUTERS, SUMS_TO_ONE, Layer
from ..graphs import Array, apply, draw, left_alone, node_of, operators, run
from ..plans import in_blocks

LAYERS = {
    "silu gate": Layer(),
    "silu gate, alternating rows": Layer(interleaved=True),
    "silu gate, [in, out]": Layer(transposed=True),
    "all at once": Layer(interleaved=True, transposed=True, limit=0.5, alpha=1.702, beta=1.0, biases=True),
    "all at once, halves": Layer(transposed=True, limit=0.5, alpha=1.702, beta=1.0, biases=True),
    "relu": Layer("relu", gated=False),
    "relu, biases": Layer("relu", gated=False, transposed=True, biases=True),
    "silu": Layer("silu", gated=False),
    "gelu by tanh": Layer("gelu_tanh", gated=False),
    "linear": Layer("identity", gated=False, biases=True),
}


def close(actual: Array, expected: Array) -> None:
    """What the kernel was measured to keep, row by row, with a margin for the sums' order."""
    assert actual.shape == expected.shape
    errors, scales = (np.abs(array).max(axis=1) for array in (actual - expected, expected))
    assert (errors <= 2e-6 * scales).all(), f"errors {errors} of {scales}"


def lower(layer: Layer, *, lazy: bool = False, tokens: int = 7) -> ir.Model:
    """Lower a layer, and check that its numbers stay."""
    model = layer.model(lazy=lazy)
    expected = run(model, layer.feeds(tokens))["logits"]
    tally = apply(LowerMoE(), model)
    assert tally.fired == tally.expected == {"experts": 1}
    RemoveDeadCode()(model)
    close(run(model, layer.feeds(tokens))["logits"], expected)
    return model


@pytest.mark.parametrize("name", list(LAYERS))
def test_numbers_of_every_layer_agree(name: str) -> None:
    model = lower(LAYERS[name])
    assert f"com.microsoft::{MOE.name}" in operators(model)
    assert not any(node.domain == "llmc" for node in model.graph)
    assert not model.functions


@pytest.mark.parametrize("name", list(ROUTERS))
def test_numbers_of_every_router_agree(name: str) -> None:
    """Relu gives weights of 0, and to the second token nothing else."""
    model = lower(Layer(router=ROUTERS[name]))
    assert operators(model)[-1] == (f"com.microsoft::{MOE.name}" if name in SUMS_TO_ONE else "Mul")


@settings(max_examples=12, deadline=None)
@given(
    chosen=st.integers(1, EXPERTS),
    tokens=st.integers(1, 9),
    router=st.sampled_from(list(ROUTERS)),
    layer=st.sampled_from(list(LAYERS)),
    lazy=st.booleans(),
)
def test_shapes(chosen: int, tokens: int, router: str, layer: str, lazy: bool) -> None:
    lower(replace(LAYERS[layer], chosen=chosen, router=ROUTERS[router]), lazy=lazy, tokens=tokens)


@pytest.mark.parametrize("power", [-30, -10, 6])
def test_weights_of_any_size(power: int) -> None:
    """What matters is how large weights are beside each other; the others are mixed in by 10 and by 1e-20."""
    layer = Layer(router="v, i = TopK(scores, k)\nw = Exp(v)")
    model = layer.model()
    feeds = layer.feeds()
    steps = np.random.default_rng(5).choice([0.0, 2.3, -46.0], feeds["scores"].shape)
    feeds["scores"] = (steps + power * np.log(10)).astype(np.float32)
    expected = run(model, feeds)["logits"]
    apply(LowerMoE(), model)
    close(run(model, feeds)["logits"], expected)


@pytest.mark.parametrize("kept", [[0, 0, 0], [0, 0, 1], [0, 1, 0]])
def test_an_expert_that_is_named_twice_gets_the_sum(kept: list[int]) -> None:
    """Expert 0 in the place of those that are not kept: with all weight, and beside another one."""
    layer = Layer(router="w0, i0 = TopK(scores, k)\nw = Sigmoid(w0)\ni = Mul(i0, kept)")
    model = layer.model(more={"kept": np.asarray([kept], np.int64)})
    expected = run(model, layer.feeds())["logits"]
    apply(LowerMoE(), model)
    close(run(model, layer.feeds())["logits"], expected)


def test_what_a_call_does_not_state() -> None:
    """Its gate is silu without alpha, beta and limit, by the operator's definition as by the kernel."""
    layer = Layer()
    model = layer.model()
    node = node_of(model, "MoE")
    for name in list(node.attributes):
        node.attributes.pop(name)
    expected = run(model, layer.feeds())["logits"]
    assert np.array_equal(expected, run(layer.model(), layer.feeds())["logits"])
    apply(LowerMoE(), model)
    close(run(model, layer.feeds())["logits"], expected)
    names = {"k", "normalize_routing_weights", "activation_type", "swiglu_fusion", "activation_alpha"}
    assert set(node_of(model, MOE.name).attributes) == names | {"activation_beta"}


def test_what_is_made_is_stated() -> None:
    model = Layer().model()
    model.graph.opset_imports.pop("com.microsoft")
    apply(LowerMoE(), model)
    assert model.graph.opset_imports["com.microsoft"] == 1
    kernel, product = node_of(model, MOE.name).outputs[0], node_of(model, "Mul").outputs[0]
    for value in (kernel, product):
        assert (value.dtype, dims(value)) == (ir.DataType.FLOAT, ["tokens", HIDDEN])


def test_the_call_says_what_is_computed() -> None:
    model = lower(LAYERS["all at once"])
    node = node_of(model, MOE.name)
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "k": CHOSEN,
        "normalize_routing_weights": 1,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "swiglu_limit": 0.5,
        "activation_alpha": pytest.approx(1.702),
        "activation_beta": 1.0,
    }
    shapes = [list(value.shape) if value is not None and value.shape is not None else None for value in node.inputs]
    assert shapes[2:] == [
        [EXPERTS, 2 * INNER, HIDDEN],
        [EXPERTS, 2 * INNER],
        [EXPERTS, HIDDEN, INNER],
        [EXPERTS, HIDDEN],
    ]


def test_weights_that_have_the_layout_are_left_as_they_are() -> None:
    model = lower(LAYERS["silu gate, alternating rows"])
    node = node_of(model, MOE.name)
    assert [value.name for value in (node.inputs[2], node.inputs[4]) if value is not None] == ["fc1", "fc2"]


class Counting(LazyWeight):
    """Experts that say how many of them are read at a time."""

    def __init__(self, array: Array) -> None:
        super().__init__(array.shape, ir.DataType.FLOAT)
        self.array, self.reads = array, list[int]()

    def rows(self, start: int, stop: int) -> Array:
        self.reads.append(stop - start)
        part: Array = self.array[start:stop]
        return part


def test_one_expert_is_read_at_a_time_and_none_by_the_pass() -> None:
    """At sizes of which one is more than a step of streaming."""
    model = Layer(transposed=True).model()
    large = Counting(draw(EXPERTS, 512, 2048))
    model.graph.initializers["fc1"].const_value = large
    model.graph.initializers["fc1"].shape = ir.Shape([EXPERTS, 512, 2048])
    assert LowerMoE()(model).modified
    assert not large.reads
    lowered = node_of(model, MOE.name).inputs[2]
    assert lowered is not None
    assert isinstance(lowered.const_value, LazyWeight)
    parts: Iterator[Array] = lowered.const_value.chunks()
    whole = np.concatenate(list(parts))
    assert large.reads == [1] * EXPERTS
    turned = large.array.swapaxes(1, 2)
    np.testing.assert_array_equal(whole[:, 0::2], turned[:, :1024])
    np.testing.assert_array_equal(whole[:, 1::2], turned[:, 1024:])
    assert whole.nbytes == lowered.const_value.nbytes


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Layer("relu2", gated=False), "the kernel has no activation relu2"),
        (Layer("gelu", gated=False), "the kernel has no activation gelu"),
        (Layer("gelu_tanh"), "the kernel has no gate with gelu_tanh"),
        (Layer("silu", gated=False, alpha=1.7), "the kernel's silu without a gate has no alpha"),
        (
            Layer(router="w, i = TopK(scores, k)"),
            "its routing weights may be negative, and then have no logarithm",
        ),
        (
            Layer(router="p = Softmax(scores)\nv, i = TopK(p, k)\nw = Sub(v, shift)"),
            "its routing weights may be negative, and then have no logarithm",
        ),
    ],
    ids=lambda value: value.activation if isinstance(value, Layer) else "",
)
def test_near_misses(layer: Layer, reason: str) -> None:
    model = layer.model()
    assert left_alone(LowerMoE(), model) == [reason]
    assert LowerMoE()(model).tally.expected == {"experts": 1}


def test_what_the_graph_does_not_say_is_a_near_miss() -> None:
    model = Layer().model()
    node_of(model, "MoE").outputs[0].dtype = ir.DataType.FLOAT16
    assert left_alone(LowerMoE(), model) == ["its activations are not float32"]

    model = Layer().model()
    indices = node_of(model, "MoE").inputs[1]
    assert indices is not None
    indices.shape = ir.Shape(["tokens", "chosen"])
    assert left_alone(LowerMoE(), model) == ["how many experts a token has is not known"]


@pytest.mark.parametrize("name", ["fc1", "fc2", "fc1_bias", "fc2_bias"])
@pytest.mark.parametrize("what", ["one size is unknown", "an input", "made by a node"])
def test_each_weight_must_be_a_constant_of_a_known_shape(name: str, what: str) -> None:
    model = Layer(biases=True).model()
    node = node_of(model, "MoE")
    weight = model.graph.initializers[name]
    assert weight.shape is not None
    if what == "one size is unknown":
        weight.shape = ir.Shape(["experts", *list(weight.shape)[1:]])
    elif what == "an input":
        del model.graph.initializers[name]
        model.graph.inputs.append(weight)
    else:
        copy = ir.node("Identity", [weight], name="copy")
        copy.outputs[0].shape, copy.outputs[0].type = weight.shape, weight.type
        model.graph.insert_before(node, [copy])
        node.replace_input_with(list(node.inputs).index(weight), copy.outputs[0])
    assert left_alone(LowerMoE(), model) == ["its weights are no constants of a known shape"]


def test_a_runtime_without_the_kernels() -> None:
    reasons = left_alone(LowerMoE(kernel=False), Layer().model())
    assert reasons == ["the installed ONNX Runtime does not have the operator as it was measured"]


def test_the_pipeline_lowers_before_it_quantizes() -> None:
    target = GraphRequest(max_positions=64, quantization=in_blocks(), expert_kernels=False)
    passes = cpu_passes(target)
    kinds = [type(item) for item in passes]
    assert kinds.index(LowerMoE) < kinds.index(QuantizeWeights)
    assert passes[kinds.index(LowerMoE)] == LowerMoE(kernel=False)
