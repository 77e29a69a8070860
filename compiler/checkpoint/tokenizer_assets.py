"""The small files beside a graph: tokenizer, chat template, generation settings, configuration.

In: a Hugging Face directory, or a GGUF header with its config. Out: in a directory of the caller's,

    tokenizer.json          the ``tokenizers`` format: tokenizing needs neither torch nor transformers
    tokenizer_config.json   special tokens, add_bos_token, add_eos_token
    chat_template.jinja     only if the model has one
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
from llmc.compiler.checkpoint.gguf_header import GgufHeader
from llmc.compiler.checkpoint.gguf_tokenizer import build_gguf_tokenizer, read_token_facts

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

log = logging.getLogger(__name__)

#: Files of a Hugging Face directory that are copied as they are.
ASSET_NAMES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
)
_SLOW_TOKENIZER_NAMES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")


def write_hf_assets(source: Path, directory: Path, generation_config: GenerationConfig | None = None) -> None:
    """Copy or convert the assets of the Hugging Face directory ``source`` into ``directory``.

    Args:
        source: Directory of the checkpoint.
        directory: Where to write; made if it does not exist.
        generation_config: Written where ``source`` has no ``generation_config.json``.

    Raises:
        CheckpointError: no tokenizer, or a slow one that cannot be converted.
        ArtifactError: ``directory`` cannot be written.
    """
    _make(directory)
    if not (source / "tokenizer.json").is_file():
        _convert_slow_tokenizer(source, directory)
    for name in ASSET_NAMES:
        if (source / name).is_file():
            _copy(source / name, directory / name)
    if generation_config is not None and not (directory / "generation_config.json").is_file():
        _write_generation_config(directory, generation_config)
    _write_template_file(directory)


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


def _convert_slow_tokenizer(source: Path, directory: Path) -> None:
    if not any((source / name).is_file() for name in _SLOW_TOKENIZER_NAMES):
        names = ", ".join(("tokenizer.json", *_SLOW_TOKENIZER_NAMES))
        log.warning("%s has no tokenizer (%s): the artifact will take token ids only", source, names)
        return
    from transformers import AutoTokenizer

    log.info("converting the tokenizer of %s to tokenizer.json", source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        tokenizer.save_pretrained(directory)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{source} has a tokenizer without tokenizer.json, and converting it failed "
            f"({first_line(error)}); add the model's tokenizer.json."
        ) from error
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{source} has a tokenizer ({type(tokenizer).__name__}) that has no fast form; add a tokenizer.json."
        )


def _write_template_file(directory: Path) -> None:
    """Older checkpoints keep the chat template inside a JSON file; give it the file that readers look for."""
    target = directory / "chat_template.jinja"
    if target.is_file():
        return
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{name} of the checkpoint is not a JSON object ({error}); fetch it again."
            ) from error
        if isinstance(template, list):
            # Named templates; the one named default is what a plain chat uses.
            template = next((t.get("template") for t in template if t.get("name") == "default"), None)
        if isinstance(template, str):
            _write_text(target, template)
            return


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
