from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from llmc.compiler.base.contract import DATA
from llmc.compiler.graph.lazy_weight import LazyWeight, StackedWeight, TensorWeight, transposed_weight
from llmc.compiler.graph.write_model import write_model
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from ...compiler.quantization.block_numbers import BlockFormat
from ..graphs import apply, close, draw, draw_all, left_alone, node_of, operators, parse, run
from ..plans import in_blocks

Array = npt.NDArray[Any]
VOCABULARY, HIDDEN, INNER = 96, 64, 72
IDS = {"ids": np.asarray([[3, 0, 95, 17], [1, 1, 2, 50]])}
TEXT = """main_graph (int64[batch, seq] ids) => (float[batch, seq, 96] logits) {
    x = Gather(table, ids)
    up = MatMul(x, up_w)
    biased = Add(up, up_b)
    act = Tanh(biased)
    down = MatMul(act, down_w)
    %s
}"""
UNTIED, TIED = "logits = MatMul(down, head_w)", "turned = Transpose<perm=[1,0]>(table)\nlogits = MatMul(down, turned)"


def weights() -> dict[str, Array]:
    return {
        "table": draw(VOCABULARY, HIDDEN),
        "up_w": draw(HIDDEN, INNER, seed=1, scale=0.2),
        "up_b": draw(INNER, seed=2),
        "down_w": draw(INNER, HIDDEN, seed=3, scale=0.2),
        "head_w": draw(HIDDEN, VOCABULARY, seed=4),
    }


def make(head: str = UNTIED, *, lazy: bool = True) -> ir.Model:
    given = weights()
    if head != UNTIED:
        del given["head_w"]
    return parse(TEXT % head, given, lazy=lazy)


def reference(
    head: str = UNTIED, *, bits: int = 4, head_bits: int = 4, block_size: int = 32, symmetric: bool = True
) -> Array:
    """The same layers in NumPy, each weight being what its integers stand for."""
    w = weights()
    body = BlockFormat(bits, block_size, symmetric)
    ends = BlockFormat(head_bits, block_size, symmetric)
    table = ends.dequantize(w["table"])
    x = table[IDS["ids"]]
    hidden = np.tanh(x @ body.dequantize(w["up_w"].T).T + w["up_b"]) @ body.dequantize(w["down_w"].T).T
    logits: Array = hidden @ (ends.dequantize(w["head_w"].T) if head == UNTIED else table).T
    return logits


def quantize(**options: Any) -> QuantizeWeights:
    return in_blocks(**{"accuracy_level": 0, **options})


@pytest.mark.parametrize("head", [UNTIED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "head_bits"), [(4, 4), (8, 8), (4, 8)])
@pytest.mark.parametrize("block_size", [16, 32])
def test_numbers_are_those_of_the_integers(
    head: str, symmetric: bool, bits: Any, head_bits: Any, block_size: int
) -> None:
    """The inner width, 72, is no multiple of a block of 16 or 32."""
    options = {"bits": bits, "head_bits": head_bits, "symmetric": symmetric, "block_size": block_size}
    graph_pass = quantize(**options)
    model = make(head)
    exact = run(model, IDS)["logits"]
    tally = apply(graph_pass, model)
    assert tally.fired == tally.expected == {"embedding": 1, "linear": 2, "head": 1}
    assert not tally.rejections
    apply(RemoveDeadCode(), model)
    assert operators(model) == [
        "com.microsoft::GatherBlockQuantized",
        "com.microsoft::MatMulNBits",
        "Tanh",
        "com.microsoft::MatMulNBits",
        "com.microsoft::MatMulNBits",
    ]
    logits = run(model, IDS)["logits"]
    np.testing.assert_allclose(logits, reference(head, **options), rtol=1e-4, atol=1e-4)
    assert np.std(logits - exact) < np.std(exact) * (0.02 if bits == head_bits == 8 else 0.3)


def test_eager_weights_are_quantized_too() -> None:
    model = make(lazy=False)
    apply(quantize(), model)
    close(run(model, IDS), {"logits": reference()}, rtol=1e-4, atol=1e-4)


def test_weights_of_any_orientation() -> None:
    """As a checkpoint has them ([out, in], seen transposed), turned twice, and stacked."""
    w = weights()

    def stored(array: Array) -> LazyWeight:
        return TensorWeight(ir.tensor(array), ir.DataType.FLOAT, transposed=False)

    parts = [stored(np.ascontiguousarray(part.T)) for part in (w["down_w"][:, :20], w["down_w"][:, 20:])]
    lazies: Mapping[str, LazyWeight] = {
        "up_w": transposed_weight(stored(np.ascontiguousarray(w["up_w"].T))),
        "down_w": StackedWeight(parts, transposed=True),
        "table": transposed_weight(stored(np.ascontiguousarray(w["table"].T))),
        "head_w": TensorWeight(ir.tensor(w["head_w"]), ir.DataType.FLOAT, transposed=True),
    }
    model = make()
    for name, weight in lazies.items():
        model.graph.initializers[name].const_value = weight
    apply(quantize(), model)
    close(run(model, IDS), {"logits": reference()}, rtol=1e-4, atol=1e-4)


