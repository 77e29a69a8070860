"""inspect: what is in an artifact or a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import save_file
from typer.testing import Result

from llmc.compiler.cli.tables.inspection_tables import _collapse
from llmc.compiler.insight.inspection import Port

Run = Callable[..., Result]

MODEL = """<ir_version: 10, opset_import: ["" : 23]>
tiny (float[batch, 4] x, float[batch, 2, past, 3] past_0_key, float[batch, 2, past, 3] past_1_key)
 => (float[batch, 4] logits)
<float[4, 4] lm_head = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
{ h = Relu(x)  logits = MatMul(h, lm_head) }"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    ir.save(ir.from_onnx_text(MODEL), tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx"


def test_inspect_any_file(llmc: Run, model_file: Path) -> None:
    result = llmc("inspect", model_file)
    assert result.exit_code == 0, result.stderr
    for words in ("ai.onnx 23", "MatMul", "Relu", "FLOAT[batch, 4]", "past_{0..1}_key", "48 bytes"):
        assert words in result.stdout


def test_operations_and_shares(llmc: Run, tmp_path: Path) -> None:
    """Operations in millions; each kind's bytes as a share of all."""
    text = """<ir_version: 10, opset_import: ["" : 23]>
    tiny (float[batch, 1000] x) => (logits) { g = RMSNormalization(x, scale)  logits = MatMul(g, lm_head) }"""
    model = ir.from_onnx_text(text)
    for name, shape in (("scale", (1000,)), ("lm_head", (1000, 3))):
        value = next(item for node in model.graph for item in node.inputs if item is not None and item.name == name)
        value.const_value = ir.tensor(np.zeros(shape, np.float32), name=name)
        model.graph.register_initializer(value)
    ir.save(model, tmp_path / "model.onnx")
    shown = [" ".join(line.split()) for line in llmc("inspect", tmp_path / "model.onnx").stdout.splitlines()]
    assert "│ FLOPs per token │ 0.0 million with 1024 tokens in the cache │" in shown
    assert "│ norms │ 1 │ 3.9 KiB │ 25.0% │" in shown
    assert "│ head │ 1 │ 11.7 KiB │ 75.0% │" in shown


def test_inspect_json(llmc: Run, model_file: Path) -> None:
    value = json.loads(llmc("inspect", model_file, "--json", "--context", 7).stdout)
    assert value["nodes"] == 2
    assert value["decode"]["context"] == 7
    assert value["decode"]["weight_flops"] == 32
    assert value["manifest"] is None


def test_inspect_diff(llmc: Run, model_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    ir.save(ir.from_onnx_text(MODEL.replace("Relu", "Tanh")), other)
    result = llmc("inspect", model_file, "--diff", other)
    assert result.exit_code == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if "ai.onnx::" in line]
    assert len(rows) == 2
    assert "MatMul" not in result.stdout
    value = json.loads(llmc("inspect", model_file, "--diff", other, "--json").stdout)
    assert {(change["name"], change["left"], change["right"]) for change in value["operators"]} == {
        ("ai.onnx::Relu", 1, 0),
        ("ai.onnx::Tanh", 0, 1),
    }


def test_inspect_diff_of_the_same(llmc: Run, model_file: Path) -> None:
    assert "do not differ" in llmc("inspect", model_file, "--diff", model_file).stdout


@pytest.mark.parametrize("content", [b"not a model", b"", None])
def test_inspect_of_something_else(llmc: Run, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.onnx"
    if content is not None:
        file.write_bytes(content)
    result = llmc("inspect", file)
    assert result.exit_code == 7
    assert str(file) in result.stderr
    assert result.stderr.count("\n") == 1


def test_inspect_context(llmc: Run, model_file: Path) -> None:
    assert llmc("inspect", model_file, "--context", 0).exit_code == 2


def test_inspect_memory(llmc: Run, engine: Path) -> None:
    result = llmc("inspect", engine, "--context", 100, "--batch", "1,32", "--chunk", 10)
    assert result.exit_code == 0, result.stderr
    for words in ("Memory, context 100, chunk 10", "batch 1", "batch 32", "100.0 KiB", "KV cache", "not counted: "):
        assert words in result.stdout
    value = json.loads(llmc("inspect", engine, "--context", 100, "--batch", "1,32", "--json").stdout)
    assert [(plan["batch"], plan["chunk"], plan["kv_cache"]) for plan in value["memory"]] == [
        (1, 100, 100 * 32),
        (32, 100, 32 * 100 * 32),
    ]


def test_inspect_plans_no_memory_unless_asked(llmc: Run, engine: Path) -> None:
    assert "Memory" not in llmc("inspect", engine).stdout
    assert json.loads(llmc("inspect", engine, "--json").stdout)["memory"] == []


@pytest.mark.parametrize("options", [("--batch", "0"), ("--batch", "a"), ("--context", 129, "--batch", 1)])
def test_inspect_refuses_plans_that_cannot_be(llmc: Run, engine: Path, options: tuple[object, ...]) -> None:
    assert llmc("inspect", engine, *options).exit_code == 2


def test_layers_share_a_row() -> None:
    """Of one type; a gap of one layer ends a range."""
    ports = [Port(f"past.{i}.key", "FLOAT", (1, "t")) for i in (0, 1, 2, 4)] + [Port("past.3.key", "FLOAT", (2,))]
    assert _collapse([Port("ids", None, None), *ports]) == [
        ("ids", "?[…]"),
        ("past.{0..2, 4}.key", "FLOAT[1, t]"),
        ("past.3.key", "FLOAT[2]"),
    ]


def test_a_checkpoint_shows_what_its_files_state(llmc: Run, tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    config = {
        "model_type": "mistral",
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
        "num_hidden_layers": 3,
        "sliding_window": 1024,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
        "eos_token_id": [2, 7],
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = llmc("inspect", tmp_path)
    assert result.exit_code == 0, result.stderr
    shown = " ".join(result.stdout.split())
    for words in ("mistral", "1,000 tokens", "4,096 tokens", "1,024 tokens in 3 layers", "yarn, factor 4.0", "2, 7"):
        assert words in shown
    assert "awq, 4 bits, group 64; 1 FLOAT tensors" in shown
    value = json.loads(llmc("inspect", tmp_path, "--json").stdout)
    assert value["model"]["rope"] == {"rope_parameters": config["rope_parameters"]}
    assert value["model"]["window"] == 1024
    assert [token["id"] for token in value["model"]["end_tokens"]] == [2, 7]


def test_an_onnx_file_says_nothing_of_a_model(llmc: Run, model_file: Path) -> None:
    assert json.loads(llmc("inspect", model_file, "--json").stdout)["model"] is None
