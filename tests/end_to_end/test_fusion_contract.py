"""The fusion contract: every site is fused, or ``--strict`` names the node and the condition that failed.

Real models for the counts. For the failures, a tiny Llama of three layers whose middle layer is tampered with in the
portable graph: the tampered graph is a model of its own, and without ``--strict`` the target still computes what it
computes.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import InlinePass
from typer.testing import CliRunner

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.base.errors import FusionContractError
from llmc.compiler.base.options import ExportOptions, OptimizeOptions
from llmc.compiler.cli.app import app
from llmc.compiler.driver.driver import export, optimize
from llmc.runtimes.engines import open_session

from .conftest import BOTH, Built
from .oracle import PortableGraph
from .tiny import SIZES, save_model

LAYER = "model.layers.1"


def operators(directory: Path) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(directory / "model.onnx").graph)


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_one_attention_a_layer_and_one_norm_a_site(built: Built) -> None:
    """And ``strict``, with which the fixture optimizes, passes."""
    count = operators(built.target())
    layers = open_artifact(built.target()).manifest.model.num_layers
    norms = sum("RMSNorm" in type(module).__name__ for module in built.empty.modules())
    assert count["GroupQueryAttention"] == layers
    assert count["SkipSimplifiedLayerNormalization"] + count["RMSNormalization"] == norms
    assert count["CachedAttention"] == count["RotaryEmbedding"] == count["Transpose"] == 0
    # Of the packed gate and up projections.
    assert count["Split"] == layers


def test_nothing_moves_around_a_llamas_attention(smollm2: Built) -> None:
    graph = ir.load(smollm2.target() / "model.onnx").graph
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    for node in attentions:
        assert node.inputs[0] is not None
        neighbours = [node.inputs[0].producer(), *(use.node for use in node.outputs[0].uses())]
        assert [neighbour.op_type for neighbour in neighbours if neighbour is not None] == ["MatMul", "MatMul"]
    assert operators(smollm2.target())["Reshape"] == 0


def test_int4_passes_strictly(smollm2: Built) -> None:
    count = operators(smollm2.target(precision="int4"))
    assert count["MatMul"] == count["Gather"] == 0 or count["MatMulNBits"] > 0


# --- one tampered layer ---------------------------------------------------------------------------------------------


def find(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == f"{LAYER}{name}")


def constant(model: ir.Model, name: str, values: float | list[float]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.asarray(values, np.float32), name=name))
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(np.shape(values))
    model.graph.register_initializer(value)
    return value


def insert(node: ir.Node, index: int, op_type: str, *others: ir.Value) -> None:
    """Put ``op_type(input, *others)`` before the node's input ``index``."""
    source = node.inputs[index]
    assert source is not None
    assert node.graph is not None
    made = ir.node(op_type, [source, *others], name=f"tampered/{op_type}")
    made.outputs[0].type, made.outputs[0].shape = source.type, source.shape
    node.graph.insert_before(node, made)
    node.replace_input_with(index, made.outputs[0])


def no_rotation_of_the_key(model: ir.Model) -> None:
    rotary = find(model, ".self_attn/RotaryEmbedding.1")
    assert rotary.inputs[0] is not None
    rotary.outputs[0].replace_all_uses_with(rotary.inputs[0])
    model.graph.remove(rotary, safe=True)


def other_angles_for_the_query(model: ir.Model) -> None:
    insert(find(model, ".self_attn/RotaryEmbedding"), 1, "Mul", constant(model, "half", 0.5))


def a_scaled_query(model: ir.Model) -> None:
    insert(find(model, ".self_attn/Transpose.2"), 0, "Mul", constant(model, "twice", 2.0))


def a_product_before_a_norm(model: ir.Model) -> None:
    insert(find(model, ".post_attention_layernorm/RMSNormalization"), 0, "Mul", constant(model, "twice", 2.0))


def a_cast_before_a_norm(model: ir.Model) -> None:
    norm = find(model, ".post_attention_layernorm/RMSNormalization")
    insert(norm, 0, "Cast")
    made = norm.inputs[0]
    assert made is not None
    made.producer().attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))  # type: ignore[union-attr]


