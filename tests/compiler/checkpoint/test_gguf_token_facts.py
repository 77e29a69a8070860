"""What a GGUF file says of its tokens and what it leaves to convention, and vocabularies that transformers builds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.gguf_header import GgufHeader, read_gguf_header
from llmc.compiler.checkpoint.gguf_tokenizer import build_gguf_tokenizer, read_token_facts

CONTROL, NORMAL, USER_DEFINED = 3, 1, 4


@pytest.fixture(scope="module")
def tiny(tiny_llama_gguf: Path) -> GgufHeader:
    return read_gguf_header(tiny_llama_gguf)


def changed(header: GgufHeader, *without: str, **values: Any) -> GgufHeader:
    """With other metadata of the tokenizer, and without some."""
    metadata = header.metadata | {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    for key in without:
        del metadata[f"tokenizer.ggml.{key}"]
    return dataclasses.replace(header, metadata=metadata)


@pytest.mark.parametrize(
    ("kind", "stated", "expected"),
    [
        ("llama", {}, True),
        ("gpt2", {}, False),
        ("t5", {}, False),
        ("llama", {"add_bos_token": False}, False),
        ("gpt2", {"add_bos_token": True}, True),
    ],
)
def test_a_sentencepiece_vocabulary_begins_texts_unless_the_file_says_no(
    tiny: GgufHeader, kind: str, stated: dict[str, bool], expected: bool
) -> None:
    facts = read_token_facts(changed(tiny, model=kind, **stated))
    assert (facts.add_bos, facts.add_eos) == (expected, False)


@pytest.mark.parametrize(("role", "key"), [("bos", "bos_token_id"), ("eos", "eos_token_id")])
def test_a_token_that_the_file_does_not_name_is_not_added(tiny: GgufHeader, role: str, key: str) -> None:
    header = changed(tiny, add_bos_token=True, add_eos_token=True)
    assert getattr(read_token_facts(header), f"add_{role}")
    assert not getattr(read_token_facts(changed(header, key)), f"add_{role}")


def test_roles_are_the_file_s(tiny: GgufHeader) -> None:
    facts = read_token_facts(changed(tiny, bos_token_id=5, eos_token_id=6, unknown_token_id=7, padding_token_id=0))
    assert facts.special == {"bos_token": 5, "eos_token": 6, "unk_token": 7, "pad_token": 0}
    assert [facts.spelling(f"{role}_token") for role in ("bos", "eos", "unk", "pad", "sep")] == [
        *"cde",
        "<unk>",
        None,
    ]


@pytest.mark.parametrize("key", ["bos", "eos", "unknown", "padding", "eot", "eom"])
def test_ids_are_those_of_the_vocabulary(tiny: GgufHeader, key: str) -> None:
    read_token_facts(changed(tiny, **{f"{key}_token_id": 31}))
    for beyond in (32, -1):
        with pytest.raises(CheckpointError, match=f"token {beyond} of a vocabulary of 32"):
            read_token_facts(changed(tiny, **{f"{key}_token_id": beyond}))


def test_what_the_file_states_ends_a_turn_first(tiny: GgufHeader) -> None:
    """End of text, of turn, of message; then what is spelled as an end, in the order of the vocabulary."""
    tokens = [*tiny.metadata["tokenizer.ggml.tokens"]]
    tokens[3], tokens[4] = "<|eot_id|>", "<end_of_turn>"
    kinds = [CONTROL] * 5 + [NORMAL] * 27
    header = changed(tiny, tokens=tokens, token_type=kinds, eot_token_id=30, eom_token_id=29, eos_token_id=31)
    # 2 is spelled "</s>".
    assert read_token_facts(header).end_ids == (31, 30, 29, 2, 3, 4)


# Spellings that end a turn in published models; llama.cpp's table has them all.
ENDS = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<eos>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
]


def test_ends_of_published_models(tiny: GgufHeader) -> None:
    tokens = [*ENDS, "<|im_start|>", "<bos>", *(f"t{i}" for i in range(10))]
    header = changed(tiny, "bos_token_id", "eos_token_id", tokens=tokens, token_type=[CONTROL] * len(tokens))
    assert read_token_facts(header).end_ids == tuple(range(len(ENDS)))


@pytest.mark.parametrize(
    ("flags", "one", "two"),
    [
        ({"add_bos_token": True}, [1, 29], [1, 29, 1, 30]),
        ({"add_eos_token": True}, [29, 2], [29, 2, 30, 2]),
        ({}, [29], [29, 30]),
    ],
    ids=["begin", "end", "neither"],
)
def test_texts_begin_or_end_with_their_token(
    tiny: GgufHeader, flags: dict[str, bool], one: list[int], two: list[int]
) -> None:
    tokenizer = build_gguf_tokenizer(changed(tiny, **flags))
    assert tokenizer.encode("ab").ids == one
    assert tokenizer.encode("ab", "cd").ids == two
    assert tokenizer.encode("ab", add_special_tokens=False).ids == [29]


def pieces(header: GgufHeader, text: str) -> list[str]:
    return [piece for piece, _ in build_gguf_tokenizer(header).pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("split", ["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"])
def test_splits_that_are_gpt_2_s(tiny: GgufHeader, split: str) -> None:
    assert pieces(changed(tiny, pre=split), "ab 123's") == ["ab", "Ġ123", "'s"]


@pytest.mark.parametrize("split", ["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"])
def test_splits_after_each_digit(tiny: GgufHeader, split: str) -> None:
    assert pieces(changed(tiny, pre=split), "ab 123's") == ["ab", "Ġ", "1", "2", "3", "'s"]


def test_a_file_that_names_no_split_has_gpt_2_s(tiny: GgufHeader) -> None:
    assert pieces(changed(tiny, "pre"), "ab 123") == ["ab", "Ġ123"]


def test_pieces_of_a_split_of_transformers_are_not_split_again(
    tiny: GgufHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2 would cut the apostrophe, and put a space before the text where it is told to."""
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    monkeypatch.setattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", {"words": r"\S+"}, raising=False)
    assert pieces(changed(tiny, pre="words"), "ab's 1-2") == ["ab's", "Ġ", "1-2"]


