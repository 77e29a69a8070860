"""The receipt says what the network computes in, beside what was asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from llmc.runtimes.tensorrt.bindings import Library, open_library
from llmc.runtimes.tensorrt.receipt import Receipt, find_unpacked, make_receipt

from ...tensorrt_rtx import HAS_WHEELS
from .stub_network import Layer, Network, Tensor

HEAD = '<ir_version: 10, opset_import: ["": 23]>'
PRODUCTS = f"""{HEAD}
t (float16[n, 32] x) => (float16[n, 2] y, float16[n, n] z, float[n, 2] w)
<float16[32, 2] half, float[32, 2] full, int4[32, 2] packed, float16[2, 2] scales, int8[2, 32] bytes,
 float16[2] steps, float16[1, 2] offsets, int64[1] axis = {{1}}>
{{
    a = MatMul(x, half)
    dequantized = DequantizeLinear<axis=0, block_size=16>(packed, scales)
    b = MatMul(x, dequantized)
    rows = DequantizeLinear<axis=0>(bytes, steps)
    turned = Transpose<perm=[1, 0]>(rows)
    c = MatMul(x, turned)
    sums = ReduceSum<keepdims=1>(x, axis)
    d = MatMul(sums, offsets)
    ab = Add(a, b)
    cd = Add(c, d)
    y = Add(ab, cd)
    other = Transpose<perm=[1, 0]>(x)
    z = MatMul(x, other)
    wide = Cast<to=1>(x)
    w = MatMul(wide, full)
}}"""
NAMES = {"a": "a", "b": "b", "c": "c", "d": "layer/offsets", "z": "z", "w": "w"}


@pytest.fixture(scope="module")
def library() -> Library:
    if not HAS_WHEELS:
        pytest.skip("TensorRT-RTX has no wheels for this platform")
    return open_library("tensorrt-rtx")


def read(library: Library, precision: str | None, text: str = PRODUCTS) -> Receipt:
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for value in model.graph.value_info:
        kind, dims = value.type.tensor_type.elem_type, [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        content = random.integers(1, 8, dims).flatten()
        model.graph.initializer.append(helper.make_tensor(value.name, kind, dims, content))
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.name = NAMES.get(node.output[0], f"node {node.output[0]}")
    builder = library.module.Builder(library.logger)
    network = library.make_network(builder)
    parser = library.module.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString()), library.messages.errors
    return make_receipt(network, model, precision)


def test_weights_and_products_by_type(library: Library) -> None:
    receipt = read(library, None)
    assert receipt.products == {
        "fp16 x fp16": 2,
        "fp16 x fp16 (block offsets)": 1,
        "fp32 x fp32": 1,
        "int4 x fp16": 1,
        "int8 x fp16": 1,
    }
    assert receipt.weight_bytes["int4"] == 32
    assert receipt.weight_bytes["int8"] >= 64
    assert receipt.weight_bytes["fp32"] == 256
    assert receipt.findings == ()


@pytest.mark.parametrize(
    ("precision", "others"),
    [
        ("int4", ["a multiplies weights in fp16", "w multiplies weights in fp32"]),
        (
            "fp16",
            ["b multiplies weights in int4", "c multiplies weights in int8", "w multiplies weights in fp32"],
        ),
    ],
)
def test_products_in_another_precision_than_asked(library: Library, precision: str, others: list[str]) -> None:
    """Offsets of blocks are float whatever the weights are, and z multiplies no weights."""
    assert sorted(read(library, precision).findings) == [f"{other}, asked for {precision}" for other in others]


def test_each_layer_has_the_type_that_the_graph_gives_it(library: Library) -> None:
    records = [record for record in read(library, None).layers if record.asked]
    assert {record.node for record in records} >= {"a", "w", "node wide"}
    assert all(record.asked == record.actual[0] for record in records)
    assert next(record for record in records if record.node == "w").actual == ("fp32",)


def test_another_type_than_the_graphs_is_found(library: Library) -> None:
    """The network of one graph held against another graph."""
    model = onnx.parser.parse_model(f"{HEAD} t (float16[2, 4] x) => (float16[2, 4] y) {{ y = Relu(x) }}")
    model.graph.node[0].name = "relu"
    builder = library.module.Builder(library.logger)
    network = library.make_network(builder)
    assert library.module.OnnxParser(network, library.logger).parse(model.SerializeToString())
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    assert make_receipt(network, model, None).findings == ("relu makes fp16, the graph bf16",)


def test_a_table_that_is_read_by_rows_and_by_a_product_counts_twice(library: Library) -> None:
    text = f"""{HEAD} t (int64[n] ids) => (float16[n, 8] y) <int8[8, 4] table, float16[8] steps> {{
        rows = DequantizeLinear<axis=0>(table, steps)
        embedded = Gather(rows, ids)
        turned = Transpose<perm=[1, 0]>(rows)
        y = MatMul(embedded, turned)
    }}"""
    receipt = read(library, None, text)
    assert (receipt.weight_bytes["int8"], receipt.shared_bytes) == (32, 32)
    assert read(library, None).shared_bytes == 0


def test_an_engine_too_large_for_packed_weights() -> None:
    packed = Receipt("int4", (), {"int4": 100 << 20, "fp16": 50 << 20}, 0, {}, ())
    assert find_unpacked(packed, 160 << 20) is None
    sentence = find_unpacked(packed, 450 << 20)
    assert sentence == "the engine has 472 MB for 157 MB of weights: the builder unpacked small weights"
    assert packed.with_finding(sentence).findings == (sentence,)
    assert find_unpacked(replace(packed, shared_bytes=100 << 20), 410 << 20) is not None
    assert find_unpacked(replace(packed, shared_bytes=100 << 20), 260 << 20) is None
    half = replace(packed, weight_bytes={"fp16": 100 << 20})
    assert find_unpacked(half, 400 << 20) is None


@pytest.mark.parametrize(
    ("kind", "packed", "unpacked"),
    [("int4", 100, 400), ("fp4", 100, 400), ("int8", 200, 400), ("fp8", 200, 400)],
)
def test_half_of_what_unpacking_adds_gives_it_away(kind: str, packed: int, unpacked: int) -> None:
    """In MiB; half floats beside them stay as they are."""
    receipt = Receipt(kind, (), {kind: packed << 20, "fp16": 50 << 20}, 0, {}, ())
    half_way = (packed + unpacked) / 2 + 50
    assert find_unpacked(receipt, int((half_way - 1) * 2**20)) is None
    assert find_unpacked(receipt, int((half_way + 1) * 2**20)) is not None


def test_what_an_engine_holds_twice_is_not_unpacked() -> None:
    """In MiB: 300 would be added, so 150 give it away, beyond the 100 that are there for rows and for products."""
    packed = Receipt("int4", (), {"int4": 100 << 20}, 100 << 20, {}, ())
    assert find_unpacked(packed, (100 + 100 + 149) << 20) is None
    assert find_unpacked(packed, (100 + 100 + 151) << 20) is not None


def test_a_small_engine_s_overhead_gives_nothing_away() -> None:
    """64 MiB beyond the weights are what any engine may have."""
    tiny = Receipt("int4", (), {"int4": 1 << 20}, 0, {}, ())
    assert find_unpacked(tiny, 65 << 20) is None
    assert find_unpacked(tiny, (65 << 20) + 1) is not None


# --- networks made by hand ------------------------------------------------------------------------------------------

NOTHING = onnx.parser.parse_model(f"{HEAD} t (float[1] x) => (float[1] y) {{ y = Identity(x) }}")


def product(name: str, weights: Tensor, activations: Tensor) -> Layer:
    node = f"[ONNX Layer: {name}]"
    return Layer(
        name, "LayerType.MATRIX_MULTIPLY", (activations, weights), (Tensor(f"{name}'s", activations.dtype),), node
    )


def stored(name: str, dtype: str, *shape: int) -> Layer:
    return Layer(name, "LayerType.CONSTANT", (), (Tensor(name, f"DataType.{dtype}", shape),))


def after(layer: Layer, kind: str, dtype: str = "HALF") -> Layer:
    """A layer that passes another's output on in some type."""
    name = f"{layer.name} {kind.lower()}"
    return Layer(name, f"LayerType.{kind}", layer.outputs, (Tensor(name, f"DataType.{dtype}", (2, 2)),))


