from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.checkpoint.hf_config import read_hf_config, read_hf_generation_config, read_hf_licence
from llmc.compiler.errors import CheckpointError, UnsupportedModelError

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 32}


def directory_with(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_causal_config_is_read(tmp_path: Path) -> None:
    config = read_hf_config(directory_with(tmp_path, **LLAMA, rope_theta=5000.0))
    assert config.model_type == "llama"
    assert config.rope_parameters["rope_theta"] == 5000.0


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json; name a directory"):
        read_hf_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_broken_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json is not"):
        read_hf_config(tmp_path)


def test_config_that_transformers_refuses(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is refused by transformers .*num_attention_heads"):
        read_hf_config(directory_with(tmp_path, model_type="llama", hidden_size=33, num_attention_heads="many"))


@pytest.mark.parametrize("model_type", ["wobble", None])
def test_unknown_model_type_names_it_and_the_version(tmp_path: Path, model_type: str | None) -> None:
    import transformers

    message = rf"model_type {model_type!r} .* not known .* transformers {transformers.__version__}"
    with pytest.raises(UnsupportedModelError, match=message):
        read_hf_config(directory_with(tmp_path, model_type=model_type))


REMOTE = {"AutoConfig": "configuration_wobble.WobbleConfig", "AutoModelForCausalLM": "modeling_wobble.Wobble"}


def test_remote_code_is_not_run_unasked(tmp_path: Path) -> None:
    (tmp_path / "configuration_wobble.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UnsupportedModelError, match=r"read it, and pass --trust-remote-code"):
        read_hf_config(directory_with(tmp_path, model_type="wobble", auto_map=REMOTE))


def test_known_type_needs_no_remote_code(tmp_path: Path) -> None:
    (tmp_path / "configuration_wobble.py").write_text("raise SystemExit('ran')")
    assert read_hf_config(directory_with(tmp_path, **LLAMA, auto_map=REMOTE)).model_type == "llama"


def test_remote_code_runs_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "configuration_wobble.py").write_text(
        "from transformers import PreTrainedConfig\n\n\n"
        "class WobbleConfig(PreTrainedConfig):\n    model_type = 'wobble'\n"
    )
    source = directory_with(tmp_path, model_type="wobble", auto_map=REMOTE)
    assert type(read_hf_config(source, trust_remote_code=True)).__name__ == "WobbleConfig"


@pytest.mark.parametrize("model_type", ["vit", "t5", "clip", "bart"])
def test_other_kinds_of_model_are_refused(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(UnsupportedModelError, match="is no causal language model"):
        read_hf_config(directory_with(tmp_path, model_type=model_type))


def test_text_model_of_a_multimodal_one(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 32}
    config = read_hf_config(directory_with(tmp_path, model_type="gemma3", text_config=text))
    assert (config.model_type, config.num_hidden_layers) == ("gemma3_text", 3)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"quantized already \(gptq\)"):
        read_hf_config(directory_with(tmp_path, **LLAMA, quantization_config={"quant_method": "gptq", "bits": 4}))


def test_generation_config_from_the_model_s(tmp_path: Path) -> None:
    source = directory_with(tmp_path, **LLAMA, eos_token_id=[2, 7])
    assert read_hf_generation_config(source, read_hf_config(source)).eos_token_id == [2, 7]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert read_hf_generation_config(source, read_hf_config(source)).eos_token_id == 9
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config.json is refused"):
        read_hf_generation_config(source, read_hf_config(source))


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, None),
        ("# A model\nlicense: mit", None),
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model", "apache-2.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: toy-1\n---\n", "toy-1"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlanguage: en\n---\nlicense: mit", None),
    ],
)
def test_licence_of_the_card(tmp_path: Path, card: str | None, licence: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert read_hf_licence(tmp_path) == licence