def a_residual_that_is_a_constant(model: ir.Model) -> None:
    values = constant(model, "residual", np.linspace(-1, 1, SIZES["hidden_size"]).tolist())
    find(model, "/Add").replace_input_with(0, values)


def a_key_of_another_input(model: ir.Model) -> None:
    insert(find(model, ".self_attn.k_proj/MatMul"), 0, "Mul", constant(model, "twice", 2.0))


def a_value_that_is_no_projection(model: ir.Model) -> None:
    insert(find(model, ".self_attn/CachedAttention"), 2, "Tanh")


def a_gate_of_another_input(model: ir.Model) -> None:
    insert(find(model, ".mlp.gate_proj/MatMul"), 0, "Mul", constant(model, "twice", 2.0))


def an_up_projection_that_is_scaled(model: ir.Model) -> None:
    insert(find(model, ".mlp/Mul"), 1, "Mul", constant(model, "twice", 2.0))


def another_activation(model: ir.Model) -> None:
    product = find(model, ".mlp/Mul")
    gate = find(model, ".mlp.gate_proj/MatMul").outputs[0]
    softplus = ir.node("Softplus", [gate], name="tampered/Softplus")
    softplus.outputs[0].type, softplus.outputs[0].shape = gate.type, gate.shape
    model.graph.insert_before(product, softplus)
    product.replace_input_with(0, softplus.outputs[0])


def attention_in_standard_operators(model: ir.Model) -> None:
    """The operator's body in the place of the call."""
    node = find(model, ".self_attn/CachedAttention")
    node.op_type = "InlinedAttention"
    body = model.functions[("llmc", "CachedAttention", "")].clone()
    body.name = "InlinedAttention"
    model.functions[body.identifier()] = body
    InlinePass(criteria=lambda function: function.name == "InlinedAttention")(model)


@dataclass(frozen=True)
class Tamper:
    """What is done to the graph, and what is said about it."""

    change: Callable[[ir.Model], None]
    graph_pass: str
    node: str
    reason: str


TAMPERS = [
    Tamper(no_rotation_of_the_key, "FuseRotary", "CachedAttention", "its key comes from MatMul, not from a rotary"),
    Tamper(other_angles_for_the_query, "FuseRotary", "CachedAttention", "rotated by different angles"),
    Tamper(a_scaled_query, "FuseRotary", "CachedAttention", "its query comes from Mul, not from a rotary embedding"),
    Tamper(a_product_before_a_norm, "FuseSkipNorm", "RMSNormalization", "Mul lies between it and the addition"),
    Tamper(a_residual_that_is_a_constant, "FuseSkipNorm", "RMSNormalization", "adds a constant"),
    Tamper(a_key_of_another_input, "PackQKV", "CachedAttention", "do not read the same input"),
    Tamper(
        a_value_that_is_no_projection, "PackQKV", "CachedAttention", "its value comes from Tanh, not a projection"
    ),
    Tamper(a_gate_of_another_input, "PackGateUp", "mlp/Mul", "do not read the same input"),
    Tamper(an_up_projection_that_is_scaled, "PackGateUp", "mlp/Mul", "is no projection with a constant weight"),
    Tamper(another_activation, "PackGateUp", "mlp/Mul", "neither Softplus nor MatMul is an activation"),
]


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tampered")
    source = save_model(folder / "hf", num_hidden_layers=3)
    export(str(source), folder / "portable", ExportOptions(verify="off"))
    return folder / "portable"


@pytest.fixture
def tampered(portable: Path, tmp_path: Path) -> Callable[[Callable[[ir.Model], None]], Path]:
    def tamper(change: Callable[[ir.Model], None]) -> Path:
        directory = tmp_path / "tampered"
        shutil.copytree(portable, directory)
        model = ir.load(directory / "model.onnx")
        change(model)
        ir.save(model, directory / "model.onnx")
        write_manifest(directory, open_artifact(portable).manifest)
        return directory

    return tamper


