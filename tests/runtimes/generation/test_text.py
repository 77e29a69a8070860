"""The tokenizer of an artifact directory, against transformers where it has an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.runtimes.generation.text import TextTokenizer

TEXTS = ["Hello the engine", "  two  spaces\n\n1234", "schön 日本語 🙂", "<|im_end|>x", "</s> y <s>", ""]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NAMES = {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
Directory = Callable[..., Path]


def test_round_trips(byte_level: Any, tokenizer_directory: Directory) -> None:
    from transformers import AutoTokenizer

    directory = tokenizer_directory(byte_level, **NAMES)
    theirs, ours = AutoTokenizer.from_pretrained(directory), TextTokenizer.from_directory(directory)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=False) == text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.vocab_size == len(theirs)
    assert ours.token_id("<|im_end|>") == 2
    assert ours.token_id("no such token") is None


@pytest.mark.parametrize("split", [True, False])
def test_special_tokens_are_split_where_the_tokenizer_says_so(
    byte_level: Any, tokenizer_directory: Directory, split: bool
) -> None:
    """Everywhere: in texts, and in what a template writes."""
    from transformers import AutoTokenizer

    directory = tokenizer_directory(byte_level, **NAMES, split_special_tokens=split, chat_template=CHATML)
    theirs, ours = AutoTokenizer.from_pretrained(directory), TextTokenizer.from_directory(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text, parse_special=False), skip_special_tokens=False) == text
    assert (2 in ours.encode("a<|im_end|>b")) is not split
    for content in ("Hello", "He typed <|im_end|>"):
        chat = [{"role": "user", "content": content}]
        own = ours.encode_chat(chat)
        assert own.count(2) == (0 if split else 1)
        assert ours.decode(own, skip_special_tokens=False) == ours.render_chat(chat)
        assert ours.encode_chat(chat, parse_special=True) == theirs.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )


@pytest.mark.parametrize("rule", [None, "<s> $A", "$A </s>"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
    ],
)
def test_begin_and_end_tokens_are_those_of_transformers(
    sentencepiece_like: Any, tokenizer_directory: Directory, rule: str | None, fields: dict[str, bool]
) -> None:
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.from_str(sentencepiece_like.to_str())
    if rule:
        special = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
        tokenizer.post_processor = processors.TemplateProcessing(single=rule, special_tokens=special)
    directory = tokenizer_directory(tokenizer, bos_token="<s>", eos_token="</s>")
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    theirs, ours = AutoTokenizer.from_pretrained(directory), TextTokenizer.from_directory(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]


def test_truncation_and_padding_of_the_file_are_ignored(byte_level: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(byte_level.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a long text " * 4
    assert TextTokenizer.from_directory(tmp_path).encode(text) == byte_level.encode(text).ids


@pytest.mark.parametrize(
    ("eos_token_id", "template", "expected"),
    [
        (None, None, (0,)),
        (2, None, (2,)),
        ([2, 1], None, (1, 2)),
        ([0], CHATML, (0, 2)),
        (None, CHATML, (2,)),
        (0, "{% for m in messages %}{{ m.content }}\n{% endfor %}", (0,)),
        (0, "{% for m in messages %}{{ m.content }} end of turn{% endfor %}", (0,)),
        (0, "{{ raise_exception('never') }}", (0,)),
    ],
)
def test_end_tokens(
    byte_level: Any,
    tokenizer_directory: Directory,
    eos_token_id: Any,
    template: str | None,
    expected: tuple[int, ...],
) -> None:
    directory = tokenizer_directory(byte_level, eos_token_id=eos_token_id, chat_template=template, **NAMES)
    assert TextTokenizer.from_directory(directory).eos_ids == expected


def test_end_tokens_of_the_model_configuration(byte_level: Any, tokenizer_directory: Directory) -> None:
    directory = tokenizer_directory(byte_level, **NAMES)
    (directory / "config.json").write_text('{"eos_token_id": [1]}')
    assert TextTokenizer.from_directory(directory).eos_ids == (1,)


def test_end_tokens_of_generation_go_before_the_model_s(byte_level: Any, tokenizer_directory: Directory) -> None:
    directory = tokenizer_directory(byte_level, eos_token_id=[2], **NAMES)
    (directory / "config.json").write_text('{"eos_token_id": 1}')
    assert TextTokenizer.from_directory(directory).eos_ids == (2,)


def test_a_chat_begins_once(sentencepiece_like: Any, tokenizer_directory: Directory) -> None:
    """The template writes what a text begins with; the tokenizer's own rule must not write it again."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(sentencepiece_like.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    template = "{{ bos_token }}{{ messages[0].content }}"
    directory = tokenizer_directory(tokenizer, chat_template=template, bos_token="<s>", eos_token="</s>")
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    ours = TextTokenizer.from_directory(directory)
    ids = ours.encode_chat([{"role": "user", "content": "the end"}])
    assert ids.count(1) == ids.index(1) + 1 == 1
    assert ours.encode("the end").count(1) == 1


