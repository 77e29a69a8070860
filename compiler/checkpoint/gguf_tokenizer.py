"""The tokenizer that a GGUF file's metadata describes.

In: a :class:`GgufHeader`. Out: a ``tokenizers.Tokenizer`` with the token ids of llama.cpp (special tokens in the text
are recognised; beginning-of-sequence is added where the file says so), and the token facts that
``tokenizer_config.json`` and ``generation_config.json`` state.

A byte-level vocabulary (``gpt2``) is built here; its split of text before the merges (``tokenizer.ggml.pre``) is
looked up here and then in transformers' table, and an unknown one is refused. transformers builds all other kinds, in
releases that do it as llama.cpp does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError, first_line
from llmc.compiler.checkpoint.gguf_header import GgufHeader

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Source of this table: llama.cpp, src/llama-vocab.cpp. Splits that are GPT-2's own.
_GPT2_SPLITS = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"})

# GPT-2's split after every digit was made a piece of its own.
_DIGIT_SPLITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})

_CONTROL = 3
_USER_DEFINED = 4

# Tokens that end a turn or a text, by their spelling. Source: llama.cpp, src/llama-vocab.cpp, end of generation.
_END_SPELLINGS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|end_of_text|>", "<|end_of_turn|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<turn|>"),
        *("[EOT]", "[EOS]", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<eos>", "</s>"),
    }
)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@dataclass(frozen=True)
class GgufTokenFacts:
    """What the metadata says about special tokens.

    Attributes:
        special: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token`` to id, where they exist.
        tokens: Spelling of each id.
        add_bos: A text begins with ``bos_token``.
        add_eos: A text ends with ``eos_token``.
        end_ids: Ids after which generation stops: end of text, end of turn; ascending, ``eos_token`` first.
        chat_template: Jinja template of a chat, or None.
    """

    special: Mapping[str, int]
    tokens: tuple[str, ...]
    add_bos: bool
    add_eos: bool
    end_ids: tuple[int, ...]
    chat_template: str | None

    def spelling(self, role: str) -> str | None:
        """The token in the role ``bos_token``, ``eos_token`` …; None if there is none."""
        return self.tokens[self.special[role]] if role in self.special else None


def read_token_facts(header: GgufHeader) -> GgufTokenFacts:
    """Token facts of ``header``.

    Raises:
        CheckpointError: the file has no vocabulary, or names a token outside it.
    """
    metadata = header.metadata
    tokens = tuple(metadata.get("tokenizer.ggml.tokens", ()))
    if not tokens:
        raise CheckpointError(f"{header.path} has no vocabulary (tokenizer.ggml.tokens); convert the model again.")
    special = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            special[f"{role}_token"] = _checked_id(header, int(token_id), len(tokens))
    # Files from before the flag existed: llama.cpp adds it to a sentencepiece vocabulary.
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")
    return GgufTokenFacts(
        special=special,
        tokens=tokens,
        add_bos=bool(add_bos) and "bos_token" in special,
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos_token" in special,
        end_ids=_end_ids(header, tokens),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _checked_id(header: GgufHeader, token_id: int, count: int) -> int:
    if not 0 <= token_id < count:
        raise CheckpointError(
            f"{header.path} names token {token_id} of a vocabulary of {count} tokens; convert the model to GGUF "
            "again."
        )
    return token_id


def _end_ids(header: GgufHeader, tokens: tuple[str, ...]) -> tuple[int, ...]:
    stated = [header.metadata.get(f"tokenizer.ggml.{key}") for key in _END_KEYS]
    first = [_checked_id(header, int(token_id), len(tokens)) for token_id in stated if token_id is not None]
    kinds = header.metadata.get("tokenizer.ggml.token_type") or [_CONTROL] * len(tokens)
    # Only control tokens: a vocabulary trained on web pages may hold "</s>" as ordinary text.
    spelled = [i for i, token in enumerate(tokens) if token in _END_SPELLINGS and kinds[i] == _CONTROL]
    return tuple(dict.fromkeys([*first, *spelled]))


def build_gguf_tokenizer(header: GgufHeader) -> Tokenizer:
    """Tokenizer of ``header``; ``encode`` adds bos and eos where the file says so.

    Raises:
        UnsupportedModelError: a kind of vocabulary or a text split that llmc does not know.
        CheckpointError: the vocabulary is inconsistent.
    """
    facts = read_token_facts(header)
    if header.metadata.get("tokenizer.ggml.model") == "gpt2":
        tokenizer = _byte_level(header, facts)
    else:
        tokenizer = _converted(header)
        _add_space_runs(tokenizer, header)
    _set_post_processor(tokenizer, facts)
    return tokenizer


def _byte_level(header: GgufHeader, facts: GgufTokenFacts) -> Tokenizer:
    """Byte-level BPE: every byte of the text is one character of an alphabet of 256, and merges join them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    alphabet, spelled = set(pre_tokenizers.ByteLevel.alphabet()), normalizers.ByteLevel()
    vocabulary = {
        token if alphabet.issuperset(token) else spelled.normalize_str(token): index
        for index, token in enumerate(facts.tokens)
    }
    try:
        merges = [tuple(merge.split(" ")) for merge in header.metadata["tokenizer.ggml.merges"]]
        bpe = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    except Exception as error:
        reason = f"the merges of {header.path} do not fit its vocabulary ({first_line(error)})"
        raise CheckpointError(f"{reason}; convert the model to GGUF again.") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _split(header)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(facts.special.values(), _CONTROL)
    kinds = header.metadata.get("tokenizer.ggml.token_type") or [special.get(i) for i in range(len(facts.tokens))]
    # What is not spelled in the alphabet is in the vocabulary under its bytes: added as text, it would get a new id.
    kept = [(token, kind) for token, kind in zip(facts.tokens, kinds, strict=False) if token in vocabulary]
    control = [token for token, kind in kept if kind == _CONTROL]
    defined = [token for token, kind in kept if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in defined])
    return tokenizer