def test_the_graph_is_fused_when_nobody_tampers(portable: Path, tmp_path: Path) -> None:
    report = optimize(portable, tmp_path / "out", OptimizeOptions(strict=True))
    assert report.shortfalls == ()


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.change.__name__)
def test_strict_names_node_and_condition(
    tampered: Callable[[Callable[[ir.Model], None]], Path], tmp_path: Path, tamper: Tamper
) -> None:
    directory = tampered(tamper.change)
    with pytest.raises(FusionContractError) as raised:
        optimize(directory, tmp_path / "strict", OptimizeOptions(strict=True))
    assert not (tmp_path / "strict").exists()
    sentences = [sentence for sentence in str(raised.value).split("; ") if LAYER in sentence]
    assert any(tamper.node in sentence and tamper.reason in sentence for sentence in sentences), str(raised.value)
    assert re.search(rf"{tamper.graph_pass}: \w+ fired \d+ of \d+ times", str(raised.value))


@pytest.mark.parametrize("tamper", TAMPERS, ids=lambda tamper: tamper.change.__name__)
@pytest.mark.parametrize("cache", ["grow", "shared"])
def test_without_strict_the_numbers_are_right(
    tampered: Callable[[Callable[[ir.Model], None]], Path], tmp_path: Path, tamper: Tamper, cache: str
) -> None:
    """A ragged batch, then a decode step."""
    directory = tampered(tamper.change)
    options = OptimizeOptions(cache=cache, logits="all")  # type: ignore[arg-type]
    report = optimize(directory, tmp_path / "out", options)
    assert report.shortfalls
    assert_same_numbers(directory, tmp_path / "out")


def assert_same_numbers(portable: Path, target: Path) -> None:
    lengths, random = np.array([9, 4]), np.random.default_rng(0)
    prompt = random.integers(3, SIZES["vocab_size"], (2, 9))
    after = random.integers(3, SIZES["vocab_size"], (2, 1))
    graph, session = PortableGraph(portable), open_session(target, threads=1)
    graph.reset(2)
    mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    expected = [graph.forward(prompt, mask), graph.forward(after, np.ones_like(after))]
    session.reset(2, 16)
    actual = [session.forward(prompt, lengths).host().copy(), session.forward(after).host()]
    valid = mask == 1
    np.testing.assert_allclose(actual[0][valid], expected[0][valid], rtol=0, atol=1e-4)
    np.testing.assert_allclose(actual[1], expected[1], rtol=0, atol=1e-4)
    session.close()


def test_attention_that_is_no_node(tampered: Callable[[Callable[[ir.Model], None]], Path], tmp_path: Path) -> None:
    """Then no attention is lowered: the caches of one kind and the other are not laid out alike."""
    directory = tampered(attention_in_standard_operators)
    reason = "it makes present.1.key, but is Concat and no attention"
    with pytest.raises(FusionContractError, match=reason):
        optimize(directory, tmp_path / "strict", OptimizeOptions(cache="grow", strict=True))
    for cache in ("grow", "shared"):
        optimize(directory, tmp_path / cache, OptimizeOptions(cache=cache, logits="all"))  # type: ignore[arg-type]
        # Such attention makes a longer tensor of the past and the new: its cache grows, whatever was asked for.
        assert open_artifact(tmp_path / cache).manifest.contract.cache == "grow"
        assert_same_numbers(directory, tmp_path / cache)


def test_a_cast_that_changes_nothing_is_no_obstacle(
    tampered: Callable[[Callable[[ir.Model], None]], Path], tmp_path: Path
) -> None:
    directory = tampered(a_cast_before_a_norm)
    assert optimize(directory, tmp_path / "out", OptimizeOptions(strict=True)).shortfalls == ()


def test_the_command_exits_with_the_sentence(
    tampered: Callable[[Callable[[ir.Model], None]], Path], tmp_path: Path
) -> None:
    directory = tampered(a_key_of_another_input)
    result = CliRunner().invoke(app, ["optimize", str(directory), "-o", str(tmp_path / "out"), "--strict", "-q"])
    assert result.exit_code == FusionContractError.exit_code
    assert f"{LAYER}.self_attn/CachedAttention: its projections do not read the same input" in result.output
    assert not (tmp_path / "out").exists()
