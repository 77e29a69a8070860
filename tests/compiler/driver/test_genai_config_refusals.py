"""GenAI's configuration of graphs made by hand, whose sizes are none of the model's; each refusal alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import CacheKind, Contract
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.driver.genai_config import GENAI_CONFIG, genai_config, refusal, write_genai_config

LAYERS, HEADS, WIDTH, VOCAB = 3, 5, 48, 500
FLOAT, FLOAT16, INT64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64


def cache(layer: int, part: str) -> ir.Value:
    return ir.val(f"past_key_values.{layer}.{part}", FLOAT, ["batch", HEADS, "capacity", WIDTH])


@pytest.fixture
def graph() -> ir.Graph:
    """A decoder with attention of several queries per key, without positions; the logits are not the first output."""
    inputs = [ir.val("input_ids", INT64, ["batch", "chunk"]), ir.val("attention_mask", INT64, ["batch", "total"])]
    inputs += [cache(layer, part) for layer in range(LAYERS) for part in ("key", "value")]
    node = ir.node("Decoder", inputs, domain="test", num_outputs=2)
    other, logits = node.outputs
    other.name, other.shape, other.dtype = "hidden", ir.Shape(["batch", 1, 32]), FLOAT
    logits.name, logits.shape, logits.dtype = "logits", ir.Shape(["batch", 1, VOCAB]), FLOAT
    return ir.Graph(inputs, [other, logits], nodes=[node], opset_imports={"": 23, "test": 1})


def value(graph: ir.Graph, name: str) -> ir.Value:
    return next(item for item in (*graph.inputs, *graph.outputs) if item.name == name)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_plain_decoder_is_not_refused(graph: ir.Graph, manifest: Manifest, dtype: ir.DataType, target: str) -> None:
    """Whatever heads and widths differ by layer."""
    for item in graph.inputs[2:]:
        item.dtype = dtype
    for part in ("key", "value"):
        value(graph, f"past_key_values.2.{part}").shape = ir.Shape(["batch", 1, "capacity", 16])
    graph.inputs.append(ir.val("position_ids", INT64, ["batch", "chunk"]))
    assert refusal(graph, replace(manifest, target=target)) is None


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize(("part", "width", "keys", "values"), [("key", 64, 64, 48), ("value", 64, 48, 64)])
def test_keys_and_values_are_of_one_width(
    graph: ir.Graph, manifest: Manifest, layer: int, part: str, width: int, keys: int, values: int
) -> None:
    """Multi-head latent attention has wider keys."""
    value(graph, f"past_key_values.{layer}.{part}").shape = ir.Shape(["batch", HEADS, "capacity", width])
    assert refusal(graph, manifest) == f"layer {layer} keeps keys of width {keys} and values of width {values}"


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("part", ["key", "value"])
def test_the_cache_is_of_one_type(graph: ir.Graph, manifest: Manifest, layer: int, part: str) -> None:
    value(graph, f"past_key_values.{layer}.{part}").dtype = FLOAT16
    assert refusal(graph, manifest) == "its cache holds FLOAT and FLOAT16, not one type of floats"


@pytest.mark.parametrize("dtype", [ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN])
def test_the_cache_is_of_floats_that_genai_keeps(graph: ir.Graph, manifest: Manifest, dtype: ir.DataType) -> None:
    for item in graph.inputs[2:]:
        item.dtype = dtype
    assert refusal(graph, manifest) == f"its cache holds {dtype}, not one type of floats"


@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_what_the_loop_feeds_is_taken(graph: ir.Graph, manifest: Manifest, name: str) -> None:
    graph.inputs.remove(value(graph, name))
    assert refusal(graph, manifest) == f"it takes no {name}"


@pytest.mark.parametrize(
    "name", ["past_key_values.0.conv_state", "seqlens_k", "past_key_values.7.key", "past_key_values.7.value"]
)
def test_an_input_that_the_loop_does_not_feed(graph: ir.Graph, manifest: Manifest, name: str) -> None:
    """States, lengths, keys without their values."""
    graph.inputs.append(ir.val(name, FLOAT, ["batch", HEADS, "capacity", WIDTH]))
    assert refusal(graph, manifest) == (
        f"{name} needs one buffer to read and one to write, which GenAI does not give it"
    )


def test_a_graph_without_a_cache(graph: ir.Graph, manifest: Manifest) -> None:
    del graph.inputs[2:]
    assert refusal(graph, manifest) == "it has no cache of keys and values"


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "tensorrt-rtx"])
def test_a_target_without_a_provider(graph: ir.Graph, manifest: Manifest, target: str) -> None:
    assert refusal(graph, replace(manifest, target=target)) == f"it has no provider for the target {target}"


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (ir.Shape(["batch", 1, "vocabulary"]), "[batch,1,vocabulary]"),
        (ir.Shape(["batch", VOCAB]), f"[batch,{VOCAB}]"),
        (None, "None"),
    ],
)
def test_logits_have_a_width(graph: ir.Graph, manifest: Manifest, shape: ir.Shape | None, said: str) -> None:
    value(graph, "logits").shape = shape
    assert refusal(graph, manifest) == f"its logits are {said}"


def test_another_output_does_not_pass_for_the_logits(graph: ir.Graph, manifest: Manifest) -> None:
    value(graph, "logits").name = "scores"
    assert refusal(graph, manifest) == "its logits are None"


# --- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_written_or_its_absence_explained(graph: ir.Graph, manifest: Manifest, tmp_path: Path) -> None:
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    assert write_genai_config(tmp_path, replace(manifest, target="openvino")) == (
        "it has no provider for the target openvino"
    )
    assert not (tmp_path / GENAI_CONFIG).exists()
    assert write_genai_config(tmp_path, manifest) is None
    written = json.loads((tmp_path / GENAI_CONFIG).read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(genai_config(graph, tmp_path, manifest)))


Config = Callable[..., Any]


@pytest.fixture
def config(graph: ir.Graph, manifest: Manifest, tmp_path: Path) -> Config:
    """The file for these configuration files of the checkpoint, and changes of the manifest."""

    def make(model: Any = None, generation: Any = None, **changes: Any) -> Any:
        for name, content in (("config.json", model), ("generation_config.json", generation)):
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        return genai_config(graph, tmp_path, replace(manifest, **changes))

    return make


def test_sizes_are_the_graphs_and_those_of_queries_the_models(config: Config, graph: ir.Graph) -> None:
    content = config()
    assert content["model"]["vocab_size"] == VOCAB
    decoder = content["model"]["decoder"]
    inputs, outputs = decoder.pop("inputs"), decoder.pop("outputs")
    assert decoder == {
        "filename": "model.onnx",
        "session_options": {"provider_options": ()},
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_hidden_layers": 3,
        "num_key_value_heads": HEADS,
        "head_size": WIDTH,
    }
    assert inputs == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    assert outputs == {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    }
    graph.inputs.append(ir.val("position_ids", INT64, ["batch", "chunk"]))
    assert config()["model"]["decoder"]["inputs"] == {**inputs, "position_ids": "position_ids"}


@pytest.mark.parametrize(("limit", "context"), [(128, 128), (None, 8192)])
def test_the_context_is_the_graphs_or_else_the_models(config: Config, limit: int | None, context: int) -> None:
    content = config(max_context=limit)
    assert content["model"]["context_length"] == content["search"]["max_length"] == context


@pytest.mark.parametrize(("kind", "shared"), [("shared", True), ("grow", False)])
def test_whether_past_and_present_are_one_buffer(config: Config, kind: CacheKind, shared: bool) -> None:
    assert config(contract=Contract(cache=kind))["search"]["past_present_share_buffer"] is shared


def test_a_gpu_is_asked_for_without_its_graphs(config: Config) -> None:
    options = config(target="cuda")["model"]["decoder"]["session_options"]["provider_options"]
    assert list(options) == [{"cuda": {"enable_cuda_graph": "0"}}]


@pytest.mark.parametrize("axis", [1, 3])
def test_a_cache_of_symbolic_sizes_is_an_error(config: Config, graph: ir.Graph, axis: int) -> None:
    shape: list[int | str] = ["batch", HEADS, "capacity", WIDTH]
    shape[axis] = "symbolic"
    value(graph, "past_key_values.0.key").shape = ir.Shape(shape)
    with pytest.raises(ArtifactError, match=rf"past_key_values\.0\.key is .* dimension {axis} must be a number"):
        config()


# --- tokens and sampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "generation", "expected"),
    [
        ({}, {}, {"pad_token_id": 0}),
        (
            {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
            {"bos_token_id": 4, "eos_token_id": [6, 5], "pad_token_id": 7},
            {"bos_token_id": 4, "eos_token_id": [6, 5], "pad_token_id": 7},
        ),
        (
            {"bos_token_id": 1, "eos_token_id": 2, "text_config": {"eos_token_id": 8, "pad_token_id": 9}},
            {"eos_token_id": [6, 5]},
            {"bos_token_id": 1, "eos_token_id": [6, 5], "pad_token_id": 9},
        ),
        ({"eos_token_id": [6, 5]}, None, {"eos_token_id": [6, 5], "pad_token_id": 6}),
        (
            {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "text_config": {"eos_token_id": 8}},
            {"eos_token_id": -1},
            {"bos_token_id": 0, "eos_token_id": [0], "pad_token_id": 0},
        ),
        (
            {"bos_token_id": [3, 4], "eos_token_id": [VOCAB, VOCAB - 1, -1], "pad_token_id": VOCAB},
            None,
            {"bos_token_id": 3, "eos_token_id": [VOCAB - 1], "pad_token_id": VOCAB - 1},
        ),
        ({"eos_token_id": 6, "text_config": "none"}, None, {"eos_token_id": [6], "pad_token_id": 6}),
    ],
    ids=[
        "nothing",
        "generation first",
        "each from the first that has it",
        "padding",
        "0",
        "the ends",
        "no text model",
    ],
)
def test_tokens(config: Config, model: Any, generation: Any, expected: dict[str, Any]) -> None:
    content = config(model, generation)["model"]
    assert {name: item for name, item in content.items() if name.endswith("_token_id")} == expected


def test_end_tokens_are_those_of_our_own_loop_within_the_vocabulary(config: Config, tmp_path: Path) -> None:
    """The tokenizer may know tokens that the graph gives no logits for; padding is by the model's first end token."""
    from tokenizers import Tokenizer, models

    vocabulary = {"?": 0, "a": 1, "<end>": VOCAB - 1, "<more>": VOCAB}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.add_special_tokens(["<end>", "<more>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }}<end>{% endfor %}<more>"
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    content = config({"eos_token_id": [7, 2, VOCAB]})["model"]
    assert set(content["eos_token_id"]) == {7, 2, VOCAB - 1}
    assert content["pad_token_id"] == 7


def test_settings_of_sampling_are_the_models(config: Config) -> None:
    settings = {
        "do_sample": True,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 0,
    }
    search = config({"temperature": 0.3}, {**settings, "max_length": 20, "num_beams": 4})["search"]
    assert search == {**settings, "max_length": 128, "past_present_share_buffer": True}
    silent = config({"do_sample": True}, {"do_sample": None, "top_k": None})["search"]
    assert silent == {"do_sample": False, "max_length": 128, "past_present_share_buffer": True}
