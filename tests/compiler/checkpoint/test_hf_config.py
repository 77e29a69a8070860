from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.hf_config import read_hf_config, read_hf_generation_config, read_hf_licence

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 32}


def directory_with(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_causal_config_is_read(tmp_path: Path) -> None:
    config = read_hf_config(directory_with(tmp_path, **LLAMA, rope_theta=5000.0))
    assert config.model_type == "llama"
    assert config.rope_parameters["rope_theta"] == 5000.0


def test_missing_config(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a model")
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


@pytest.mark.parametrize("model_type", [{"x": {}}, ["llama"], 3])
def test_a_model_type_that_is_no_name(tmp_path: Path, model_type: Any) -> None:
    with pytest.raises(CheckpointError, match=r"model_type in .*config\.json is .*, and no name"):
        read_hf_config(directory_with(tmp_path, model_type=model_type))


def test_a_configuration_without_a_model_type(tmp_path: Path) -> None:
    for stated in ({}, {"model_type": None}):
        with pytest.raises(CheckpointError, match=r"config\.json states no model_type, so it is not that of a model"):
            read_hf_config(directory_with(tmp_path, hidden_size=32, **stated))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "linear", "factor": math.nan}}, "rope_parameters.factor"),
        ({"bounds": [0, [1.0, -math.nan]]}, "bounds.1.1"),
    ],
)
def test_a_setting_that_is_no_number_is_named(tmp_path: Path, change: dict[str, Any], place: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^{place} in .*config\.json is NaN, and no number; correct it"):
        read_hf_config(directory_with(tmp_path, **LLAMA, **change))


def test_a_bound_may_be_infinite(tmp_path: Path) -> None:
    """Mamba's steps have none above."""
    assert read_hf_config(directory_with(tmp_path, **LLAMA, limit=[0.0, math.inf])).limit == [0.0, math.inf]


def test_unknown_model_type_names_it_and_the_version(tmp_path: Path) -> None:
    import transformers

    model_type = "wobble"
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


def test_code_beside_a_known_type_is_not_run_unasked_and_is_when_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's own class goes before transformers' where the user trusts it."""
    import transformers

    asked: list[bool] = []
    original = transformers.AutoConfig.from_pretrained

    def record(directory: Path, trust_remote_code: bool) -> Any:
        asked.append(trust_remote_code)
        return original(directory, trust_remote_code=False)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", record)
    source = directory_with(tmp_path, **LLAMA, auto_map=REMOTE)
    read_hf_config(source)
    read_hf_config(source, trust_remote_code=True)
    # No code is no code, however much it is trusted.
    read_hf_config(directory_with(tmp_path, **LLAMA), trust_remote_code=True)
    read_hf_config(directory_with(tmp_path, **LLAMA, auto_map="broken"), trust_remote_code=True)
    assert asked == [False, True, False, False]


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


@pytest.mark.parametrize(
    ("stated", "method"),
    [({"quant_method": "aqlm", "bits": 4}, "aqlm"), ({"bits": 4}, "unknown"), ("awq", "unknown")],
)
def test_formats_of_quantized_weights_that_are_not_read_are_refused(tmp_path: Path, stated: Any, method: str) -> None:
    """Also where the file does not say how."""
    with pytest.raises(UnsupportedModelError, match=rf"quantized already \({method}\)"):
        read_hf_config(directory_with(tmp_path, **LLAMA, quantization_config=stated))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_format_that_is_read_is_not_in_the_configuration(tmp_path: Path, key: str) -> None:
    """What the model is made of are floats; transformers would look for the format's package."""
    config = read_hf_config(directory_with(tmp_path, **LLAMA, **{key: {"quant_method": "gptq", "bits": 4}}))
    assert not hasattr(config, key)


@pytest.mark.parametrize("stated", [None, {}])
def test_a_configuration_of_no_quantization_is_none(tmp_path: Path, stated: Any) -> None:
    assert read_hf_config(directory_with(tmp_path, **LLAMA, quantization_config=stated)).model_type == "llama"


def test_an_encoder_decoder_with_a_causal_class_is_refused(tmp_path: Path) -> None:
    """transformers lists a class for the decoder of one; the whole has another input."""
    with pytest.raises(UnsupportedModelError, match=r"is no causal language model \(llama\)"):
        read_hf_config(directory_with(tmp_path, **LLAMA, is_encoder_decoder=True))


def test_several_text_models_are_no_causal_language_model(tmp_path: Path) -> None:
    """transformers then says that none of them is the one."""
    from transformers import MusicgenConfig

    MusicgenConfig().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"is no causal language model \(musicgen\)"):
        read_hf_config(tmp_path)


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
        ("---\nlicense: mit\nmetadata:\n  license: gpl\n---\n", "mit"),
        ("---\nlicense: https://example.org/terms:1\n---\n", "https://example.org/terms:1"),
        ("---\nlicense: llama3\nlicense_name: own\n---\n", "llama3"),
        ("---\nlicense:\n---\n", None),
        ("", None),
    ],
)
def test_licence_of_the_card(tmp_path: Path, card: str | None, licence: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert read_hf_licence(tmp_path) == licence


@pytest.mark.parametrize(("pad", "accepted"), [(31999, True), (-1, True), (32000, False), (-32001, False)])
def test_a_padding_token_beyond_the_vocabulary_is_named(tmp_path: Path, pad: int, accepted: bool) -> None:
    directory = directory_with(tmp_path, **(LLAMA | {"vocab_size": 32000}), pad_token_id=pad)
    if accepted:
        assert read_hf_config(directory).pad_token_id == pad
        return
    with pytest.raises(
        CheckpointError, match=rf"pad_token_id is {pad} in .*config\.json, beyond the vocabulary of 320"
    ):
        read_hf_config(directory)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_end_tokens_that_the_model_cannot_say_are_told(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    in_config = {"eos_token_id": [2, 32000]} if name == "config.json" else {}
    directory = directory_with(tmp_path, **(LLAMA | {"vocab_size": 32000}), **in_config)
    if name == "generation_config.json":
        (directory / name).write_text('{"eos_token_id": [2, 32000]}')
    read_hf_generation_config(directory, read_hf_config(directory))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"eos_token_id is 32000 in {directory / name}, beyond the vocabulary of 320"
    )