X = Tensor("x", "DataType.HALF", (1, 2))


def findings(precision: str | None, dtype: str) -> tuple[str, ...]:
    weights = stored("w", dtype, 4, 4)
    read = weights if dtype in {"FLOAT", "HALF", "BF16"} else after(weights, "DEQUANTIZE")
    network = Network([weights, read, product("p", read.outputs[0], X)])
    return make_receipt(network, NOTHING, precision).findings


@pytest.mark.parametrize(
    ("precision", "accepted"),
    [
        ("fp32", {"FLOAT"}),
        ("fp16", {"HALF"}),
        ("bf16", {"BF16"}),
        ("int8", {"INT8"}),
        ("fp8", {"FP8", "INT8"}),
        ("int4", {"INT4", "INT8"}),
        ("nvfp4", {"FP4", "INT8"}),
        (None, {"FLOAT", "HALF", "BF16", "INT8", "FP8", "INT4", "FP4"}),
    ],
)
def test_weights_of_each_precision_that_is_asked_for(precision: str | None, accepted: set[str]) -> None:
    """The output projection may be int8 beside smaller ones."""
    kinds = {"FLOAT", "HALF", "BF16", "INT8", "FP8", "INT4", "FP4"}
    assert {kind for kind in kinds if not findings(precision, kind)} == accepted


