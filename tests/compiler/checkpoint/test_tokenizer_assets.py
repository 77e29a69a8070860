from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import ArtifactError, CheckpointError
from llmc.compiler.checkpoint.gguf_config import read_gguf_config
from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.checkpoint.tokenizer_assets import gguf_generation_config, write_gguf_assets, write_hf_assets


def write_gguf_directory(path: Path, directory: Path) -> None:
    header = read_gguf_header(path)
    write_gguf_assets(header, directory, read_gguf_config(header), gguf_generation_config(header))


@pytest.fixture(scope="module")
def smollm2_assets(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("assets")
    write_gguf_directory(smollm2_gguf, directory)
    return directory


def test_gguf_assets_need_no_transformers(smollm2_assets: Path) -> None:
    from tokenizers import Tokenizer

    assert sorted(path.name for path in smollm2_assets.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tokenizer = Tokenizer.from_file(str(smollm2_assets / "tokenizer.json"))
    assert tokenizer.encode("\n\n1").ids == [1116, 33]
    settings = json.loads((smollm2_assets / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is False
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    generation = json.loads((smollm2_assets / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}
    config = json.loads((smollm2_assets / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}


def test_gguf_assets_are_read_by_transformers(smollm2_assets: Path, smollm2_gguf: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(smollm2_assets)
    assert tokenizer("\n\n1").input_ids == [1116, 33]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
    ours = AutoConfig.from_pretrained(smollm2_assets).to_dict()
    original = read_gguf_config(read_gguf_header(smollm2_gguf)).to_dict()
    names = {"_name_or_path", "_model_name_or_path"}
    assert {k: v for k, v in ours.items() if k not in names} == {k: v for k, v in original.items() if k not in names}
    assert GenerationConfig.from_pretrained(smollm2_assets).eos_token_id == [2, 0]


def test_gguf_assets_are_the_same_bytes_each_time(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_gguf_directory(tiny_llama_gguf, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert not (tmp_path / "a" / "chat_template.jinja").exists()


@pytest.mark.gemma
def test_gemma_assets_add_bos(gemma3_gguf: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_gguf_directory(gemma3_gguf, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("Hello, world!").ids == [2, 9259, 236764, 1902, 236888]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is True
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [1, 106]


def test_hf_files_are_copied(tiny_hf: Path, tmp_path: Path) -> None:
    write_hf_assets(tiny_hf, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
    assert "model.safetensors" not in names
    for name in names - {"chat_template.jinja"}:
        assert (tmp_path / "out" / name).read_bytes() == (tiny_hf / name).read_bytes()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"


def copy_without(source: Path, target: Path, *names: str) -> Path:
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", *names)))


@pytest.mark.parametrize(
    "template",
    ["plain {{ x }}", [{"name": "tool", "template": "t"}, {"name": "default", "template": "plain {{ x }}"}]],
)
def test_template_inside_the_tokenizer_config_gets_its_file(tiny_hf: Path, tmp_path: Path, template: object) -> None:
    source = copy_without(tiny_hf, tmp_path / "in", "chat_template*")
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    write_hf_assets(source, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "plain {{ x }}"


TOOLS = [{"name": "tool_use", "template": "tool {{ x }}"}, {"name": "default", "template": "plain {{ x }}"}]


def test_named_templates_of_the_settings_stay_beside_the_default_one(tiny_hf: Path, tmp_path: Path) -> None:
    source = copy_without(tiny_hf, tmp_path / "in", "chat_template*")
    kept = json.loads((source / "tokenizer_config.json").read_text()) | {"chat_template": TOOLS}
    (source / "tokenizer_config.json").write_text(json.dumps(kept))
    write_hf_assets(source, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == TOOLS[::-1]


def test_templates_in_a_folder_are_kept_by_name(tiny_hf: Path, tmp_path: Path) -> None:
    source = copy_without(tiny_hf, tmp_path / "in", "chat_template*")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("tool {{ x }}")
    (source / "chat_template.jinja").write_text("plain {{ x }}")
    write_hf_assets(source, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == TOOLS[::-1]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "plain {{ x }}"


def with_templates(source: Path, settings: str | None, older: str | None, own: str | None = None) -> Path:
    """The directory with a template in each place that is not None."""
    kept = json.loads((source / "tokenizer_config.json").read_text())
    kept.pop("chat_template", None)
    (source / "tokenizer_config.json").write_text(
        json.dumps(kept | ({"chat_template": settings} if settings else {}))
    )
    if older is not None:
        (source / "chat_template.json").write_text(json.dumps({"chat_template": older}))
    if own is not None:
        (source / "chat_template.jinja").write_text(own)
    return source


@pytest.mark.parametrize(
    ("settings", "older", "own", "expected"),
    [
        ("settings", None, None, "settings"),
        (None, "older", None, "older"),
        ("settings", "older", None, "older"),
        ("settings", "older", "own", "own"),
        ("settings", None, "own", "own"),
        (None, None, None, None),
    ],
)
def test_of_several_templates_the_file_of_its_own_goes_first(
    tiny_hf: Path, tmp_path: Path, settings: str | None, older: str | None, own: str | None, expected: str | None
) -> None:
    """As transformers reads them: the file, then the JSON file, then the tokenizer's settings."""
    source = with_templates(copy_without(tiny_hf, tmp_path / "in", "chat_template*"), settings, older, own)
    write_hf_assets(source, tmp_path / "out")
    target = tmp_path / "out" / "chat_template.jinja"
    assert (target.read_text() if target.exists() else None) == expected


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_template_file_is_named(tiny_hf: Path, tmp_path: Path, content: str) -> None:
    source = copy_without(tiny_hf, tmp_path / "in", "chat_template*")
    (source / "chat_template.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"chat_template\.json is not a JSON object"):
        write_hf_assets(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("special_tokens_map.json", '{"mask_token": "\u2581"}'),
        ("added_tokens.json", '{"\u2581x": 3}'),
        ("chat_template.json", '{"x": "\u2581"}'),
    ],
)
def test_older_files_of_a_tokenizer_are_copied(tiny_hf: Path, tmp_path: Path, name: str, content: str) -> None:
    source = copy_without(tiny_hf, tmp_path / "in")
    (source / name).write_text(content, encoding="utf-8")
    write_hf_assets(source, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_generation_settings_of_the_checkpoint_stay(tiny_hf: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    write_hf_assets(tiny_hf, tmp_path / "out", GenerationConfig(eos_token_id=[2, 5]))
    name = "generation_config.json"
    assert (tmp_path / "out" / name).read_bytes() == (tiny_hf / name).read_bytes()


def test_what_a_gguf_file_says_of_its_tokens_is_written(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    header = read_gguf_header(tiny_llama_gguf)
    stated: dict[str, Any] = {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.eot_token_id": 5,
        "tokenizer.ggml.padding_token_id": 4,
        "tokenizer.chat_template": "{{ 'é' }}\n",
    }
    header = dataclasses.replace(header, metadata=header.metadata | stated)
    config = read_gguf_config(header)
    config.note = "é"
    write_gguf_assets(header, tmp_path, config, gguf_generation_config(header))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings == {
        "add_bos_token": True,
        "add_eos_token": True,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 64,
        "pad_token": "b",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 4}
    assert (tmp_path / "chat_template.jinja").read_bytes() == "{{ 'é' }}\n".encode()
    written = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert '"note": "é"' in written
    assert "_model_name_or_path" not in json.loads(written)


def test_generation_config_is_written_where_there_is_none(tiny_hf: Path, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    source = copy_without(tiny_hf, tmp_path / "in", "generation_config.json")
    write_hf_assets(source, tmp_path / "out", GenerationConfig(eos_token_id=[2, 5]))
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": [2, 5]}


def test_slow_tokenizer_is_converted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    source = tmp_path / "in"
    source.mkdir()
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "a", "b", "ab"])}
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\na b\n")
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    write_hf_assets(source, tmp_path / "out")
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode("abab").ids == [3, 3]


def test_directory_without_a_tokenizer(tiny_hf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = copy_without(tiny_hf, tmp_path / "in", "tokenizer*")
    write_hf_assets(source, tmp_path / "out")
    assert "has no tokenizer" in caplog.text
    assert (tmp_path / "out" / "config.json").exists()
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_target_that_is_a_file(tiny_hf: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ArtifactError, match="cannot be made"):
        write_hf_assets(tiny_hf, tmp_path / "out")
