"""``--strict``: passes on what transformers traces, and names node and condition when one layer is different."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.artifact import open_artifact, write_manifest
from llmc.compiler.driver import export, optimize
from llmc.compiler.errors import FusionContractError
from llmc.compiler.options import ExportOptions, OptimizeOptions
from llmc.passes.graph_query import producer, small_initializer

from .conftest import BOTH, Built

LAYERS, LAYER = 3, 1


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama, exported."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("contract")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    export(str(folder / "model"), folder / "portable", ExportOptions())
    return folder / "portable"


def tampered(portable: Path, output: Path, change: Callable[[ir.Model], None]) -> Path:
    """A copy of the artifact whose graph is changed, under an honest manifest."""
    shutil.copytree(portable, output)
    model = ir.load(output / "model.onnx")
    change(model)
    model.graph.sort()
    onnx.save_model(ir.to_proto(model), output / "model.onnx")
    write_manifest(output, replace(open_artifact(portable).manifest, files={}))
    return output


def find(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def insert_after(model: ir.Model, value: ir.Value, user: ir.Node, node: ir.Node) -> None:
    """Put ``node`` between a value and one of its users."""
    node.outputs[0].dtype, node.outputs[0].shape = value.dtype, value.shape
    model.graph.insert_before(user, node)
    for index, given in enumerate(user.inputs):
        if given is value:
            user.replace_input_with(index, node.outputs[0])


def no_rotary(model: ir.Model) -> None:
    attention = find(model, f"model.layers.{LAYER}.self_attn/CachedAttention")
    transposed = producer(producer(attention.inputs[0], "Reshape").inputs[0], "Transpose")
    rotary = producer(transposed.inputs[0], "RotaryEmbedding")
    transposed.replace_input_with(0, rotary.inputs[0])


def other_angles(model: ir.Model) -> None:
    attention = find(model, f"model.layers.{LAYER}.self_attn/CachedAttention")
    transposed = producer(producer(attention.inputs[1], "Reshape").inputs[0], "Transpose")
    rotary = producer(transposed.inputs[0], "RotaryEmbedding")
    half = small_initializer(model.graph, "half", np.asarray(0.5, np.float32))
    insert_after(model, rotary.inputs[1], rotary, ir.node("Mul", [rotary.inputs[1], half], name="slower"))


def other_input(model: ir.Model) -> None:
    product = find(model, f"model.layers.{LAYER}.self_attn.k_proj/MatMul")
    insert_after(model, product.inputs[0], product, ir.node("Neg", [product.inputs[0]], name="turned"))


def cast_before_norm(model: ir.Model) -> None:
    norm = find(model, f"model.layers.{LAYER}.post_attention_layernorm/RMSNormalization")
    insert_after(
        model, norm.inputs[0], norm, ir.node("Cast", [norm.inputs[0]], {"to": 1, "saturate": 1}, name="between")
    )


def constant_residual(model: ir.Model) -> None:
    norm = find(model, f"model.layers.{LAYER}.post_attention_layernorm/RMSNormalization")
    add = producer(norm.inputs[0], "Add")
    add.replace_input_with(1, small_initializer(model.graph, "constant", np.full((1, 1, 64), 0.1, np.float32)))


def broken_gate(model: ir.Model) -> None:
    gate = find(model, f"model.layers.{LAYER}.mlp.gate_proj/MatMul")
    uses = list(gate.outputs[0].uses())
    two = small_initializer(model.graph, "two", np.asarray(2.0, np.float32))
    doubled = ir.node("Mul", [gate.outputs[0], two], name="doubled")
    doubled.outputs[0].dtype, doubled.outputs[0].shape = gate.outputs[0].dtype, gate.outputs[0].shape
    model.graph.insert_after(gate, doubled)
    for use in uses:
        use.node.replace_input_with(use.idx, doubled.outputs[0])


@pytest.mark.parametrize(
    ("change", "node", "condition"),
    [
        (no_rotary, "self_attn/CachedAttention", "not from a rotary embedding"),
        (other_angles, "self_attn/CachedAttention", "rotated by different angles"),
        (other_input, "self_attn/CachedAttention", "do not read the same input"),
        (constant_residual, "post_attention_layernorm/RMSNormalization", "adds a constant"),
        (broken_gate, "mlp/Mul", "no projection with a constant weight"),
    ],
)
def test_one_different_layer_is_named(
    portable: Path, tmp_path: Path, change: Callable[[ir.Model], None], node: str, condition: str
) -> None:
    copy = tampered(portable, tmp_path / "tampered", change)
    (copy / "golden.npz").unlink()
    write_manifest(copy, replace(open_artifact(portable).manifest, files={}))
    with pytest.raises(FusionContractError, match=condition) as caught:
        optimize(copy, tmp_path / "strict", OptimizeOptions(strict=True))
    assert f"model.layers.{LAYER}.{node}" in str(caught.value)
    assert caught.value.exit_code == 6
    assert not (tmp_path / "strict").exists()
    report = optimize(copy, tmp_path / "lenient", OptimizeOptions())
    assert [sentence for sentence in report.shortfalls if f"model.layers.{LAYER}.{node}" in sentence]


def test_a_cast_that_changes_nothing_is_removed(portable: Path, tmp_path: Path) -> None:
    copy = tampered(portable, tmp_path / "tampered", cast_before_norm)
    assert not optimize(copy, tmp_path / "strict", OptimizeOptions(strict=True)).shortfalls


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_the_optimized_graph(built: Built) -> None:
    graph = onnx.load(built.target() / "model.onnx", load_external_data=False).graph
    count = Counter(node.op_type for node in graph.node)
    geometry = open_artifact(built.target()).manifest.model
    assert count["GroupQueryAttention"] == geometry.num_layers
    head_norms = 2 * geometry.num_layers if geometry.model_type == "gemma3_text" else 0
    sites = {"llama": 2 * geometry.num_layers + 1, "gemma3_text": 4 * geometry.num_layers + 1}[geometry.model_type]
    assert count["SkipSimplifiedLayerNormalization"] + count["RMSNormalization"] == sites + head_norms
    assert count["CachedAttention"] == count["RotaryEmbedding"] == count["Transpose"] == 0
    if geometry.model_type == "llama":
        assert count["Reshape"] == 0
        # One Split a layer, of the packed gate and up projection.
        assert count["Split"] == geometry.num_layers
