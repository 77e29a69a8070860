"""Inputs that the parser leaves out are found, and nothing else is: networks made by hand, and the parser's own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.tensorrt.bindings import Library, open_library
from llmc.runtimes.tensorrt.engine_graph import read_engine_graph
from llmc.runtimes.tensorrt.lost_inputs import lost_inputs, require_nothing_lost

from ...passes.plans import in_standard
from ...tensorrt_rtx import needs_tensorrt_rtx
from .stub_network import Layer, Parsed, Tensor
from .tiny_graph import graph_directory

HEADER = '<ir_version: 10, opset_import: ["" : 23]> m '
CONSTANTS = """(float[2, 3] x) => (float[2, 3] y)
    <float[2] pair = {1, 2}, float[1] one = {1}, float scalar = {1}, int64[2] shape = {2, 3}, int64[2] axis = {0, 1},
     int64[1, 2] table = {0, 1}, bool[2] flags = {1, 0}, int8[2] zeros = {0, 0},
     int8[2, 3] bytes = {1, 2, 3, 4, 5, 6}, float[2, 3] weights = {1, 2, 3, 4, 5, 6}> { BODY }"""


def parse(text: str) -> onnx.ModelProto:
    """Nodes bear their first output's name."""
    model = onnx.parser.parse_model(HEADER + text)
    for node in model.graph.node:
        node.name = f"node {node.output[0]}"
    return model


def missing(parsed: Parsed) -> list[str]:
    return [str(item) for item in lost_inputs(parsed.network, parsed, parsed.model)]


def drop(text: str, value: str, index: int, **fields: object) -> list[str]:
    """What is lost where the layer of the node that makes ``value`` lacks one input; nothing is where it has all."""
    assert missing(Parsed(parse(text), **fields)) == []  # type: ignore[arg-type]
    return missing(Parsed(parse(text), [(f"node {value}", index)], **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "index", "found"),
    [
        ("y = Mul(x, pair)", 1, "input B (pair) of Mul node y"),
        ("y = Mul(x, one)", 1, None),
        ("y = Mul(x, scalar)", 1, None),
        ("y = Mul(x, weights)", 1, "input B (weights) of Mul node y"),
        ("y = Mul(x, weights)", 0, "input A (x) of Mul node y"),
        ("y = Reshape(x, shape)", 1, None),
        ("y = Gather(x, axis)", 1, None),
        ("y = Gather(x, table)", 1, "input indices (table) of Gather node y"),
        ("y = Where(flags, x, x)", 0, None),
        ("y = DequantizeLinear<axis=0>(bytes, pair, zeros)", 2, None),
        ("y = DequantizeLinear<axis=0>(bytes, pair, zeros)", 1, "input x_scale (pair) of DequantizeLinear node y"),
        ("y = QuantizeLinear<axis=0>(x, pair, zeros)", 2, None),
        ("y = QuantizeLinear<axis=0>(x, pair, zeros)", 1, "input y_scale (pair) of QuantizeLinear node y"),
        ("y = Concat<axis=0>(x, weights)", 1, "input inputs[1] (weights) of Concat node y"),
    ],
)
def test_constants(body: str, index: int, found: str | None) -> None:
    """Of one element, small integers and zero points become parameters of a layer."""
    assert drop(CONSTANTS.replace("BODY", body), "y", index) == ([found] if found else [])


def test_a_constant_is_known_by_its_layer_s_name() -> None:
    """The parser may give it a number; a longer name that begins alike is another's."""
    text = CONSTANTS.replace("BODY", "y = Mul(x, pair)")
    for name, expected in (("pair", []), ("pair_12", []), ("pairs", ["pair"]), ("pair_12_b", ["pair"])):
        parsed = Parsed(parse(text))
        parsed.rename_layer("pair", name)
        assert [item.value for item in lost_inputs(parsed.network, parsed, parsed.model)] == expected


INPUTS = """(float[2, 3] x, float[2, 3] z, int64[2] n) => (float[2, 3] y)
    <int64[1] axis = {0}, int64[2] start = {1, 1}> { BODY }"""


def test_an_input_that_another_node_reads_is_lost_all_the_same() -> None:
    text = INPUTS.replace("BODY", "a = Add(x, z) b = Mul(x, z) y = Add(a, b)")
    assert drop(text, "b", 1) == ["input B (z) of Mul node b"]


def test_an_input_that_another_value_was_made_of_is_lost_all_the_same() -> None:
    """Layers are followed to the values that the node reads, and no further."""
    text = INPUTS.replace("BODY", "a = Mul(x, z) y = Add(a, x)")
    assert drop(text, "y", 1) == ["input B (x) of Add node y"]


