"""``genai_config.json``: what it says of tiny models of several architectures, and why some have none."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from rich.console import Console

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.reports import CompileReport
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.cli.tables.pass_tables import compile_tables
from llmc.compiler.driver.driver import build, compile_model, export, optimize
from llmc.compiler.driver.genai_config import GENAI_CONFIG, genai_config, refusal, write_genai_config
from llmc.runtimes.bench.workers.peer_genai import read_geometry

from ...end_to_end.tiny import SIZES, save_model

UNVERIFIED = ExportOptions(verify="off")
VOCAB = 160


def compiled(path: Path, model_type: str, **config: Any) -> CompileReport:
    """An engine of a tiny model, in ``engine``."""
    source = save_model(path / "hf", model_type, **config)
    return compile_model(str(source), path / "engine", CompileOptions(UNVERIFIED, OptimizeOptions()))


def read(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / GENAI_CONFIG).read_text())
    return content


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture(scope="module")
def portable(source: Path) -> Path:
    export(str(source), source.parent / "portable", UNVERIFIED)
    return source.parent / "portable"


@pytest.fixture(scope="module")
def target(portable: Path) -> Path:
    optimize(portable, portable.parent / "target", OptimizeOptions())
    return portable.parent / "target"


# --- content --------------------------------------------------------------------------------------------------------


def test_the_whole_file(target: Path) -> None:
    assert read(target) == {
        "model": {
            "type": "decoder",
            "vocab_size": VOCAB,
            "context_length": 128,
            "bos_token_id": 1,
            "eos_token_id": [2],
            "pad_token_id": 0,
            "decoder": {
                "filename": "model.onnx",
                "session_options": {"provider_options": []},
                "hidden_size": 64,
                "num_attention_heads": 4,
                "num_hidden_layers": 2,
                "num_key_value_heads": 2,
                "head_size": 16,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": 128, "past_present_share_buffer": True},
    }


ARCHITECTURES = [
    pytest.param("phi", {}, {"head_size": 16}, True, id="positions as an input"),
    pytest.param("gpt2", {"n_layer": 2, "n_head": 4}, {"num_key_value_heads": 4}, True, id="learned positions"),
    pytest.param("qwen3", {"head_dim": 32}, {"head_size": 32, "hidden_size": 64}, False, id="heads of another width"),
    pytest.param("gemma3_text", {"head_dim": 32, "sliding_window": 8}, {"head_size": 32}, False, id="windows"),
    pytest.param(
        "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {"num_hidden_layers": 2}, False, id="experts"
    ),
]


@pytest.mark.parametrize(("model_type", "config", "expected", "positions"), ARCHITECTURES)
def test_architectures(
    tmp_path: Path, model_type: str, config: dict[str, Any], expected: dict[str, int], positions: bool
) -> None:
    report = compiled(tmp_path, model_type, **config)
    assert report.genai_refusal is None
    decoder = read(tmp_path / "engine")["model"]["decoder"]
    assert decoder.items() >= expected.items()
    assert ("position_ids" in decoder["inputs"]) is positions
    graph = ir.load(tmp_path / "engine" / "model.onnx").graph
    plain = {name for name in decoder["inputs"].values() if "%d" not in name}
    named = plain | {
        decoder["inputs"][f"past_{part}_names"] % layer for part in ("key", "value") for layer in range(2)
    }
    assert {value.name for value in graph.inputs} == named


def test_a_cache_that_grows_is_not_shared(portable: Path, tmp_path: Path) -> None:
    optimize(portable, tmp_path / "grow", OptimizeOptions(cache="grow", context=64))
    content = read(tmp_path / "grow")
    assert content["search"] == {"do_sample": False, "max_length": 64, "past_present_share_buffer": False}
    assert content["model"]["context_length"] == 64


def test_a_gpu_is_asked_for_without_its_graphs(portable: Path, tmp_path: Path) -> None:
    optimize(portable, tmp_path / "cuda", OptimizeOptions(target="cuda"))
    decoder = read(tmp_path / "cuda")["model"]["decoder"]
    assert decoder["session_options"] == {"provider_options": [{"cuda": {"enable_cuda_graph": "0"}}]}
    assert decoder["filename"] == "model.onnx"


# --- where it is ----------------------------------------------------------------------------------------------------


def test_every_way_writes_the_same_bytes(source: Path, target: Path, tmp_path: Path) -> None:
    """Beside a target graph and an engine, recorded with its hash; not beside a portable graph."""
    build(target, tmp_path / "built")
    compile_model(str(source), tmp_path / "compiled", CompileOptions(UNVERIFIED, OptimizeOptions()))
    wanted = (target / GENAI_CONFIG).read_bytes()
    for directory in (tmp_path / "built", tmp_path / "compiled"):
        assert (directory / GENAI_CONFIG).read_bytes() == wanted
        artifact = open_artifact(directory)
        assert artifact.manifest.files[GENAI_CONFIG].bytes == len(wanted)
        artifact.check_hashes()
    assert not (source.parent / "portable" / GENAI_CONFIG).exists()


def test_the_benchmark_reads_it(target: Path) -> None:
    geometry = read_geometry(target)
    assert (geometry.graph, geometry.vocab, geometry.layers, geometry.context) == ("model.onnx", VOCAB, 2, 128)
    assert (geometry.kv_heads, geometry.head_size, geometry.pad) == (2, 16, 0)


# --- tokens and sampling --------------------------------------------------------------------------------------------


@pytest.fixture
def settings(target: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The file for configuration files of the caller's, which are left out where they are None."""
    manifest, graph = open_artifact(target).manifest, ir.load(target / "model.onnx").graph

    def make(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> dict[str, Any]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        content: dict[str, Any] = genai_config(graph, tmp_path, manifest)
        return content

    return make


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        pytest.param({"eos_token_id": 5}, {"eos_token_id": [7, 3], "pad_token_id": 9}, ([7, 3], 9), id="generation"),
        pytest.param({"eos_token_id": 5, "pad_token_id": 4}, {}, ([5], 4), id="the model's"),
        pytest.param({"text_config": {"eos_token_id": [6, 8]}}, None, ([6, 8], 6), id="of the text model"),
        pytest.param({"eos_token_id": [6, 8], "pad_token_id": -1}, None, ([6, 8], 6), id="padding by none"),
        pytest.param({"eos_token_id": 6, "pad_token_id": VOCAB}, None, ([6], 6), id="padding beyond the vocabulary"),
        pytest.param({"eos_token_id": None, "pad_token_id": None}, {}, (None, 0), id="neither"),
    ],
)
def test_end_and_padding_tokens(
    settings: Callable[..., dict[str, Any]],
    config: dict[str, Any],
    generation: dict[str, Any] | None,
    expected: tuple[list[int] | None, int],
) -> None:
    model = settings(config, generation)["model"]
    assert (model.get("eos_token_id"), model["pad_token_id"]) == expected
    assert "bos_token_id" not in model


