"""Inputs that TensorRT-RTX's parser leaves out are found, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from llmc.compiler.errors import EngineError
from llmc.passes.quantize_standard import QuantizeStandard
from llmc.runtimes.tensorrt.bindings import Library, open_library
from llmc.runtimes.tensorrt.engine_graph import read_engine_graph
from llmc.runtimes.tensorrt.lost_inputs import lost_inputs, require_nothing_lost

from ...tensorrt_rtx import needs_tensorrt_rtx
from .tiny_graph import graph_directory

pytestmark = needs_tensorrt_rtx


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
    quantization = QuantizeStandard("int4", "int8", 32) if weights else None
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


def test_an_input_that_the_parser_drops_is_found(folder: Path, library: Library) -> None:
    """Attention's ``nonpad_kv_seqlen``: accepted, and not in the network."""
    graph = read_engine_graph(graph_directory(folder, "fp16") / "engine.onnx")
    model = graph.at_capacity(64)
    names = with_ignored_lengths(model)
    assert lost(library, model, graph.path) == [
        f"input nonpad_kv_seqlen (past_lengths) of Attention {name}" for name in names
    ]


def test_a_build_with_a_lost_input_fails_with_the_nodes_name(folder: Path, tmp_path: Path) -> None:
    from llmc.compiler.options import EngineOptions
    from llmc.runtimes.tensorrt.capacity_plan import BuildOptions
    from llmc.runtimes.tensorrt.engine import TensorRTRtx

    made = graph_directory(folder, "fp16")
    model = onnx.load(made / "engine.onnx", load_external_data=False)
    names = with_ignored_lengths(model)
    (tmp_path / "model.onnx.data").symlink_to(made / "model.onnx.data")
    onnx.save_model(model, tmp_path / "engine.onnx")
    with pytest.raises(
        EngineError, match=rf"leaves out input nonpad_kv_seqlen \(past_lengths\) of Attention {names[0]}"
    ):
        TensorRTRtx(BuildOptions(EngineOptions(capacities=(64,)))).build(tmp_path, tmp_path)
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


@pytest.mark.parametrize("name", TEXTS)
def test_what_the_parser_computes_itself_is_not_lost(library: Library, name: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {TEXTS[name]}')
    for index, node in enumerate(model.graph.node):
        node.name = f"node {index}"
    assert lost(library, model, Path("model.onnx")) == []


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