def test_layers_between_are_followed() -> None:
    """A node may become several layers."""
    model = parse(INPUTS.replace("BODY", "y = Add(x, z)"))
    parsed = Parsed(model)
    parsed.network.layers = [
        Layer("first", inputs=(Tensor("x"),), outputs=(Tensor("inner"),)),
        Layer("node y", inputs=(Tensor("inner"), Tensor("z")), outputs=(Tensor("y"),)),
    ]
    assert missing(parsed) == []
    parsed.network.layers[0] = Layer("first", inputs=(), outputs=(Tensor("inner"),))
    assert missing(parsed) == ["input A (x) of Add node y"]


@pytest.mark.parametrize(
    ("body", "fields", "found"),
    [
        ("s = Shape(z) y = Reshape(x, s)", {"integers": {"s"}}, None),
        ("s = Shape(z) y = Reshape(x, s)", {"integers": {"s"}, "ranks": {"s": 2}}, "shape (s) of Reshape node y"),
        ("s = Shape(z) y = Reshape(x, s)", {}, "shape (s) of Reshape node y"),
        ("t = Shape(z) s = Mul(t, start) y = Reshape(x, s)", {"integers": {"s", "t"}}, None),
        ("t = Shape(z) s = Mul(t, n) y = Reshape(x, s)", {"integers": {"s", "t"}}, "shape (s) of Reshape node y"),
        ("y = Reshape(x, n)", {}, "shape (n) of Reshape node y"),
    ],
)
def test_what_is_computed_from_shapes(body: str, fields: dict[str, object], found: str | None) -> None:
    """Integers of at most one dimension from shapes and constants alone."""
    fields = {**fields, "integers": frozenset(fields.get("integers", ()))}  # type: ignore[call-overload]
    assert drop(INPUTS.replace("BODY", body), "y", 1, **fields) == ([f"input {found}"] if found else [])


def test_what_a_body_reads_need_only_be_read() -> None:
    """A loop's layers are not followed from its outputs."""
    body = """graph (int64 i, bool go, float[2, 3] held) => (bool go2, float[2, 3] next)
        { go2 = Identity(go) next = Add(held, held) }"""
    text = f"""(float[2, 3] x, int64 count, bool begin) => (float[2, 3] y)
        {{ y = Loop(count, begin, x) <body = {body}> }}"""
    parsed = Parsed(parse(text))
    loop = next(layer for layer in parsed.network.layers if layer.name == "node y")
    parsed.network.layers = [
        Layer("recurrence", inputs=loop.inputs, outputs=(Tensor("inside"),)),
        Layer("node y", inputs=(), outputs=loop.outputs),
    ]
    assert missing(parsed) == []
    parsed.network.layers[0] = Layer("recurrence", inputs=loop.inputs[:2], outputs=(Tensor("inside"),))
    assert missing(parsed) == ["input v_initial (x) of Loop node y"]


@pytest.mark.parametrize(("count", "end"), [(1, "node a; "), (3, "node c; "), (4, "node c and 1 more; ")])
def test_an_error_names_three(count: int, end: str) -> None:
    names = "abcd"[:count]
    body = " ".join(f"{name} = Mul(x, z)" for name in names) + f" y = Sum({', '.join(names)})"
    parsed = Parsed(parse(INPUTS.replace("BODY", body)), [(f"node {name}", 1) for name in names])
    assert len(missing(parsed)) == count
    with pytest.raises(EngineError) as raised:
        require_nothing_lost("TensorRT", parsed.network, parsed, parsed.model)
    assert end in str(raised.value)
    require_nothing_lost("TensorRT", Parsed(parsed.model).network, Parsed(parsed.model), parsed.model)


# --- the parser's own networks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lost")


@pytest.fixture
def library() -> Library:
    return open_library("tensorrt-rtx")


def lost(library: Library, model: onnx.ModelProto, path: Path) -> list[str]:
    builder = library.module.Builder(library.logger)
    network = library.make_network(builder)
    parser = library.module.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString(), str(path)), library.messages.errors
    return [str(item) for item in lost_inputs(network, parser, model)]


