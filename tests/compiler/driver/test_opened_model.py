"""A model with adapters, from the command's options to the artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import CheckpointError, UsageError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.checkpoint.conversion_loading import LazyConversionError
from llmc.compiler.checkpoint.merged_weights import MergedWeights
from llmc.compiler.driver import captured_model
from llmc.compiler.driver.captured_model import model_weights
from llmc.compiler.driver.driver import compile_model, export
from llmc.compiler.driver.evaluation import open_reference
from llmc.compiler.driver.opened_model import open_model
from llmc.compiler.driver.reference_model import load_model

from ...adapters import low_rank, write_adapter

EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2"
Q = "model.layers.0.self_attn.q_proj"
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def save(path: Path, model_type: str, **config: Any) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.for_model(model_type, **{**SIZES, **config})
    AutoModelForCausalLM.from_config(settings, dtype=torch.float32).save_pretrained(path)
    return path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(tmp_path / "llama", "llama")


def test_an_adapter_beside_the_model_must_be_spoken_of(llama: Path) -> None:
    write_adapter(llama, low_rank(Q, 32, 32))
    with pytest.raises(CheckpointError, match=rf"merge it with --adapter {llama}, or leave it out with --no-adapter"):
        open_model(str(llama), ExportOptions())
    assert open_model(str(llama), ExportOptions(no_adapter=True)).adapters == ()
    (adapter,) = open_model(str(llama), ExportOptions(adapters=(f"{llama}:0.5",))).adapters
    assert (adapter.name, adapter.scale) == ("llama", 0.5)
    with pytest.raises(UsageError, match="--adapter and --no-adapter exclude each other"):
        ExportOptions(adapters=("a",), no_adapter=True)


def test_another_adapter_says_nothing_of_the_one_beside_the_model(llama: Path, tmp_path: Path) -> None:
    write_adapter(llama, low_rank(Q, 32, 32))
    other = write_adapter(tmp_path / "other", low_rank(Q, 32, 32))
    with pytest.raises(CheckpointError, match="lies beside the model"):
        open_model(str(llama), ExportOptions(adapters=(str(other),)))


def test_an_adapter_alone_names_its_model(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", low_rank(Q, 32, 32))
    with pytest.raises(CheckpointError, match=rf"adapter of org/base, .*llmc compile org/base --adapter {adapter}"):
        open_model(str(adapter), ExportOptions())


def test_what_is_left_out_by_name(llama: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = llama / "model.safetensors"
    save_file(load_file(file) | {"extra": np.ones(2, np.float32)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"^extra \(FLOAT \[2\] in model.safetensors\) is in the checkpoint"):
        model_weights(open_model(str(llama), ExportOptions()))
    model_weights(open_model(str(llama), ExportOptions(ignored=("ext*",))))


def test_what_was_left_out_is_recorded(llama: Path, tmp_path: Path) -> None:
    """Names that a pattern means, but for tensors that the model is made of all the same."""
    from safetensors.numpy import load_file, save_file

    file = llama / "model.safetensors"
    save_file(load_file(file) | {f"extra.{i}": np.ones(2, np.float32) for i in range(2)}, file, {"format": "pt"})
    options = ExportOptions(verify="off", ignored=("ext*", "other", "model.norm.weight"))
    assert export(str(llama), tmp_path / "out", options).source.ignored == ("extra.0", "extra.1")


def test_an_artifact_of_a_merged_model(llama: Path, tmp_path: Path) -> None:
    """The graph agrees with the reference, and both are the merged model; the manifest says of what it was made."""
    adapter = write_adapter(tmp_path / "mine", low_rank(Q, 32, 32), base_model_name_or_path="/home/me/base")
    options = ExportOptions(verify="on", adapters=(f"{adapter}:0.5",))
    manifest = export(str(llama), tmp_path / "out", options)
    assert manifest.measured["model.onnx"]["largest logit error"] < 1e-4
    (record,) = manifest.source.adapters
    assert (record.name, record.scale, record.base) == ("mine", 0.5, "base")
    assert sorted(record.files) == ["adapter_config.json", "adapter_model.safetensors"]
    written = json.loads((tmp_path / "out" / "llmc.json").read_text())["source"]["adapters"]
    assert written[0]["files"]["adapter_config.json"]["sha256"] == record.files["adapter_config.json"].sha256
    plain = export(str(llama), tmp_path / "plain", ExportOptions(verify="on"))
    assert plain.source.adapters == ()
    rows = [dict(np.load(tmp_path / name / "golden.npz")) for name in ("out", "plain")]
    assert any(not np.array_equal(rows[0][key], rows[1][key]) for key in rows[0])


@pytest.mark.parametrize(
    ("model_type", "config", "module", "shape"),
    [
        ("llama", {}, Q, (32, 32)),
        ("mixtral", {"num_local_experts": 2}, EXPERT, (32, 48)),
    ],
)
def test_the_reference_is_the_merged_model(
    tmp_path: Path, model_type: str, config: Any, module: str, shape: tuple[int, int]
) -> None:
    path = save(tmp_path / "model", model_type, **config)
    adapter = write_adapter(tmp_path / "adapter", low_rank(module, *shape))
    checkpoint = open_model(str(path), ExportOptions(adapters=(str(adapter),)))
    weights = model_weights(checkpoint)
    state = load_model(checkpoint, weights).state_dict()
    plain = model_weights(open_model(str(path), ExportOptions()))
    changed = [name for name in plain.tensors() if not np.array_equal(state[name].numpy(), plain.read(name))]
    assert len(changed) == 1
    for name in weights.tensors():
        np.testing.assert_array_equal(state[name].numpy(), weights.read(name))


def test_the_scale_is_part_of_what_a_reference_is_known_by(llama: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "mine", low_rank(Q, 32, 32))
    found = []
    for texts in ((), (str(adapter),), (f"{adapter}:0.5",), (str(adapter), str(adapter))):
        with open_model(str(llama), ExportOptions(adapters=texts)).content_hashes() as hashes:
            found.append(hashes.result())
    assert len({json.dumps(item) for item in found}) == len(found)
    assert all(item.items() >= found[0].items() for item in found)


def test_adapters_are_for_models(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "llmc.json").write_text("{}")
    adapter = write_adapter(tmp_path / "mine", low_rank(Q, 32, 32))
    with pytest.raises(UsageError, match=r"--adapter is for models, and .* is an artifact"):
        open_reference(str(tmp_path), ExportOptions(adapters=(str(adapter),)), None)


def test_updates_of_stored_tensors_are_not_lost_where_a_model_is_loaded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "model", "mixtral", num_local_experts=2)
    adapter = write_adapter(tmp_path / "adapter", low_rank(EXPERT, 32, 48))
    convert = captured_model.convert_weights

    def refuse_merged(weights: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(weights, MergedWeights):
            raise LazyConversionError("values decide")
        return convert(weights, *arguments, **options)

    monkeypatch.setattr(captured_model, "convert_weights", refuse_merged)
    with pytest.raises(CheckpointError, match=r"values decide, and the adapter names tensors as the files do"):
        model_weights(open_model(str(path), ExportOptions(adapters=(str(adapter),))))


def stored(directory: Path) -> dict[str, bytes]:
    """Every initializer's bytes, of those inside the graph too."""
    graph = ir.load(directory / "model.onnx").graph
    return {name: value.const_value.tobytes() for name, value in graph.initializers.items() if value.const_value}


def test_a_merged_model_is_quantized_as_one_that_was_merged_before(llama: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    adapters = (f"{write_adapter(tmp_path / 'adapter', low_rank(Q, 32, 32))}:0.5",)
    merged = Path(shutil.copytree(llama, tmp_path / "merged"))
    weights = load_file(merged / "model.safetensors")
    weights[f"{Q}.weight"] = model_weights(open_model(str(llama), ExportOptions(adapters=adapters))).read(
        f"{Q}.weight"
    )
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    quantized = OptimizeOptions(precision="int4", effort="round")
    compile_model(str(llama), tmp_path / "one", CompileOptions(ExportOptions(adapters=adapters), quantized))
    compile_model(str(merged), tmp_path / "other", CompileOptions(ExportOptions(), quantized))
    compile_model(str(llama), tmp_path / "base", CompileOptions(ExportOptions(), quantized))
    one, other, base = (stored(tmp_path / name) for name in ("one", "other", "base"))
    assert one == other
    changed = [name for name in one if one[name] != base.get(name)]
    assert changed
    assert len(changed) < 8 < len(one)
