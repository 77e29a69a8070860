"""What each converter is told; the converters themselves are stand-ins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmc.runtimes.bench.peers.converters import to_ctranslate2, to_genai, to_gguf, to_openvino
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script"])
    monkeypatch.setattr(sys, "path", [*sys.path])


def write_config(folder: Path, **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_ctranslate2_is_told_the_quantization(monkeypatch):
    told = []

    def converter(source: str, **options: Any) -> Any:
        return SimpleNamespace(
            convert=lambda output, quantization: told.append((source, options, output, quantization))
        )

    module: Any = ModuleType("ctranslate2.converters")
    module.TransformersConverter = converter
    monkeypatch.setitem(sys.modules, "ctranslate2", ModuleType("ctranslate2"))
    monkeypatch.setitem(sys.modules, "ctranslate2.converters", module)
    to_ctranslate2.convert("m", "out", "int8")
    assert told == [("m", {"low_cpu_mem_usage": True}, "out", "int8")]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments of what is run in place of a builder or a script."""
    seen: list[list[str]] = []
    fake = SimpleNamespace(
        run_module=lambda name, run_name: seen.append([name, *sys.argv[1:]]),
        run_path=lambda path, run_name: seen.append([path, *sys.argv[1:]]),
    )
    monkeypatch.setattr(to_genai, "runpy", fake)
    monkeypatch.setattr(to_gguf, "runpy", fake)
    client: Any = ModuleType("optimum.commands.optimum_cli")
    client.main = lambda: seen.append(sys.argv)
    for name in ("optimum", "optimum.commands"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "optimum.commands.optimum_cli", client)
    return seen


@pytest.mark.parametrize("kind", ENVIRONMENTS["onnxruntime-genai"].types)
def test_genai_s_head_sees_one_position_and_keeps_eight_bits(told, kind):
    to_genai.convert("m", "out", kind)
    ((builder, *words),) = told
    assert builder == "onnxruntime_genai.models.builder"
    assert [words[words.index(flag) + 1] for flag in ("-i", "-o", "-p", "-e")] == ["m", "out", kind, "cpu"]
    assert "prune_lm_head=true" in words
    assert ("matmul_mixed_precision=last_matmul:int8" in words) is (kind == "int4")


@pytest.mark.parametrize(("hidden", "inner", "block"), [(2048, 8192, "128"), (576, 1536, "64"), (96, 64, "32")])
def test_openvino_s_blocks_divide_the_rows(told, tmp_path, hidden, inner, block):
    source = write_config(tmp_path, hidden_size=hidden, intermediate_size=inner)
    to_openvino.convert(source, "out", "int4")
    ((*words, output),) = told
    assert words[:3] == ["optimum-cli", "export", "openvino"]
    pairs = {flag: words[words.index(flag) + 1] for flag in ("--model", "--task", "--weight-format", "--group-size")}
    assert pairs == {
        "--model": source,
        "--task": "text-generation-with-past",
        "--weight-format": "int4",
        "--group-size": block,
    }
    assert output == "out"


def test_openvino_s_other_types_have_no_blocks(told, tmp_path):
    to_openvino.convert(write_config(tmp_path), "out", "int8")
    assert "--group-size" not in told[0]
    with pytest.raises(ValueError, match=r"no block of .* divides rows of \[48, 64\]"):
        to_openvino.block_size({"text_config": {"hidden_size": 48, "intermediate_size": 64}})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "float16"}, "f16"),
        ({"torch_dtype": "float32"}, "f32"),
        ({"text_config": {"dtype": "bfloat16"}}, "bf16"),
        ({}, "f32"),
    ],
)
def test_a_gguf_file_keeps_the_checkpoint_s_bits(told, tmp_path, config, expected):
    source = write_config(tmp_path / "m", **config)
    to_gguf.convert(source, str(tmp_path / "out"), "float", str(tmp_path / "llama"))
    assert told == [
        [
            str(tmp_path / "llama" / "convert_hf_to_gguf.py"),
            source,
            "--outfile",
            str(tmp_path / "out" / "float.gguf"),
            "--outtype",
            expected,
        ]
    ]
    assert sys.path[:2] == [str(tmp_path / "llama"), str(tmp_path / "llama" / "gguf-py")]