def test_attributes_and_bias() -> None:
    model = make()
    apply(in_blocks(bits=4, block_size=16), model)
    products = [node for node in model.graph if node.op_type == "MatMulNBits"]
    first = {name: attribute.value for name, attribute in products[0].attributes.items()}
    assert first == {"K": HIDDEN, "N": INNER, "bits": 4, "block_size": 16, "accuracy_level": 4}
    bias = products[0].inputs[5]
    assert bias is model.graph.initializers["up_b"]
    assert products[0].inputs[3] is None, "symmetric blocks have no zero points"
    assert [len(node.inputs) for node in products[1:]] == [3, 3]
    assert len(node_of(model, "GatherBlockQuantized").inputs) == 3
    assert model.graph.opset_imports["com.microsoft"] == 1
    assert {"up_w.packed", "up_w.scales", "down_w.packed", "head_w.packed"} <= set(model.graph.initializers)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("extra = Identity(product)\ny = Add(product, b)\nlogits = Add(y, extra)", "the product is used elsewhere"),
        ("logits = Add(product, row)", "what is added is no vector of the layer's width"),
        ("logits = Add(product, z)", "what is added is no constant"),
    ],
)
def test_an_addition_that_is_no_bias_stays(text: str, why: str) -> None:
    text = f"m (float[n, 64] x, float[n, 48] z) => (float[n, 48] logits) {{ product = MatMul(x, w)\n{text} }}"
    model = parse(text, {"w": draw(64, 48), "b": draw(48), "row": draw(1)})
    feeds = {"x": draw(3, 64, seed=1), "z": draw(3, 48, seed=2)}
    graph_pass = quantize(bits=8, head_bits=8)
    before = run(model, feeds)
    apply(graph_pass, model)
    assert "Add" in operators(model), why
    assert len(node_of(model, "MatMulNBits").inputs) == 3, why
    close(run(model, feeds), before, rtol=0, atol=0.3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tied_table_is_stored_once(symmetric: bool, tmp_path: Path) -> None:
    model = make(TIED)
    apply(quantize(symmetric=symmetric), model)
    apply(RemoveDeadCode(), model)
    lookup, head = node_of(model, "GatherBlockQuantized"), [n for n in model.graph if n.op_type == "MatMulNBits"][-1]
    for at, beside in ((0, 1), (2, 2)) if symmetric else ((0, 1), (2, 2), (3, 3)):
        first, second = lookup.inputs[at], head.inputs[beside]
        assert first is not None
        assert second is not None
        assert isinstance(first.const_value, LazyWeight)
        assert isinstance(second.const_value, LazyWeight)
        assert first.const_value.identity() == second.const_value.identity()
    assert list(head.inputs[1].shape) == [VOCABULARY, HIDDEN // 32, 16]
    assert list(lookup.inputs[0].shape) == [VOCABULARY, HIDDEN // 2]
    write_model(model, tmp_path)
    tied = (tmp_path / DATA).stat().st_size
    model = make(UNTIED)
    apply(quantize(symmetric=symmetric), model)
    apply(RemoveDeadCode(), model)
    write_model(model, tmp_path)
    assert (tmp_path / DATA).stat().st_size - tied >= VOCABULARY * HIDDEN // 2


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("width", "rows", "block"), [(64, (2, 3), 32), (1024, (2, 3), 64), (64, (6,), 16)])
def test_offsets_are_added_beside_the_product(bits: Any, width: int, rows: tuple[int, ...], block: int) -> None:
    """Sums over blocks are made once for two products of the same input; the head has no offsets."""
    body = "a = MatMul(x, w1)\nb = MatMul(x, w2)\nc = Add(b, bias)\nd = Mul(a, c)\nlogits = MatMul(d, head)"
    shapes = {"w1": (width, 48), "w2": (width, 48), "bias": (48,), "head": (48, 40)}
    w = draw_all(shapes, seed=3, scale=0.1)
    axes = ", ".join(["batch", "seq"][: len(rows)])
    model = parse(f"m (float[{axes}, {width}] x) => (logits) {{ {body} }}", w, lazy=True)
    for number, node in enumerate(model.graph):
        node.name = f"node_{number}"
    graph_pass = quantize(bits=bits, offset=True, block_size=block)
    assert apply(graph_pass, model).fired == {"linear": 2, "head": 1}
    assert (operators(model).count("ReduceSum"), operators(model).count("Add")) == (1, 2), "the bias is inside"
    x = draw(*rows, width, seed=9)
    fmt, head = BlockFormat(bits, block, True, offset=True), BlockFormat(4, block, True)
    first, second = (x @ fmt.dequantize(w[name].T).T for name in ("w1", "w2"))
    wanted = (first * (second + w["bias"])) @ head.dequantize(w["head"].T).T
    close(run(model, {"x": x}), {"logits": wanted}, rtol=1e-4, atol=1e-3)


def test_a_router_keeps_its_floats() -> None:
    """A rounded score sends a token to another expert."""
    body = "r = MatMul(x, router)\ns = Softmax<axis=-1>(r)\nv, i = TopK(s, two)\nlogits = MatMul(x, head)"
    weights = {"router": draw(64, 40), "head": draw(64, 40), "two": np.asarray([2])}
    model = parse(f"m (float[n, 64] x) => (logits, v, i) {{ {body} }}", weights, lazy=True)
    assert apply(quantize(), model).fired == {"head": 1}
    assert operators(model).count("MatMul") == 1


def test_offsets_need_whole_blocks() -> None:
    text = "m (float[b, s, 72] x, float[n, 8] z) => (h, logits) { h = MatMul(x, w)\nlogits = Gemm(z, head) }"
    model = parse(text, {"w": draw(72, 40), "head": draw(8, 4)})
    reason = "72 input features are no multiple of the block size 32"
    assert left_alone(quantize(offset=True), model) == [reason]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_head_has_no_offsets_and_needs_no_whole_blocks(bits: Any) -> None:
    """Also where it is a layer's weight as well: the layer's integers are those of blocks with offsets."""
    wide = {"w": draw(64, 72, seed=1, scale=0.2) + np.float32(0.1), "head": draw(72, 40, seed=2)}
    shared = {"w": draw(64, 64, seed=1, scale=0.2) + np.float32(0.1)}
    graph_pass = quantize(bits=bits, head_bits=bits, offset=True)
    for weights, head in ((wide, "head"), (shared, "w")):
        width = weights[head].shape[1]
        body = f"h = MatMul(x, w)\nt = Tanh(h)\nlogits = MatMul(t, {head})"
        model = parse(f"m (float[n, 64] x) => (float[n, {width}] logits) {{ {body} }}", weights, lazy=True)
        assert apply(graph_pass, model).fired == {"linear": 1, "head": 1}
        x = draw(3, 64, seed=9)
        layer = BlockFormat(bits, 32, True, offset=True).dequantize(weights["w"].T)
        last = BlockFormat(bits, 32, True).dequantize(weights[head].T)
        close(run(model, {"x": x}), {"logits": np.tanh(x @ layer.T) @ last.T}, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"symmetric": True}, {"symmetric": False}, {"offset": True}])