def test_bytes_of_constants_are_rounded_up() -> None:
    made = make_receipt(
        Network([stored("a", "INT4", 3, 5), stored("b", "INT4", 3), stored("c", "HALF", 3)]), NOTHING, None
    )
    assert made.weight_bytes == {"int4": 8 + 2, "fp16": 6}


@pytest.mark.parametrize(
    ("dtype", "readers", "shared"),
    [
        ("INT8", ("GATHER", "MATRIX_MULTIPLY"), 16),
        ("INT4", ("GATHER", "MATRIX_MULTIPLY"), 8),
        ("HALF", ("GATHER", "MATRIX_MULTIPLY"), 0),
        ("INT8", ("MATRIX_MULTIPLY", "MATRIX_MULTIPLY"), 0),
        ("INT8", ("GATHER", "GATHER"), 0),
        ("INT8", ("MATRIX_MULTIPLY", "ELEMENTWISE"), 0),
    ],
)
def test_small_tables_that_rows_and_products_read_are_held_twice(
    dtype: str, readers: tuple[str, ...], shared: int
) -> None:
    table = stored("table", dtype, 4, 4)
    scaled = after(table, "DEQUANTIZE")
    layers = [
        Layer(f"reader {index}", f"LayerType.{kind}", (scaled.outputs[0], X), (Tensor(f"{index}"),))
        for index, kind in enumerate(readers)
    ]
    assert make_receipt(Network([table, scaled, *layers]), NOTHING, None).shared_bytes == shared


def test_activations_count_in_the_type_in_which_they_are_multiplied() -> None:
    """After a cast they are what the cast makes; what is quantized and scaled back was multiplied small."""
    weights = stored("w", "HALF", 2, 2)
    source = Layer("x", "LayerType.ACTIVATION", (), (Tensor("x", "DataType.FLOAT", (1, 2)),))
    cast, small = after(source, "CAST", "HALF"), after(source, "QUANTIZE", "INT8")
    scaled = after(small, "DEQUANTIZE", "FLOAT")
    layers = [weights, source, cast, small, scaled]
    for made, kind in ((cast, "fp16 x fp16"), (source, "fp16 x fp32"), (scaled, "fp16 x int8")):
        network = Network([*layers, product("p", weights.outputs[0], made.outputs[0])])
        assert make_receipt(network, NOTHING, None).products == {kind: 1}


def test_it_is_written_and_shown(library: Library, tmp_path: Path) -> None:
    receipt = read(library, "int4")
    assert receipt.to_json()["layers"][0].keys() == {"node", "layer", "asked", "actual"}
    assert set(receipt.summary()) == {"weight_bytes", "products", "findings"}
