"""Tokenizers of Hugging Face directories in all their forms, against transformers' own of the same directory."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import CheckpointError, MissingDependencyError
from llmc.compiler.checkpoint import hf_tokenizer
from llmc.compiler.checkpoint.hf_tokenizer import read_hf_tokenizer
from llmc.compiler.checkpoint.tiktoken_file import own_tiktoken_reader
from llmc.compiler.checkpoint.tokenizer_assets import write_hf_assets
from llmc.runtimes.generation.text import TextTokenizer

from .awkward_texts import AWKWARD

CORPUS = ["The engine reads the prompt and writes it.", "the turn ends, then the next turn begins 1234 times"] * 8
ADDED = {
    "content": "<zz>",
    "special": True,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
}


def byte_level(*, merges: bool = True) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if merges:
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def directory_of(path: Path, model_type: str = "llama", **files: Any) -> Path:
    """A directory with ``files``; ``__`` in a name stands for the dot, and what is no text is written as JSON."""
    path.mkdir()
    for name, content in {"config__json": {"model_type": model_type}, **files}.items():
        target = path / name.replace("__", ".")
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def settings(**fields: Any) -> dict[str, Any]:
    return {"tokenizer_class": "PreTrainedTokenizerFast", **fields}


def in_settings(path: Path) -> Path:
    return directory_of(
        path,
        tokenizer__json=byte_level().to_str(),
        tokenizer_config__json=settings(eos_token="<zz>", added_tokens_decoder={"300": ADDED}),
    )


def in_added_tokens(path: Path) -> Path:
    return directory_of(
        path,
        tokenizer__json=byte_level().to_str(),
        tokenizer_config__json=settings(),
        added_tokens__json={"<zz>": 300, "<|im_start|>": 301},
    )


def in_special_tokens_map(path: Path) -> Path:
    return directory_of(
        path,
        tokenizer__json=byte_level().to_str(),
        tokenizer_config__json=settings(),
        special_tokens_map__json={
            "eos_token": {**ADDED, "rstrip": True},
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        },
    )


def rebuilt_by_its_class(path: Path) -> Path:
    """transformers' class for Llama makes its tokenizer anew from the vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return directory_of(
        path,
        tokenizer__json=tokenizer.to_str(),
        tokenizer_config__json={"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {"120": ADDED}},
    )


def vocabulary_and_merges(path: Path) -> Path:
    content = json.loads(byte_level().to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["merges"]]
    vocabulary = {**content["vocab"], "<|endoftext|>": 300}
    return directory_of(
        path, "gpt2", vocab__json=vocabulary, merges__txt="#version: 0.2\n" + "\n".join(merges) + "\n"
    )