@needs_tensorrt_rtx
@pytest.mark.parametrize(
    ("model_type", "config", "weights"),
    [
        ("llama", {}, None),
        ("gemma2", {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}, None),
        ("llama", {"tie_word_embeddings": True}, "int4"),
        ("bloom", {"n_layer": 2, "n_head": 4}, None),
    ],
)
def test_whole_decoders_lose_nothing(
    folder: Path, library: Library, model_type: str, config: dict[str, object], weights: str | None
) -> None:
    quantization = in_standard("int4", "int8", 32) if weights else None
    made = graph_directory(folder, "fp16", quantization, model_type, config=tuple(config.items()))
    graph = read_engine_graph(made / "engine.onnx")
    assert lost(library, graph.at_capacity(64), graph.path) == []


def with_ignored_lengths(model: onnx.ModelProto) -> list[str]:
    """Give every Attention the input that the parser takes and drops; the nodes' names."""
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    for node in attention:
        node.input.extend([""] * (6 - len(node.input)))
        node.input.append("past_lengths")
    return [node.name for node in attention]


@needs_tensorrt_rtx
def test_an_input_that_the_parser_drops_is_found(folder: Path, library: Library) -> None:
    """Attention's ``nonpad_kv_seqlen``: accepted, and not in the network."""
    graph = read_engine_graph(graph_directory(folder, "fp16") / "engine.onnx")
    model = graph.at_capacity(64)
    names = with_ignored_lengths(model)
    assert lost(library, model, graph.path) == [
        f"input nonpad_kv_seqlen (past_lengths) of Attention {name}" for name in names
    ]


@needs_tensorrt_rtx
def test_a_build_with_a_lost_input_fails_with_the_nodes_name(folder: Path, tmp_path: Path) -> None:
    from llmc.compiler.base.options import EngineOptions
    from llmc.runtimes.session.engine import BuildRequest
    from llmc.runtimes.tensorrt.engine import TensorRTRtx

    made = graph_directory(folder, "fp16")
    model = onnx.load(made / "engine.onnx", load_external_data=False)
    names = with_ignored_lengths(model)
    (tmp_path / "model.onnx.data").symlink_to(made / "model.onnx.data")
    onnx.save_model(model, tmp_path / "engine.onnx")
    with pytest.raises(
        EngineError, match=rf"leaves out input nonpad_kv_seqlen \(past_lengths\) of Attention {names[0]}"
    ):
        TensorRTRtx().build(BuildRequest(tmp_path / "engine.onnx", None, tmp_path, EngineOptions(capacities=(64,))))
    assert not list(tmp_path.glob("*.plan"))


TEXTS = {
    # The parser computes shapes and parameters itself: nothing of these is lost.
    "shapes": """t (float16[2, n, 8] x) => (float16[b, n, 4] y)
        <int64[3] shape = {0, 0, 4}, int64[1] first = {0}, int64[1] last = {4}, int64[1] axis = {2}> {
            part = Slice(x, first, last, axis)
            same = Shape(x)
            flat = Reshape(part, shape)
            y = Identity(flat)
        }""",
    "constants": """t (float16[2, 8] x) => (float16[2, 8] y) <float16[8] a = {1, 2, 3, 4, 5, 6, 7, 8}> {
            b = Add(a, a)
            y = Mul(x, b)
        }""",
    "twice": """t (float16[2, 8] x) => (float16[2, 8] y) { y = Mul(x, x) }""",
}


@needs_tensorrt_rtx
@pytest.mark.parametrize("name", TEXTS)
def test_what_the_parser_computes_itself_is_not_lost(library: Library, name: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {TEXTS[name]}')
    for index, node in enumerate(model.graph.node):
        node.name = f"node {index}"
    assert lost(library, model, Path("model.onnx")) == []


@needs_tensorrt_rtx
def test_an_error_names_the_first_three(folder: Path, library: Library) -> None:
    graph = read_engine_graph(graph_directory(folder, "fp16") / "engine.onnx")
    model = graph.at_capacity(64)
    with_ignored_lengths(model)
    extra = [helper.make_node("Identity", [f"lost {i}"], [f"kept {i}"], name=f"n{i}") for i in range(3)]
    network, parser = parsed(library, model, graph.path)
    model.graph.node.extend(extra)
    model.graph.input.extend(helper.make_tensor_value_info(f"lost {i}", TensorProto.FLOAT, [2]) for i in range(3))
    with pytest.raises(EngineError) as raised:
        require_nothing_lost("TensorRT-RTX", network, parser, model)
    assert "input input (lost 0) of Identity n0 and 2 more" in str(raised.value)
    assert "lost 1" not in str(raised.value)


def parsed(library: Library, model: onnx.ModelProto, path: Path) -> tuple[object, object]:
    builder = library.module.Builder(library.logger)
    network = library.make_network(builder)
    parser = library.module.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString(), str(path)), library.messages.errors
    return network, parser
