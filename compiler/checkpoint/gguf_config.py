"""The transformers config that a GGUF file's metadata describes.

In: a :class:`GgufHeader`. Out: a ``PreTrainedConfig``, equal to that of
``AutoConfig.from_pretrained(directory, gguf_file=name)``.

transformers parses the file element by element, its vocabulary included, which takes seconds to half a minute. So it
is handed a small file with the same metadata and tensor names and without the vocabulary and the weights.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.decoded_text import is_utf8
from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError, first_line
from llmc.compiler.checkpoint.gguf_architectures import find_architecture, make_config
from llmc.compiler.checkpoint.gguf_header import GgufHeader, import_gguf
from llmc.compiler.checkpoint.gguf_keys import GgufKeys
from llmc.compiler.checkpoint.gguf_settings import apply_settings, checked_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TOKENS_KEY = "tokenizer.ggml.tokens"
# Stands for the vocabulary in the small file; no model has one of this size, so it is recognised in the config. More
# than one element, because transformers unpacks an array of one.
_PLACEHOLDER_TOKENS = ["<first>", "<second>"]
# Read by transformers without undoing what the converter did: rows of queries, keys and values in another order.
_MISREAD = frozenset({"falcon"})


def read_gguf_config(header: GgufHeader) -> PreTrainedConfig:
    """Config of the model in ``header``'s file; token ids and vocabulary size included.

    Raises:
        UnsupportedModelError: neither llmc nor transformers reads this architecture from GGUF, or not this variant.
        CheckpointError: metadata that the architecture needs is missing.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if header.architecture in _MISREAD:
        raise UnsupportedModelError(
            f"{header.path} is of the GGUF architecture {header.architecture}, which llmc does not read; use the "
            "model's safetensors checkpoint."
        )
    keys = GgufKeys(header)
    architecture = find_architecture(header)
    tokens = len(header.metadata.get(_TOKENS_KEY, ()))
    settings = checked_settings(keys)
    if architecture is None:
        config = _transformers_config(dataclasses.replace(header, metadata=settings))
        if config.vocab_size == len(_PLACEHOLDER_TOKENS):
            config.vocab_size = tokens
    else:
        config = make_config(keys, architecture, tokens)
    padding = getattr(config, "pad_token_id", None)
    if isinstance(padding, int) and padding >= config.vocab_size:
        config.pad_token_id = None  # the type's usual one, which this vocabulary has not
    # transformers leaves it out; readers of config.json choose a model class by it.
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    config.architectures = [name] if isinstance(name, str) else None
    config.name_or_path = str(header.metadata.get("general.name", header.path.stem))
    apply_settings(config, keys, {} if architecture is None else architecture.renamed)
    return config


def _transformers_config(header: GgufHeader) -> PreTrainedConfig:
    """As transformers makes it of the file."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    with tempfile.TemporaryDirectory(prefix="llmc-gguf-") as directory:
        _write_skeleton(Path(directory) / "skeleton.gguf", header)
        try:
            return transformers.AutoConfig.from_pretrained(directory, gguf_file="skeleton.gguf")
        except (StrictDataclassError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise CheckpointError(
                f"the metadata of {header.path} make no configuration of {header.architecture} "
                f"({first_line(error)}); convert the model to GGUF again."
            ) from error
        except ValueError as error:
            raise UnsupportedModelError(
                f"the GGUF architecture {header.architecture} of {header.path} is not read by the installed "
                f"transformers {transformers.__version__} ({first_line(error)}); use the model's safetensors "
                "checkpoint."
            ) from error
        except KeyError as error:
            raise CheckpointError(
                f"{header.path} lacks the metadata {error}, which its architecture {header.architecture} needs; "
                "convert the model to GGUF again."
            ) from error


def _write_skeleton(path: Path, header: GgufHeader) -> None:
    import numpy as np

    gguf = import_gguf()
    writer = gguf.GGUFWriter(path, header.architecture)
    for key, value in header.metadata.items():
        if key == _TOKENS_KEY:
            writer.add_array(key, _PLACEHOLDER_TOKENS)
        elif isinstance(value, str) and not is_utf8(value):
            continue  # A title or a licence in another encoding says nothing of the model's form.
        elif key != "general.architecture" and value not in ("", []) and not _is_vocabulary(key, value):
            writer.add_key_value(key, value, _widest_type(gguf.GGUFValueType, value))
    vocabulary_key = f"{header.architecture}.vocab_size"
    if _TOKENS_KEY in header.metadata and vocabulary_key not in header.metadata:
        # Where transformers reads it, the token ids are checked against the true size.
        writer.add_uint32(vocabulary_key, len(header.metadata[_TOKENS_KEY]))
    for tensor in header.tensors:
        writer.add_tensor(tensor.name, np.zeros(1, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _is_vocabulary(key: str, value: Any) -> bool:
    return key.startswith("tokenizer.") and isinstance(value, list)


def _widest_type(kinds: Any, value: Any) -> Any:
    """The widest type of the format that holds such values: what was read from 32 bits keeps its value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return kinds.UINT64 if value >= 0 else kinds.INT64
    return {bool: kinds.BOOL, float: kinds.FLOAT64, str: kinds.STRING, list: kinds.ARRAY}[type(value)]