def tiktoken_lines() -> str:
    words = [b"th", b"the", b" the", b"en", b"er", b" en", b"in", b"on"]
    tokens = [bytes([i]) for i in range(256)] + words
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def tiktoken(path: Path) -> Path:
    fields = {
        "added_tokens_decoder": {"264": ADDED},
        "eos_token": "<zz>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return directory_of(path, tiktoken__model=tiktoken_lines(), tokenizer_config__json=fields)


def tiktoken_under_another_name(path: Path) -> Path:
    fields = {
        "added_tokens_decoder": {"264": ADDED},
        "eos_token": "<zz>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return directory_of(path, tokenizer__model=tiktoken_lines(), tokenizer_config__json=fields)


def sentencepiece_model(path: Path, **options: Any) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    prefix = path.parent / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(prefix), minloglevel=2, **options
    )
    return prefix.with_suffix(".model").read_bytes()


def sentencepiece_bpe(path: Path) -> Path:
    model = sentencepiece_model(path, vocab_size=320, model_type="bpe", byte_fallback=True, character_coverage=1.0)
    added = {"added_tokens_decoder": {"320": ADDED}}
    return directory_of(
        path, tokenizer__model=model, tokenizer_config__json={"tokenizer_class": "LlamaTokenizer", **added}
    )


def sentencepiece_unigram(path: Path) -> Path:
    model = sentencepiece_model(path, vocab_size=60, model_type="unigram", hard_vocab_limit=False)
    return directory_of(path, spiece__model=model, tokenizer_config__json={"tokenizer_class": "T5Tokenizer"})


Maker = Callable[[Path], Path]
MAKERS = [
    in_settings,
    in_added_tokens,
    in_special_tokens_map,
    rebuilt_by_its_class,
    vocabulary_and_merges,
    tiktoken,
    tiktoken_under_another_name,
    sentencepiece_bpe,
    sentencepiece_unigram,
]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_ids_and_texts_are_those_of_transformers(maker: Maker, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = maker(tmp_path / "in")
    write_hf_assets(source, tmp_path / "out")
    with own_tiktoken_reader():
        theirs = AutoTokenizer.from_pretrained(source)
    ours = TextTokenizer.from_directory(tmp_path / "out")
    for text in AWKWARD:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text
    roles = {name: str(token) for name, token in theirs.special_tokens_map.items() if not isinstance(token, list)}
    assert ours.special_tokens == roles


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_transformers_reads_the_artifact_as_it_reads_the_checkpoint(maker: Maker, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = maker(tmp_path / "in")
    write_hf_assets(source, tmp_path / "out")
    with own_tiktoken_reader():
        before = AutoTokenizer.from_pretrained(source)
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert [after(text)["input_ids"] for text in AWKWARD] == [before(text)["input_ids"] for text in AWKWARD]


@pytest.mark.parametrize("maker", [in_settings, in_added_tokens], ids=lambda maker: maker.__name__)
def test_a_marker_beside_the_vocabulary_is_one_token(maker: Maker, tmp_path: Path) -> None:
    write_hf_assets(maker(tmp_path / "in"), tmp_path / "out")
    assert TextTokenizer.from_directory(tmp_path / "out").encode("a<zz>")[1:] == [300]


def test_a_complete_tokenizer_is_copied(tmp_path: Path) -> None:
    pretty = byte_level().to_str(pretty=True)
    source = directory_of(tmp_path / "in", tokenizer__json=pretty, tokenizer_config__json=settings())
    write_hf_assets(source, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8") == pretty


def test_roles_of_older_files_reach_the_settings(tmp_path: Path) -> None:
    write_hf_assets(in_special_tokens_map(tmp_path / "in"), tmp_path / "out")
    assert TextTokenizer.from_directory(tmp_path / "out").special_tokens == {"eos_token": "<zz>"}


def test_a_class_of_the_checkpoint_s_own_is_not_run(tmp_path: Path) -> None:
    """What tokenizer.json says is read by the general class instead."""
    source = directory_of(
        tmp_path / "in",
        tokenizer__json=byte_level().to_str(),
        tokenizer_config__json={
            "auto_map": {"AutoTokenizer": [None, "own.Own"]},
            "added_tokens_decoder": {"300": ADDED},
        },
        own__py="raise SystemExit('run')",
    )
    tokenizer = read_hf_tokenizer(source)
    assert tokenizer is not None
    assert tokenizer.tokenizer.encode("<zz>").ids == [300]


def test_a_vocabulary_that_the_class_does_not_read_is_refused(tmp_path: Path) -> None:
    source = vocabulary_and_merges(tmp_path / "in")
    (source / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        CheckpointError, match=r"cannot be read from vocab\.json \(.*; name the class .* as tokenizer_cl"
    ):
        read_hf_tokenizer(source)


def test_a_vocabulary_that_the_class_overlooks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    few = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: few)
    with pytest.raises(CheckpointError, match=r"a tokenizer of 1 tokens .* vocab\.json has 301; name the class"):
        read_hf_tokenizer(vocabulary_and_merges(tmp_path / "in"))


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    class SlowTokenizer:
        pass

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: SlowTokenizer())
    with pytest.raises(CheckpointError, match=r"has a tokenizer \(SlowTokenizer\) that has no fast form"):
        read_hf_tokenizer(vocabulary_and_merges(tmp_path / "in"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tiktoken.model", b"IQ== 0\n", r"the tiktoken vocabulary \S*tiktoken\.model has 1 tokens and none for 255"),
        ("tiktoken.model", b"IQ== 0\n!!\n", r"line 2 of the tiktoken vocabulary"),
        ("tiktoken.model", b"IQ== 0\nIQ== 1\n", r"has a token or a rank twice"),
        ("qwen.tiktoken", b"IQ== 0\n", r"qwen\.tiktoken is a tiktoken vocabulary that only code of its model"),
        ("tokenizer.model", b"\x00\x01nothing", r"neither a sentencepiece model nor a tiktoken vocabulary"),
        ("tokenizer.json", b"{", r"the tokenizer of \S+ cannot be read from tokenizer\.json"),
        ("vocab.json", b"[", r"vocab\.json cannot be read"),
    ],
)
def test_damaged_vocabularies_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    pytest.importorskip("sentencepiece")
    source = directory_of(tmp_path / "in")
    (source / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_hf_tokenizer(source)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"])
def test_damaged_side_files_are_named(tmp_path: Path, name: str) -> None:
    source = directory_of(tmp_path / "in", tokenizer__json=byte_level().to_str())
    (source / name).write_text("[1]")
    with pytest.raises(CheckpointError, match=f"{name} is not a JSON object but a list"):
        read_hf_tokenizer(source)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = directory_of(tmp_path / "in")
    (source / "tokenizer.model").write_bytes(b"\x0a\x00")
    monkeypatch.setattr(hf_tokenizer, "_installed", lambda module: module != "sentencepiece")
    with pytest.raises(MissingDependencyError, match=r"pip install sentencepiece, or add"):
        read_hf_tokenizer(source)


def test_no_tokenizer(tmp_path: Path) -> None:
    assert read_hf_tokenizer(directory_of(tmp_path / "in")) is None