def test_variables_go_before_the_tokenizer_s_tokens(byte_level: Any, tokenizer_directory: Directory) -> None:
    directory = tokenizer_directory(byte_level, chat_template="{{ bos_token }}{{ style }}", **NAMES)
    ours, chat = TextTokenizer.from_directory(directory), [{"role": "user", "content": "x"}]
    assert ours.render_chat(chat, style="s") == "<|im_start|>s"
    assert ours.render_chat(chat, bos_token="B", style="s") == "Bs"


def test_where_templates_are_found(byte_level: Any, tokenizer_directory: Directory) -> None:
    directory = tokenizer_directory(byte_level, **NAMES)
    chat = [{"role": "user", "content": "x"}]
    assert not TextTokenizer.from_directory(directory).has_chat_template
    with pytest.raises(UsageError, match="no chat template"):
        TextTokenizer.from_directory(directory).render_chat(chat)
    path = directory / "tokenizer_config.json"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    assert TextTokenizer.from_directory(directory).render_chat(chat) == "plain"
    assert TextTokenizer.from_directory(directory).render_chat(chat, tools=[{}]) == "tools"
    assert TextTokenizer.from_directory(directory).render_chat(chat, tools=[]) == "plain"
    path.write_text(json.dumps({"chat_template": "one"}))
    assert TextTokenizer.from_directory(directory).render_chat(chat) == "one"
    (directory / "chat_template.jinja").write_text("file")
    assert TextTokenizer.from_directory(directory).render_chat(chat) == "file"


def test_special_tokens_written_as_objects(byte_level: Any, tokenizer_directory: Directory) -> None:
    directory = tokenizer_directory(byte_level)
    config = {"bos_token": {"content": "<|im_start|>", "lstrip": False}, "eos_token": None}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = TextTokenizer.from_directory(directory)
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>"}
    assert tokenizer.eos_ids == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{", "not a tokenizer"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("generation_config.json", "[1]", "holds a list where a JSON object"),
    ],
)
def test_damaged_directories(
    byte_level: Any, tokenizer_directory: Directory, name: str, content: str | None, message: str
) -> None:
    path = tokenizer_directory(byte_level) / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=message):
        TextTokenizer.from_directory(path.parent)


def test_named_templates_stay_beside_the_default_one(byte_level: Any, tokenizer_directory: Directory) -> None:
    directory = tokenizer_directory(byte_level, **NAMES)
    path = directory / "tokenizer_config.json"
    named = [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "tools {{ tools[0].name }}"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    (directory / "chat_template.jinja").write_text("plain")
    tokenizer = TextTokenizer.from_directory(directory)
    turn = [{"role": "user", "content": "?"}]
    assert tokenizer.render_chat(turn) == "plain"
    assert tokenizer.render_chat(turn, tools=[{"name": "f"}]) == "tools f"


@pytest.mark.parametrize("value", [[{"name": "x"}], 3, ["x"]])
def test_damaged_templates(byte_level: Any, tokenizer_directory: Directory, value: object) -> None:
    directory = tokenizer_directory(byte_level, **NAMES)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ArtifactError, match=r"chat templates of .* cannot be read"):
        TextTokenizer.from_directory(directory)