@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_scales_and_offsets_have_the_type_of_the_activations(to: Any, options: dict[str, Any]) -> None:
    text = """m (int64[n] ids) => (logits) {
        x = Gather(table, ids)\nh = MatMul(x, w)\nlogits = MatMul(h, head) }"""
    model = parse(text, {"table": draw(96, 64), "w": draw(64, 64), "head": draw(64, 40)}, lazy=True)
    apply(ConvertFloat(to), model)
    assert apply(quantize(**options), model).fired == {"embedding": 1, "linear": 1, "head": 1}
    RemoveDeadCode()(model)
    half = ir.DataType.FLOAT16 if to == "fp16" else ir.DataType.BFLOAT16
    kinds = {"packed": ir.DataType.UINT8, "zero_points": ir.DataType.UINT8, "scales": half, "offsets": half}
    found = [(name.rpartition(".")[2], value) for name, value in model.graph.initializers.items()]
    parts = [kind for kind, _ in found if kind in kinds]
    assert len(parts) == {"symmetric": 6, "offset": 7}[next(iter(options))] + 3 * (options.get("symmetric") is False)
    for kind, value in found:
        if kind in kinds:
            assert value.const_value is not None
            assert value.dtype == value.const_value.dtype == kinds[kind]
    assert {node.outputs[0].dtype for node in model.graph} - {None} == {half}


