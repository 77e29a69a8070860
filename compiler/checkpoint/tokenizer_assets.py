"""The small files beside a graph: tokenizer, chat template, generation settings, configuration.

In: a Hugging Face directory, or a GGUF header with its config. Out: in a directory of the caller's,

    tokenizer.json          the ``tokenizers`` format: tokenizing needs neither torch nor transformers
    tokenizer_config.json   special tokens, add_bos_token, add_eos_token; chat templates where there are several
    chat_template.jinja     the default one, only if the model has one
    generation_config.json  ``eos_token_id`` lists every token that ends a turn
    config.json
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import ArtifactError, CheckpointError, first_line
from llmc.compiler.checkpoint.chat_templates import read_chat_templates
from llmc.compiler.checkpoint.gguf_header import GgufHeader
from llmc.compiler.checkpoint.gguf_tokenizer import build_gguf_tokenizer, read_token_facts
from llmc.compiler.checkpoint.hf_tokenizer import TOKENIZER_NAME, VOCABULARY_NAMES, read_hf_tokenizer
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.quantized.open_quantized import KEYS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GenerationConfig, PreTrainedConfig

log = logging.getLogger(__name__)

CONFIG_NAME = "tokenizer_config.json"
#: Files of a Hugging Face directory that are copied as they are, where nothing is to be completed.
ASSET_NAMES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
)


def write_hf_assets(source: Path, directory: Path, generation_config: GenerationConfig | None = None) -> None:
    """Copy or convert the assets of the Hugging Face directory ``source`` into ``directory``.

    Args:
        source: Directory of the checkpoint.
        directory: Where to write; made if it does not exist.
        generation_config: Written where ``source`` has no ``generation_config.json``.

    Raises:
        CheckpointError: a damaged tokenizer, or one that cannot be converted.
        MissingDependencyError: a package that reads the vocabulary's file is not installed.
        ArtifactError: ``directory`` cannot be written.
    """
    _make(directory)
    for name in ASSET_NAMES:
        if (source / name).is_file():
            _copy(source / name, directory / name)
    _write_tokenizer(source, directory)
    if generation_config is not None and not (directory / "generation_config.json").is_file():
        _write_generation_config(directory, generation_config)
    _write_templates(source, directory)


def strip_quantization(directory: Path) -> None:
    """Take out of ``config.json`` in ``directory`` how a checkpoint's weights were quantized.

    Raises:
        ArtifactError: it cannot be written.
    """
    path = directory / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for part in (content, content.get("text_config")):
        if isinstance(part, dict):
            for key in KEYS:
                part.pop(key, None)
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_gguf_assets(
    header: GgufHeader, directory: Path, config: PreTrainedConfig, generation_config: GenerationConfig
) -> None:
    """Write the assets that the metadata of a GGUF file describes into ``directory``.

    The tokenizer gives llama.cpp's token ids, except where a text holds a literal U+2581 beside spaces: a
    sentencepiece vocabulary spells a space so, and the two are told apart by llama.cpp only.

    Raises:
        CheckpointError: no vocabulary in the file.
        UnsupportedModelError: a vocabulary or a text split that is not known.
        ArtifactError: ``directory`` cannot be written.
    """
    _make(directory)
    facts = read_token_facts(header)
    tokenizer = build_gguf_tokenizer(header)
    settings: dict[str, Any] = {
        "add_bos_token": facts.add_bos,
        "add_eos_token": facts.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(getattr(config, "max_position_embeddings", 0) or 0) or None,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    settings |= {role: facts.spelling(role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
    _write_text(directory / "tokenizer.json", tokenizer.to_str(pretty=False))
    _write_json(directory / "tokenizer_config.json", {k: v for k, v in settings.items() if v is not None})
    if facts.chat_template:
        _write_text(directory / "chat_template.jinja", facts.chat_template)
    _write_generation_config(directory, generation_config)
    described = config.to_diff_dict() | {"model_type": config.model_type}
    _write_json(directory / "config.json", {k: v for k, v in described.items() if k != "_model_name_or_path"})


def gguf_generation_config(header: GgufHeader) -> GenerationConfig:
    """Generation settings of a GGUF file: bos, pad, and every id that ends a turn in ``eos_token_id``."""
    from transformers import GenerationConfig

    facts = read_token_facts(header)
    return GenerationConfig(
        bos_token_id=facts.special.get("bos_token"),
        eos_token_id=list(facts.end_ids) or None,
        pad_token_id=facts.special.get("pad_token"),
    )


def _write_generation_config(directory: Path, config: GenerationConfig) -> None:
    # Written from metadata and not by that version: the same model gives the same bytes.
    settings = {key: value for key, value in config.to_diff_dict().items() if key != "transformers_version"}
    _write_json(directory / "generation_config.json", settings)


def _write_tokenizer(source: Path, directory: Path) -> None:
    """``tokenizer.json`` with all that stands beside it, and the roles of its special tokens."""
    read = read_hf_tokenizer(source)
    if read is None:
        names = ", ".join((TOKENIZER_NAME, *VOCABULARY_NAMES))
        log.warning("%s has no tokenizer (%s): the artifact will take token ids only", source, names)
        return
    target = directory / TOKENIZER_NAME
    if read.converted is not None:
        _write_text(target, read.tokenizer.to_str(pretty=False))
    elif not _same_tokenizer(source / TOKENIZER_NAME, read.tokenizer):
        log.info("%s is completed by the files beside it, as transformers reads them", source / TOKENIZER_NAME)
        _write_text(target, read.tokenizer.to_str(pretty=False))
    settings = _read_settings(directory / CONFIG_NAME)
    stated = {name: token.get("content") if isinstance(token, dict) else token for name, token in settings.items()}
    if not read.roles.items() <= stated.items():
        _write_json(directory / CONFIG_NAME, settings | dict(read.roles))


def _same_tokenizer(path: Path, tokenizer: Tokenizer) -> bool:
    """Whether the file alone makes this tokenizer."""
    from tokenizers import Tokenizer

    try:
        alone = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise CheckpointError(
            f"{path} is not a tokenizer that this version can read ({first_line(error)}); fetch it again."
        ) from error
    return _meaning(alone) == _meaning(tokenizer)


def _meaning(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a tokenizer does to a text that is neither cut nor filled up."""
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    if not (content["post_processor"] or {}).get("special_tokens", True):
        content["post_processor"] = None  # a template that adds nothing
    return {name: value for name, value in content.items() if name not in ("truncation", "padding")}


def _write_templates(source: Path, directory: Path) -> None:
    """The chat template where readers look for it; all of several, by name, in the tokenizer's settings."""
    templates = read_chat_templates(source)
    if "default" in templates:
        _write_text(directory / "chat_template.jinja", templates["default"])
    if set(templates) - {"default"}:
        named = [{"name": name, "template": template} for name, template in sorted(templates.items())]
        _write_json(directory / CONFIG_NAME, {**_read_settings(directory / CONFIG_NAME), "chat_template": named})


def _read_settings(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = read_json_object(path) if path.is_file() else {}
    return settings


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be made ({error.strerror}); name another directory.") from error


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ArtifactError(f"{source} cannot be copied to {target} ({error.strerror}).") from error


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written ({error.strerror}); free some space.") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n")