def test_only_control_tokens_are_special(tiny: GgufHeader) -> None:
    """What a user defined stays whole, but is a part of the text that is shown."""
    tokens = [*tiny.metadata["tokenizer.ggml.tokens"]]
    tokens[28] = "<think>"
    kinds = [CONTROL] * 3 + [NORMAL] * 25 + [USER_DEFINED] + [NORMAL] * 3
    tokenizer = build_gguf_tokenizer(changed(tiny, tokens=tokens, token_type=kinds))
    assert tokenizer.encode("ab<think></s>").ids == [29, 28, 2]
    assert tokenizer.decode([29, 28, 2]) == "ab<think>"


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What transformers' converter is handed; it makes a vocabulary that spells spaces U+2581, as sentencepiece's."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    seen: dict[str, Any] = {}

    def convert(architecture: str, values: dict[str, Any]) -> Any:
        seen.update(values, architecture=architecture)
        vocabulary = {token.replace(" ", "\u2581"): i for i, token in enumerate(values["tokens"])}
        merges = [("\u2581", "\u2581")] if "\u2581" in vocabulary else []
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        return tokenizer, {}

    monkeypatch.setattr(gguf_tokenizer_mapping, "convert_gguf_tokenizer", convert)
    return seen


def test_transformers_converter_hears_of_everything(tiny: GgufHeader, converted: dict[str, Any]) -> None:
    """Under its own names: source, transformers' table of GGUF's keys."""
    stated = {
        "pre": "default",
        "scores": [0.5] * 32,
        "precompiled_charsmap": [1],
        "add_space_prefix": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 3,
    }
    build_gguf_tokenizer(changed(tiny, model="llama", **stated))
    expected = {
        "architecture": "llama",
        "tokenizer_type": "llama",
        "pre_tokenizer_type": "default",
        "scores": [0.5] * 32,
        "precompiled_charsmap": [1],
        "add_prefix_space": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
        "pad_token_id": 3,
    }
    for key in ("tokens", "token_type", "merges"):
        expected[key] = tiny.metadata[f"tokenizer.ggml.{key}"]
    assert converted == expected


@pytest.mark.parametrize(
    ("kind", "ids"), [(USER_DEFINED, [1, 5, 4, 4, 26]), (NORMAL, [1, 4, 4, 4, 4, 4, 26])], ids=["its own", "ordinary"]
)
def test_a_run_of_spaces_that_is_a_token_is_cut_before_the_merges(
    tiny: GgufHeader, converted: dict[str, Any], kind: int, ids: list[int]
) -> None:
    """The longest first; a run that is an ordinary token is left to the merges, which here know pairs only."""
    tokens = [*tiny.metadata["tokenizer.ggml.tokens"]]
    tokens[3], tokens[4], tokens[5] = " ", "  ", " " * 6
    kinds = [CONTROL] * 3 + [NORMAL, NORMAL, kind] + [NORMAL] * 26
    header = changed(tiny, model="llama", tokens=tokens, token_type=kinds)
    tokenizer = build_gguf_tokenizer(header)
    assert tokenizer.encode(" " * 10 + "x").ids == ids
    assert tokenizer.token_to_id("\u2581" * 6) == 5
