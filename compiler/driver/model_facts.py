"""What a model is before anything is made of it: rotation, end tokens, window, vocabulary, and how it was stored.

In: an artifact, a Hugging Face directory or a ``.gguf`` file.
Out: :class:`ModelFacts`, as the files state it. Neither torch nor transformers is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import MANIFEST_NAME
from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.base.json_record import JsonValue, encode
from llmc.compiler.base.lfs_pointer import require_content
from llmc.compiler.checkpoint.builtin_models import BUILTIN_MODELS, locate_builtin_model
from llmc.compiler.checkpoint.gguf_files import find_gguf_model
from llmc.compiler.checkpoint.gguf_header import GgufHeader, read_gguf_header
from llmc.compiler.checkpoint.gguf_tokenizer import read_token_facts
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.stored_as import stored_as

_ROPE = (
    *("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq", "rotary_emb_base"),
    *("partial_rotary_factor", "rotary_pct", "rotary_dim", "original_max_position_embeddings"),
)
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


@dataclass(frozen=True)
class EndToken:
    """A token that ends a text or a turn.

    Attributes:
        id: Its number.
        text: As the vocabulary spells it; None where that is not known.
    """

    id: int
    text: str | None


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say; None: nothing.

    Attributes:
        path: What was looked at.
        model_type: transformers' or llama.cpp's name of the architecture.
        vocab_size: Tokens.
        context: Longest text that the model was made for, in tokens.
        window: Last positions that a token sees in a layer with a sliding window.
        windowed_layers: How many layers have one.
        rope: Parameters of the rotation of positions, under the names that they have there.
        end_tokens: In the order in which they are stated.
        stored_as: In what numbers the source has its weights, with its quantization; see :mod:`.stored_as`.
    """

    path: str
    model_type: str | None = None
    vocab_size: int | None = None
    context: int | None = None
    window: int | None = None
    windowed_layers: int | None = None
    rope: Mapping[str, JsonValue] = field(default_factory=dict)
    end_tokens: tuple[EndToken, ...] = ()
    stored_as: str | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Plain values for ``json.dump``."""
        return encode(self)


def find_checkpoint(path: Path) -> Path | None:
    """The directory or ``.gguf`` file of a checkpoint that ``path`` names; None: it names something else.

    Raises:
        CheckpointError: it is one of git-lfs pointers, or holds several models.
    """
    if not path.exists() and str(path) in BUILTIN_MODELS:
        return locate_builtin_model(str(path))
    if path.is_file():
        if path.suffix == ".gguf":
            require_content([path], CheckpointError)
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / MANIFEST_NAME).is_file() or any(path.glob("*.onnx")):
        return None
    require_content(sorted(path.glob("*.json")), CheckpointError)
    require_content(sorted((*path.glob("*.safetensors"), *path.glob("*.gguf"))), CheckpointError)
    return path if (path / "config.json").is_file() else find_gguf_model(path)


def checkpoint_facts(path: Path) -> ModelFacts:
    """Of a Hugging Face directory or a ``.gguf`` file.

    Raises:
        CheckpointError, UnsupportedModelError: it is damaged, or no language model.
        MissingDependencyError: the ``gguf`` package is not installed.
    """
    if path.is_file():
        return _gguf_facts(path, read_gguf_header(path))
    return _config_facts(path, stored_as(path))


def artifact_facts(directory: Path) -> ModelFacts:
    """Of an artifact; what is recorded of its source comes from its manifest.

    Raises:
        ArtifactError: it is none.
        CheckpointError: one of its side files is damaged.
    """
    manifest = open_artifact(directory).manifest
    windows = [window for window in manifest.model.sliding_windows if window]
    facts = _config_facts(directory, manifest.source.stored_as)
    return ModelFacts(
        path=facts.path,
        model_type=manifest.model.model_type,
        vocab_size=manifest.model.vocab_size,
        context=manifest.model.max_position_embeddings,
        window=min(windows, default=None),
        windowed_layers=len(windows) or None,
        rope=facts.rope,
        end_tokens=facts.end_tokens,
        stored_as=facts.stored_as,
    )


def _config_facts(directory: Path, stored: str | None) -> ModelFacts:
    path = directory / "config.json"
    config = read_json_object(path) if path.is_file() else {}
    inner = config.get("text_config")
    text: Mapping[str, Any] = {**config, **inner} if isinstance(inner, dict) else config
    window = _number(text, ("sliding_window",)) if text.get("use_sliding_window", True) else None
    kinds = text.get("layer_types")
    windowed = kinds.count("sliding_attention") if isinstance(kinds, list) else _number(text, ("num_hidden_layers",))
    return ModelFacts(
        path=str(directory),
        model_type=str(text["model_type"]) if text.get("model_type") else None,
        vocab_size=_number(text, ("vocab_size",)),
        context=_number(text, _CONTEXT),
        window=window,
        windowed_layers=windowed if window else None,
        rope={name: text[name] for name in _ROPE if text.get(name) is not None},
        end_tokens=_end_tokens(directory, config, text),
        stored_as=stored,
    )


def _end_tokens(directory: Path, config: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[EndToken, ...]:
    path = directory / "generation_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    holders = (settings, config, text)
    stated: Any = next((value for holder in holders if (value := holder.get("eos_token_id")) is not None), [])
    ids = [item for item in (stated if isinstance(stated, list) else [stated]) if isinstance(item, int)]
    if not ids or not (directory / "tokenizer.json").is_file():
        return tuple(EndToken(item, None) for item in ids)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the package raises nothing narrower
        raise CheckpointError(
            f"{directory / 'tokenizer.json'} is not a tokenizer that this version can read ({error}); fetch it again."
        ) from error
    return tuple(EndToken(item, tokenizer.id_to_token(item) if item >= 0 else None) for item in ids)


def _gguf_facts(path: Path, header: GgufHeader) -> ModelFacts:
    keys, prefix = header.metadata, f"{header.architecture}."
    own = {name.removeprefix(prefix): value for name, value in keys.items() if name.startswith(prefix)}
    tokens = read_token_facts(header)
    factors = [tensor.name for tensor in header.tensors if tensor.name.startswith("rope_")]
    rope = {name: value for name, value in own.items() if name.startswith("rope.")}
    return ModelFacts(
        path=str(path),
        model_type=header.architecture,
        vocab_size=len(tokens.tokens),
        context=_number(own, ("context_length",)),
        window=_number(own, ("attention.sliding_window",)),
        rope={**rope, **({"tensors": list(factors)} if factors else {})},
        end_tokens=tuple(EndToken(item, tokens.tokens[item]) for item in tokens.end_ids),
        stored_as=stored_as(path),
    )


def _number(holder: Mapping[str, Any], names: Iterable[str]) -> int | None:
    return next((value for name in names if isinstance(value := holder.get(name), int) and value > 0), None)