def test_end_tokens_are_those_of_our_own_loop(target: Path, tmp_path: Path) -> None:
    """The template's end of turn is one, too, though no configuration lists it."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "<end>": 3}, unk_token="?"))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<end>{% endfor %}")
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    content: Any = genai_config(ir.load(target / "model.onnx").graph, tmp_path, open_artifact(target).manifest)
    assert content["model"]["eos_token_id"] == [2, 3]
    assert content["model"]["pad_token_id"] == 2


def test_sampling_is_the_models(settings: Callable[..., dict[str, Any]]) -> None:
    search = settings({}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": None, "max_length": 20})
    assert search["search"] == {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "max_length": 128,
        "past_present_share_buffer": True,
    }


def test_a_damaged_configuration_is_named(settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"generation_config\.json cannot be read as JSON"):
        settings({})


# --- refusals -------------------------------------------------------------------------------------------------------


def test_states_are_refused_with_their_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layers = ["conv", "full_attention"]
    with caplog.at_level(logging.INFO, logger="llmc"):
        report = compiled(tmp_path, "lfm2", layer_types=layers, num_hidden_layers=2, conv_L_cache=3)
    assert not (tmp_path / "engine" / GENAI_CONFIG).exists()
    assert GENAI_CONFIG not in report.manifest.files
    (said,) = [record.getMessage() for record in caplog.records if GENAI_CONFIG in record.getMessage()]
    assert said == (
        "no genai_config.json: ONNX Runtime GenAI cannot run this graph, because past_key_values.0.conv_state needs "
        "one buffer to read and one to write, which GenAI does not give it"
    )
    assert said.endswith(str(report.genai_refusal))
    assert report.to_json()["genai_refusal"] == report.genai_refusal
    shown = Console(width=500, file=io.StringIO())
    shown.print(compile_tables(tmp_path / "engine", report))
    assert said in shown.file.getvalue()  # type: ignore[attr-defined]


def test_a_target_that_does_not_run_on_onnx_runtime_is_not_told(tmp_path: Path) -> None:
    report = compiled(tmp_path, "lfm2", layer_types=["conv", "full_attention"], num_hidden_layers=2, conv_L_cache=3)
    elsewhere = replace(report, manifest=replace(report.manifest, target="openvino"))
    for shown, told in ((report, True), (elsewhere, False)):
        console = Console(width=500, file=io.StringIO())
        console.print(compile_tables(tmp_path / "engine", shown))
        assert ("genai_config" in console.file.getvalue()) == told  # type: ignore[attr-defined]


@pytest.fixture
def graph(target: Path) -> ir.Graph:
    return ir.load(target / "model.onnx").graph


@pytest.fixture
def manifest(target: Path) -> Manifest:
    return open_artifact(target).manifest


def test_nothing_is_against_a_plain_decoder(graph: ir.Graph, manifest: Manifest) -> None:
    assert refusal(graph, manifest) is None


def test_other_targets_are_refused(graph: ir.Graph, manifest: Manifest) -> None:
    assert refusal(graph, replace(manifest, target="openvino")) == "it has no provider for the target openvino"


def test_graphs_that_the_loop_cannot_feed(graph: ir.Graph, manifest: Manifest) -> None:
    inputs = {str(value.name): value for value in graph.inputs}
    mask, key, value = (inputs[f"{name}"] for name in ("attention_mask", CACHE_KEY, CACHE_VALUE))
    value.shape = ir.Shape(["batch", 2, "capacity", 24])
    assert refusal(graph, manifest) == "layer 1 keeps keys of width 16 and values of width 24"
    value.shape, value.dtype = key.shape, ir.DataType.FLOAT16
    assert refusal(graph, manifest) == "its cache holds FLOAT and FLOAT16, not one type of floats"
    every_cache = [item for item in graph.inputs if str(item.name).startswith("past_key_values.")]
    for item in every_cache:
        item.dtype = ir.DataType.INT8
    assert refusal(graph, manifest) == "its cache holds INT8, not one type of floats"
    for item in every_cache:
        item.dtype = ir.DataType.FLOAT
    value.dtype = ir.DataType.FLOAT
    assert refusal(graph, manifest) is None
    mask.name = "seqlens_k"
    assert refusal(graph, manifest) == "it takes no attention_mask"


CACHE_KEY, CACHE_VALUE = "past_key_values.1.key", "past_key_values.1.value"


def test_a_graph_without_keys_is_refused(graph: ir.Graph, manifest: Manifest) -> None:
    for value in [value for value in graph.inputs if str(value.name).startswith("past_key_values.")]:
        graph.inputs.remove(value)
    assert refusal(graph, manifest) == "it has no cache of keys and values"


def test_logits_need_a_width(graph: ir.Graph, manifest: Manifest) -> None:
    graph.outputs[0].shape = ir.Shape(["batch", 1, "vocabulary"])
    assert refusal(graph, manifest) == "its logits are [batch,1,vocabulary]"


def test_what_is_refused_leaves_no_file(target: Path, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((target / "model.onnx").read_bytes())
    assert write_genai_config(tmp_path, replace(manifest, target="openvino")) == (
        "it has no provider for the target openvino"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert write_genai_config(tmp_path, manifest) is None
    assert json.loads((tmp_path / GENAI_CONFIG).read_text())["model"]["vocab_size"] == SIZES["vocab_size"]
