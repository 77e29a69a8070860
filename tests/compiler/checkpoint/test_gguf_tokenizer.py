"""Token ids against llama.cpp's: the literals were printed by llama_cpp 0.3.36 (add_bos and special on)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.gguf_header import GgufHeader, read_gguf_header
from llmc.compiler.checkpoint.gguf_tokenizer import build_gguf_tokenizer, read_token_facts

SMOLLM2 = (
    ("", []),
    ("Hello, world!", [19556, 28, 905, 17]),
    ("\n\n1", [1116, 33]),
    (
        "In 2024, 1234567 items; 3.14159",
        [788, 216, 34, 32, 34, 36, 28, 216, 33, 34, 35, 36, 37, 38, 39, 3723, 43, 216, 35, 30, 33, 36, 33, 37, 41],
    ),
    ("  two\t\ttabs   and  spaces ", [216, 827, 197, 197, 100, 7366, 256, 284, 216, 5600, 216]),
    (
        "def f(x):\n    return x**2  # squared\n",
        [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 216, 907, 27402, 198],
    ),
    ("don't I'LL we've", [12420, 982, 339, 23, 16421, 392, 3543]),
    (
        "na\xefve caf\xe9 \u041f\u0440\u0438\u0432\u0435\u0442 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
        [
            3546,
            46494,
            37366,
            5470,
            249,
            46879,
            16464,
            32547,
            17097,
            241,
            115,
            40993,
            179,
            120,
            248,
            216,
            33085,
            246,
            181,
            130,
            251,
            183,
            240,
            129,
        ],
    ),
    (
        "\U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467 ok\U0001f1e9\U0001f1ea",
        [
            10813,
            38887,
            15107,
            235,
            118,
            321,
            231,
            10813,
            235,
            119,
            321,
            231,
            10813,
            235,
            117,
            10907,
            10813,
            225,
            119,
            10813,
            225,
            120,
        ],
    ),
    ("\xb2\xb3\xbc \u2167 \u0663", [19133, 39050, 28151, 216, 173, 223, 117, 216, 164, 113]),
    ("a\r\nb\r\n", [81, 201, 198, 82, 2738]),
    ("                                        x", [12427, 415, 1792]),
    ("<|im_start|>user\nHi<|im_end|>\n", [1, 4093, 198, 26843, 2, 198]),
    (
        "<start_of_turn>user\nHi<end_of_turn>\n",
        [44, 3738, 79, 1714, 79, 20589, 46, 4093, 198, 26843, 44, 486, 79, 1714, 79, 20589, 46, 198],
    ),
)

GEMMA3 = (
    ("", [2]),
    ("Hello, world!", [2, 9259, 236764, 1902, 236888]),
    ("\n\n1", [2, 108, 236770]),
    (
        "In 2024, 1234567 items; 3.14159",
        [
            2,
            902,
            236743,
            236778,
            236771,
            236778,
            236812,
            236764,
            236743,
            236770,
            236778,
            236800,
            236812,
            236810,
            236825,
            236832,
            4852,
            236793,
            236743,
            236800,
            236761,
            236770,
            236812,
            236770,
            236810,
            236819,
        ],
    ),
    ("  two\t\ttabs   and  spaces ", [2, 138, 13498, 255969, 39218, 139, 624, 138, 35220, 236743]),
    (
        "def f(x):\n    return x**2  # squared\n",
        [2, 2063, 517, 236769, 236781, 1473, 107, 140, 2060, 1123, 1018, 236778, 138, 236865, 20218, 107],
    ),
    ("don't I'LL we've", [2, 13246, 236789, 236745, 564, 236789, 2182, 692, 236789, 560]),
    (
        "na\xefve caf\xe9 \u041f\u0440\u0438\u0432\u0435\u0442 \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
        [2, 1789, 238527, 560, 33443, 15745, 8362, 33375, 238582, 50413, 237430],
    ),
    (
        "\U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467 ok\U0001f1e9\U0001f1ea",
        [2, 240731, 236743, 243874, 237243, 243767, 237243, 244814, 7546, 246841, 245562],
    ),
    ("\xb2\xb3\xbc \u2167 \u0663", [2, 238131, 239158, 240960, 236743, 251329, 223766]),
    ("a\r\nb\r\n", [2, 236746, 251, 107, 236763, 251, 107]),
    ("                                        x", [2, 167, 145, 236781]),
    (
        "<|im_start|>user\nHi<|im_end|>\n",
        [
            2,
            236820,
            236909,
            548,
            236779,
            3041,
            111038,
            2364,
            107,
            10979,
            236820,
            236909,
            548,
            236779,
            643,
            111038,
            107,
        ],
    ),
    ("<start_of_turn>user\nHi<end_of_turn>\n", [2, 105, 2364, 107, 10979, 106, 107]),
)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> GgufHeader:
    return read_gguf_header(smollm2_gguf)


@pytest.fixture(scope="module")
def gemma3(gemma3_gguf: Path) -> GgufHeader:
    return read_gguf_header(gemma3_gguf)


def changed(header: GgufHeader, **values: Any) -> GgufHeader:
    return dataclasses.replace(
        header, metadata=header.metadata | {f"tokenizer.ggml.{k}": v for k, v in values.items()}
    )


def test_smollm2_ids_are_llama_cpp_s(smollm2: GgufHeader) -> None:
    tokenizer = build_gguf_tokenizer(smollm2)
    for text, ids in SMOLLM2:
        assert tokenizer.encode(text).ids == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.gemma
def test_gemma_ids_are_llama_cpp_s(gemma3: GgufHeader) -> None:
    tokenizer = build_gguf_tokenizer(gemma3)
    for text, ids in GEMMA3:
        assert tokenizer.encode(text).ids == ids, text
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids[1:], text
        assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


@pytest.mark.gemma
def test_gemma_facts(gemma3: GgufHeader) -> None:
    facts = read_token_facts(gemma3)
    assert facts.add_bos
    assert facts.spelling("bos_token") == "<bos>"
    assert [facts.tokens[i] for i in facts.end_ids] == ["<eos>", "<end_of_turn>"]
    assert facts.chat_template is None


def test_smollm2_facts(smollm2: GgufHeader) -> None:
    facts = read_token_facts(smollm2)
    assert (facts.add_bos, facts.add_eos) == (False, False)
    assert facts.special == {"bos_token": 1, "eos_token": 2, "unk_token": 0, "pad_token": 2}
    assert [facts.tokens[i] for i in facts.end_ids] == ["<|im_end|>", "<|endoftext|>"]
    assert facts.chat_template is not None
    assert "<|im_start|>" in facts.chat_template


@pytest.fixture(scope="module")
def tiny(tiny_llama_gguf: Path) -> GgufHeader:
    return read_gguf_header(tiny_llama_gguf)


def test_bos_and_eos_are_added_where_the_file_says_so(tiny: GgufHeader) -> None:
    assert build_gguf_tokenizer(tiny).encode("ab").ids == [29]
    header = changed(tiny, add_bos_token=True, add_eos_token=True)
    tokenizer = build_gguf_tokenizer(header)
    assert tokenizer.encode("ab").ids == [1, 29, 2]
    assert tokenizer.encode("ab", "cd").ids == [1, 29, 2, 1, 30, 2]
    assert tokenizer.encode("ab", add_special_tokens=False).ids == [29]


def test_digits_are_split_only_where_the_file_says_so(smollm2: GgufHeader) -> None:
    with_digits = build_gguf_tokenizer(smollm2).encode("\n\n1").tokens
    without = build_gguf_tokenizer(changed(smollm2, pre="gpt-2")).encode("\n\n1").tokens
    assert with_digits == ["ĊĊ", "1"]
    assert without == ["Ċ", "Ċ", "1"]


def test_unknown_split_is_refused(tiny: GgufHeader) -> None:
    with pytest.raises(UnsupportedModelError, match="splits text in the way zigzag"):
        build_gguf_tokenizer(changed(tiny, pre="zigzag"))


def test_control_and_user_defined_tokens_stay_whole(smollm2: GgufHeader) -> None:
    """But for those that no text can be spelled as: they are in the vocabulary under their bytes."""
    tokens, kinds = (list(smollm2.metadata[f"tokenizer.ggml.{key}"]) for key in ("tokens", "token_type"))
    for index, token, kind in ((7, "<think>", 4), (8, "<tool", 3), (9, "<deux mots>", 4), (10, "<日>", 3)):
        tokens[index], kinds[index] = token, kind
    tokenizer = build_gguf_tokenizer(changed(smollm2, tokens=tokens, token_type=kinds))
    assert tokenizer.get_vocab_size() == len(tokens)
    assert tokenizer.encode("a<think>b<tool c").ids[1::2] == [7, 8]
    assert tokenizer.decode([7, 8]) == "<think>"
    for text in ("<deux mots>", "<日>"):
        assert len(tokenizer.encode(text).ids) > 1
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_of_a_file_without_kinds(tiny: GgufHeader) -> None:
    header = changed(tiny, token_type=None)
    end = read_token_facts(header).spelling("eos_token")
    assert end is not None
    assert build_gguf_tokenizer(header).encode(f"ab{end}").ids == [29, 2]


@pytest.mark.parametrize("merges", [["a b c"], ["a zebra"]], ids=["no pair", "not in the vocabulary"])
def test_merges_that_do_not_fit(tiny: GgufHeader, merges: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"merges of .* do not fit its vocabulary"):
        build_gguf_tokenizer(changed(tiny, merges=merges))


def test_a_file_without_merges(tiny: GgufHeader) -> None:
    header = dataclasses.replace(
        tiny, metadata={key: value for key, value in tiny.metadata.items() if key != "tokenizer.ggml.merges"}
    )
    with pytest.raises(CheckpointError, match=r"merges of .* do not fit its vocabulary"):
        build_gguf_tokenizer(header)


def test_splits_that_only_some_releases_of_transformers_know(
    tiny: GgufHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    table = {"letters and digits": r"\p{L}+|\p{N}"}
    monkeypatch.setattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", table, raising=False)
    split = build_gguf_tokenizer(changed(tiny, pre="letters and digits")).pre_tokenizer
    assert [piece for piece, _ in split.pre_tokenize_str("ab12c")] == ["ab", "1", "2", "c"]
    monkeypatch.delattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS")
    with pytest.raises(UnsupportedModelError, match="neither llmc nor the installed transformers knows"):
        build_gguf_tokenizer(changed(tiny, pre="letters and digits"))


def test_transformers_that_converts_other_kinds_differently(
    tiny: GgufHeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    monkeypatch.delattr(gguf_tokenizer_mapping, "convert_gguf_tokenizer", raising=False)
    with pytest.raises(UnsupportedModelError, match=r"\(llama\) as llama.cpp does; upgrade it"):
        build_gguf_tokenizer(changed(tiny, model="llama"))
    assert build_gguf_tokenizer(tiny).encode("ab").ids == [29]


def test_unknown_vocabulary_kind_is_refused(tiny: GgufHeader) -> None:
    with pytest.raises(UnsupportedModelError, match="abacus"):
        build_gguf_tokenizer(changed(tiny, model="abacus"))


def test_token_outside_the_vocabulary(tiny: GgufHeader) -> None:
    with pytest.raises(CheckpointError, match="token 99 of a vocabulary of 32"):
        read_token_facts(changed(tiny, bos_token_id=99))


def test_end_of_turn_stated_by_the_file(tiny: GgufHeader) -> None:
    assert read_token_facts(tiny).end_ids == (2,)
    assert read_token_facts(changed(tiny, eot_token_id=5)).end_ids == (2, 5)


def test_ordinary_text_that_looks_like_an_end_is_none(tiny: GgufHeader) -> None:
    tokens = [*tiny.metadata["tokenizer.ggml.tokens"][:31], "<|im_end|>"]
    assert read_token_facts(changed(tiny, tokens=tokens)).end_ids == (2,)
    kinds = [3, 3, 3] + [1] * 28 + [3]
    assert read_token_facts(changed(tiny, tokens=tokens, token_type=kinds)).end_ids == (2, 31)


def test_file_without_a_vocabulary(tiny: GgufHeader) -> None:
    with pytest.raises(CheckpointError, match="no vocabulary"):
        read_token_facts(changed(tiny, tokens=[]))
