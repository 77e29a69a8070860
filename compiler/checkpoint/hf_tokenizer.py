"""The tokenizer of a Hugging Face directory, as transformers reads it: out of all its files.

    tokenizer.json                                   the vocabulary; else one of
    tokenizer.model, spiece.model, *.bpe.model       a sentencepiece model, or a tiktoken vocabulary
    tiktoken.model, vocab.json + merges.txt, vocab.txt
    tokenizer_config.json, added_tokens.json, special_tokens_map.json    tokens and roles beside it
        ▼
    HfTokenizer ── a ``tokenizers.Tokenizer`` with all of them, and the roles

A fine-tune's new chat markers often stand in the files beside the vocabulary alone, and some classes of transformers
build a tokenizer anew from the vocabulary; so what stands in ``tokenizer.json`` is not always what the model was
trained with.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import CheckpointError, MissingDependencyError, first_line
from llmc.compiler.checkpoint.conversion_loading import quiet_transformers
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.tiktoken_file import is_tiktoken, own_tiktoken_reader, read_tiktoken

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

TOKENIZER_NAME = "tokenizer.json"
SIDE_NAMES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
#: Vocabularies in other forms, which transformers converts.
VOCABULARY_NAMES = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("vocab.json", "vocab.txt"),
)
_CLASS = "name the class that reads it as tokenizer_class in tokenizer_config.json, or add the model's tokenizer.json"
_SENTENCEPIECE_PACKAGES = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}


@dataclass(frozen=True)
class HfTokenizer:
    """What the files of a directory say together.

    Attributes:
        tokenizer: Encodes as transformers does.
        roles: ``bos_token``, ``eos_token`` … to the token's text, where the model has one.
        converted: The vocabulary's file, where that is not ``tokenizer.json``.
    """

    tokenizer: Tokenizer
    roles: Mapping[str, str]
    converted: Path | None


def read_hf_tokenizer(directory: Path) -> HfTokenizer | None:
    """The tokenizer of ``directory``; None if it has none.

    Raises:
        CheckpointError: a file is damaged, or the vocabulary has no form that ``tokenizers`` knows.
        MissingDependencyError: a package that reads the vocabulary's file is not installed.
    """
    if (directory / TOKENIZER_NAME).is_file():
        return _loaded(directory, None)
    vocabulary = next((path for name in VOCABULARY_NAMES if (path := directory / name).is_file()), None)
    if vocabulary is not None:
        log.info("converting %s to %s", vocabulary, TOKENIZER_NAME)
        return _converted(directory, vocabulary)
    split_by_code = sorted(directory.glob("*.tiktoken"))
    if split_by_code:
        raise CheckpointError(
            f"{split_by_code[0]} is a tiktoken vocabulary that only code of its model knows how to split text for; "
            "add the model's tokenizer.json (transformers' save_pretrained writes it where that code can run)."
        )
    return None


def _converted(directory: Path, vocabulary: Path) -> HfTokenizer:
    size = _count_tokens(vocabulary)
    tokenizer = _loaded(directory, vocabulary)
    known = tokenizer.tokenizer.get_vocab_size(with_added_tokens=True)
    # transformers' class may look for another file, and then makes a vocabulary of a few special tokens, silently.
    if 2 * known < size:
        raise CheckpointError(
            f"transformers makes a tokenizer of {known} tokens of {directory}, and {vocabulary.name} has "
            f"{size}; {_CLASS}."
        )
    return tokenizer


def _loaded(directory: Path, vocabulary: Path | None) -> HfTokenizer:
    """By transformers' own code."""
    source = directory / TOKENIZER_NAME if vocabulary is None else vocabulary
    for name in SIDE_NAMES:
        if (directory / name).is_file():
            read_json_object(directory / name)
    try:
        with own_tiktoken_reader(), quiet_transformers():
            loaded = _from_pretrained(directory, required=vocabulary is not None)
    except CheckpointError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        advice = "fetch the tokenizer's files again" if vocabulary is None else _CLASS
        raise CheckpointError(
            f"the tokenizer of {directory} cannot be read from {source.name} "
            f"({first_line(error).rstrip(': ')}); {advice}."
        ) from error
    tokenizer = getattr(loaded, "backend_tokenizer", None)
    if tokenizer is None:
        raise CheckpointError(
            f"{directory} has a tokenizer ({type(loaded).__name__}) that has no fast form; add a tokenizer.json."
        )
    return HfTokenizer(tokenizer, {name: str(token) for name, token in _roles(loaded).items()}, vocabulary)


def _from_pretrained(directory: Path, *, required: bool) -> Any:
    """transformers' tokenizer; of a class that is not known here, what ``tokenizer.json`` alone makes."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        # Said, since it would otherwise ask at the terminal.
        loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        if required:
            raise
        log.debug("%s is read by the general class, since its own cannot: %s", directory, error)
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    if hasattr(loaded, "backend_tokenizer") or required:
        return loaded
    return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)


def _roles(loaded: Any) -> Mapping[str, Any]:
    """Roles with one token each; transformers lists further special tokens under a name of their own."""
    return {name: token for name, token in loaded.special_tokens_map.items() if not isinstance(token, list)}


def _count_tokens(vocabulary: Path) -> int:
    """Tokens in the vocabulary's file.

    Raises:
        CheckpointError: it is damaged.
        MissingDependencyError: it is a sentencepiece model, and what reads these is not installed.
    """
    if vocabulary.suffix == ".model":
        return len(read_tiktoken(vocabulary)) if is_tiktoken(vocabulary) else _count_pieces(vocabulary)
    try:
        text = vocabulary.read_text(encoding="utf-8")
        return len(json.loads(text)) if vocabulary.suffix == ".json" else len(text.splitlines())
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{vocabulary} cannot be read ({first_line(error)}); fetch it again.") from error


def _count_pieces(path: Path) -> int:
    missing = [package for module, package in _SENTENCEPIECE_PACKAGES.items() if not _installed(module)]
    if missing:
        raise MissingDependencyError(
            f"{path} is a sentencepiece model, which is converted with {' and '.join(missing)}; run pip install "
            f"{' '.join(missing)}, or add the model's tokenizer.json."
        )
    from sentencepiece import SentencePieceProcessor

    try:
        return int(SentencePieceProcessor(model_file=str(path)).get_piece_size())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is neither a sentencepiece model nor a tiktoken vocabulary ({first_line(error)}); fetch it "
            "again."
        ) from error


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