def _split(header: GgufHeader) -> Any:
    """How text is cut before the merges."""
    from tokenizers import Regex, pre_tokenizers

    split = header.metadata.get("tokenizer.ggml.pre", "gpt-2")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split in _GPT2_SPLITS:
        return words
    if split in _DIGIT_SPLITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    # Not every release of transformers has such a table.
    known: Mapping[str, str] = getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", {})
    if (pattern := known.get(split)) is None:
        raise UnsupportedModelError(
            f"{header.path} splits text in the way {split} (tokenizer.ggml.pre), which neither llmc nor the "
            "installed transformers knows, and any other would give other tokens; upgrade transformers, or use the "
            "model's safetensors checkpoint."
        )
    pieces = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _converted(header: GgufHeader) -> Tokenizer:
    """The tokenizer as transformers builds it."""
    import transformers

    kind = header.metadata.get("tokenizer.ggml.model")
    try:
        # Releases that have it elsewhere build some of these vocabularies as unigram models: other tokens.
        from transformers.integrations.gguf.gguf_tokenizer_mapping import (
            GGUF_TOKENIZER_MAPPING,
            convert_gguf_tokenizer,
        )
    except ImportError as error:
        raise UnsupportedModelError(
            f"the installed transformers {transformers.__version__} does not convert the tokenizer of {header.path} "
            f"({kind}) as llama.cpp does; upgrade it: pip install 'transformers>=5.18'."
        ) from error
    keys = {f"tokenizer.{key}": name for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()}
    values = {keys[key]: value for key, value in header.metadata.items() if key in keys}
    try:
        tokenizer: Tokenizer
        tokenizer, _ = convert_gguf_tokenizer(header.architecture, values)
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise UnsupportedModelError(
            f"the tokenizer of {header.path} ({kind}) cannot be converted by the installed "
            f"transformers {transformers.__version__} ({first_line(error)}); use the model's safetensors checkpoint."
        ) from error
    return tokenizer


def _add_space_runs(tokenizer: Any, header: GgufHeader) -> None:
    """Cut runs of spaces that are tokens on their own (Gemma's 2 to 31) before the merges, the longest first.

    The file spells them with spaces and transformers with U+2581, so transformers does not find them among the
    user-defined tokens and leaves them to the merges, which cut a run of 100 differently.
    """
    from tokenizers import AddedToken

    kinds = header.metadata.get("tokenizer.ggml.token_type", ())
    runs = [
        "\u2581" * len(token)
        for token, kind in zip(header.metadata["tokenizer.ggml.tokens"], kinds, strict=False)
        if kind == _USER_DEFINED and token and not token.strip(" ")
    ]
    # Normalized: they are looked for after spaces became U+2581.
    tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs if tokenizer.token_to_id(run) is not None])


def _set_post_processor(tokenizer: Any, facts: GgufTokenFacts) -> None:
    from tokenizers import processors

    before = [facts.spelling("bos_token")] if facts.add_bos else []
    after = [facts.spelling("eos_token")] if facts.add_eos else []
    if not before and not after:
        return
    roles = (["bos_token"] if before else []) + (["eos_token"] if after else [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=[(facts.spelling(role), facts.special[role]) for role in roles],
    )
