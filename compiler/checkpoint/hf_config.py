"""Configuration of a Hugging Face directory, checked before anything is built from it.

In: a directory with ``config.json``. Out: the ``PreTrainedConfig`` of a causal language model, generation settings
and licence.
"""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.base.foreign_errors import told_as
from llmc.compiler.checkpoint.causal_class import causal_class
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.other_directory import no_checkpoint
from llmc.compiler.checkpoint.quantized.open_quantized import (
    KEYS,
    Quantization,
    stated_quantization,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

log = logging.getLogger(__name__)


def read_hf_config(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Config of the causal language model in ``directory``; of a multimodal one, that of its text model.

    Code in the directory runs only with ``trust_remote_code``. Without it, a model that transformers knows itself is
    read by transformers' own class even if the directory brings code.

    Raises:
        CheckpointError: ``config.json`` is missing or broken.
        UnsupportedModelError: an unknown ``model_type``, one that needs remote code, no causal language model, or
            weights that are quantized in a format that llmc does not read.
    """
    import transformers

    raw = _read_json(directory / "config.json")
    model_type = raw.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise CheckpointError(
            f"model_type in {directory / 'config.json'} is {model_type!r}, and no name; correct it."
        )
    if (place := _not_a_number(raw)) is not None:
        raise CheckpointError(f"{place} in {directory / 'config.json'} is NaN, and no number; correct it.")
    known = model_type in transformers.CONFIG_MAPPING
    stated = raw.get("auto_map")
    remote: dict[str, Any] = stated if isinstance(stated, dict) else {}
    if not known and remote and not trust_remote_code:
        raise UnsupportedModelError(
            f"{directory} brings model code of its own ({', '.join(sorted(remote))}) that would run on this machine; "
            "read it, and pass --trust-remote-code if you trust it."
        )
    if model_type is None and not remote:
        raise CheckpointError(
            f"{directory / 'config.json'} states no model_type, so it is not that of a model for transformers; name "
            "another directory, or state the model's type there."
        )
    if not known and not remote:
        raise UnsupportedModelError(
            f"the model_type {model_type!r} of {directory / 'config.json'} is not known to the installed "
            f"transformers {transformers.__version__}; upgrade transformers if the model is newer than it."
        )
    quantized = stated_quantization(directory, raw) is not None
    use_remote = bool(remote) and trust_remote_code
    what = f"{directory / 'config.json'} is refused by transformers {transformers.__version__}"
    with told_as(CheckpointError, what, "fetch it again"):
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=use_remote)
        if not (use_remote and "AutoModelForCausalLM" in remote):
            config = _causal_config(config, directory)
    _require_padding_in_vocabulary(config, directory)
    if quantized:
        # What transformers is given from here on are floats.
        forget_quantization(config)
    return config


def stated_hf_quantization(directory: Path) -> Quantization | None:
    """How the checkpoint in ``directory`` says that it is quantized; None where it says nothing.

    Raises:
        CheckpointError: ``config.json``, or the file that says so, is broken.
        UnsupportedModelError: llmc does not read that format.
    """
    return stated_quantization(directory, _read_json(directory / "config.json"))


def forget_quantization(config: PreTrainedConfig) -> None:
    """Take what is said of quantization out of a configuration, and out of those inside it."""
    for part in [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]:
        for key in KEYS:
            if part is not None and key in vars(part):
                delattr(part, key)


def read_hf_generation_config(directory: Path, config: PreTrainedConfig) -> GenerationConfig:
    """``generation_config.json`` of ``directory``, or what ``config`` implies.

    Raises:
        CheckpointError: the file is broken.
    """
    from transformers import GenerationConfig

    path = directory / "generation_config.json"
    if path.is_file():
        with told_as(CheckpointError, f"{path} is refused by transformers", "correct or remove it"):
            settings = GenerationConfig.from_pretrained(directory)
    else:
        with told_as(CheckpointError, f"transformers cannot read {directory / 'config.json'}", "correct it"):
            settings = GenerationConfig.from_model_config(config)
    _warn_of_silent_ends(settings, config, path if path.is_file() else directory / "config.json")
    return settings


def read_hf_licence(directory: Path) -> str | None:
    """Licence stated by the model card's front matter (``license:`` in README.md), or None."""
    card = directory / "README.md"
    if not card.is_file():
        return None
    first, *lines = card.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if first.strip() != "---":
        return None
    stated: dict[str, str] = {}
    for line in itertools.takewhile(lambda line: line.strip() != "---", lines):
        key, colon, value = line.partition(":")
        if colon:
            stated.setdefault(key.strip(), value.strip().strip("'\""))
    name = stated.get("license")
    # Hugging Face cards write "other" and put the name beside it.
    return stated.get("license_name") or name if name == "other" else name or None


def _causal_config(config: PreTrainedConfig, directory: Path) -> PreTrainedConfig:
    try:
        text = config.get_text_config()
    except ValueError:
        # Several text models, none of which is the one.
        text = None
    causal = text is not None and causal_class(text) is not None and not config.is_encoder_decoder
    if causal and text is not config:
        log.info("%s is multimodal; compiling its text model (%s)", directory, text.model_type)
    if not causal:
        stated = ", ".join(config.architectures or ()) or config.model_type
        raise UnsupportedModelError(
            f"{directory} is no causal language model ({stated}), and llmc compiles only these; name a decoder-only "
            "model."
        )
    return text


def _require_padding_in_vocabulary(config: PreTrainedConfig, directory: Path) -> None:
    """A padding token is a row of the embedding; transformers cannot make a table without it."""
    pad, vocabulary = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
    if isinstance(pad, int) and isinstance(vocabulary, int) and not -vocabulary <= pad < vocabulary:
        raise CheckpointError(
            f"pad_token_id is {pad} in {directory / 'config.json'}, beyond the vocabulary of {vocabulary} tokens; "
            "set it to null, or to a token that there is."
        )


def _warn_of_silent_ends(settings: GenerationConfig, config: PreTrainedConfig, path: Path) -> None:
    """A text ends at tokens that the model can say; a fine-tune may name one that its vocabulary never got."""
    stated, vocabulary = settings.eos_token_id, getattr(config, "vocab_size", None)
    ends = stated if isinstance(stated, list) else [stated]
    beyond = [
        end for end in ends if isinstance(end, int) and isinstance(vocabulary, int) and not 0 <= end < vocabulary
    ]
    if beyond:
        log.warning(
            "eos_token_id is %s in %s, beyond the vocabulary of %s tokens: the model can never end a text by it",
            ", ".join(map(str, beyond)),
            path,
            vocabulary,
        )


def _not_a_number(value: object, place: str = "") -> str | None:
    """Where a setting is NaN, as ``rope_parameters.factor``; None: nowhere. Infinity is a bound of some models."""
    if isinstance(value, float) and math.isnan(value):
        return place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    wrong = (_not_a_number(item, f"{place}.{key}".strip(".")) for key, item in inner)
    return next((name for name in wrong if name is not None), None)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(no_checkpoint(path.parent))
    return read_json_object(path)