def test_names_come_from_the_layers() -> None:
    """Of weights without their ending, and of nodes, by which a profile is read."""
    model = make()
    value = model.graph.initializers.pop("down_w")
    value.name = "layers.0.down_proj.weight"
    model.graph.initializers[value.name] = value
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    apply(quantize(symmetric=False), model)
    parts = {name for name in model.graph.initializers if name.startswith("layers.0.down_proj.")}
    assert parts == {f"layers.0.down_proj.{part}" for part in ("weight", "packed", "scales", "zero_points")}
    names = {node.name: node.op_type for node in model.graph}
    assert names == {
        "node_x": "GatherBlockQuantized", "node_up": "MatMulNBits", "node_act": "Tanh", "node_down": "MatMulNBits",
        "node_logits": "MatMulNBits",
    }  # fmt: skip


def test_a_weight_that_two_products_share_is_stored_once() -> None:
    text = "m (float[n, 64] x) => (float[n, 64] logits) { h = MatMul(x, w)\nt = Tanh(h)\nlogits = MatMul(t, w) }"
    model = parse(text, {"w": draw(64, 64)}, lazy=True)
    apply(quantize(), model)
    first, second = (node for node in model.graph if node.op_type == "MatMulNBits")
    assert first.inputs[1] is second.inputs[1]


def test_the_head_is_the_product_nearest_to_the_logits() -> None:
    """Also under a cap on the logits."""
    capped = "head = MatMul(down, head_w)\nratio = Div(head, cap)\nbent = Tanh(ratio)\nlogits = Mul(cap, bent)"
    model = parse(TEXT % capped, {**weights(), "cap": np.asarray(30.0, np.float32)}, lazy=True)
    assert apply(quantize(bits=8, head_bits=4), model).fired == {"embedding": 1, "linear": 2, "head": 1}
    bits = [node.attributes.get_int("bits") for node in model.graph if node.op_type == "MatMulNBits"]
    assert bits == [8, 8, 4]
    assert node_of(model, "GatherBlockQuantized").attributes.get_int("bits") == 4


def test_nothing_is_read_while_the_graph_is_rewritten() -> None:
    class Unread(LazyWeight):
        def rows(self, start: int, stop: int) -> Array:
            raise AssertionError("a weight was read")

    model = make()
    for value in model.graph.initializers.values():
        if value.shape is not None and len(value.shape) == 2:
            shape = [int(d) for d in value.shape.numpy()]
            transposed = value.name != "table"
            value.const_value = Unread(shape[::-1] if transposed else shape, ir.DataType.FLOAT, transposed=transposed)
    assert quantize(symmetric=False)(model).modified


@pytest.mark.parametrize(
    ("axis", "shape", "reasons"),
    [
        (1, (64, 80), ["it does not look up rows"]),
        (0, (80, 72), ["its width 72 is no multiple of the block size 32"]),
        (0, (127, 32), []),
    ],
    ids=["columns", "width", "small"],
)
def test_look_ups_that_stay(axis: int, shape: tuple[int, int], reasons: list[str]) -> None:
    lookup = f"y = Gather<axis={axis}>(t, ids)"
    text = f"m (int64[n] ids, float[n, 64] z) => (y, float[n, 64] logits) {{ {lookup}\nlogits = Tanh(z) }}"
    model = parse(text, {"t": draw(*shape)})
    result = quantize()(model)
    assert result.tally.expected == ({"embedding": 1} if reasons else {})
    assert left_alone(quantize(), model) == reasons


def test_a_table_of_4096_elements_is_an_embedding() -> None:
    text = "m (int64[n] ids, float[n, 64] z) => (y, logits) { y = Gather(t, ids)\nlogits = Tanh(z) }"
    assert apply(quantize(), parse(text, {"t": draw(128, 32)})).fired == {"embedding": 1}


@pytest.mark.parametrize(
    "body",
    [
        "logits = MatMul(x, z)",
        "logits = llmc.MatMul(x, w)",
        "logits = llmc.Gather(w, rows)",
        "logits = Gather(experts, rows)",
        "logits = MoE(x, z, experts)",
        "t = Transpose<perm=[1,0]>(z)\nu = MatMul(x, t)\nlogits = MatMul(u, z)",
        "logits = MatMul(x, experts)",
        "same = Transpose<perm=[0,1]>(w)\nlogits = MatMul(x, same)",
    ],
    ids=[
        "activation", "another domain", "another look-up", "a stack that is looked up in",
        "experts of another domain", "transposed activation", "three axes", "no transpose",
    ],
)  # fmt: skip
def test_products_that_stay(body: str) -> None:
    text = f"m (float[64, 64] x, float[64, 64] z, int64[n] rows) => (logits) {{ {body} }}"
    model = parse(text, {"experts": draw(2, 64, 64), "w": draw(64, 64)})
    assert left_alone(quantize(), model) == []
