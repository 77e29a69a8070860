"""Chat templates against transformers' own rendering."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.chat import render_chat
from llmc.runtimes.generation.text import TextTokenizer

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}
        {{ raise_exception('Unknown role ' + message['role']) }}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
        {{- message['content'] + '<|im_end|>' + '\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' + '\\n' }}
    {%- endif %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
ALTERNATING = """\
{{ bos_token }}{% set ns = namespace(turns=0) %}
{% for message in messages %}
  {% if message['role'] == 'system' %}{% continue %}{% endif %}
  {% if (message['role'] == 'user') != (ns.turns % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant') }}
  {% endif %}
  {% set ns.turns = ns.turns + 1 %}
{{ 'named' if 'name' in message }}
[{{ message['role'] | upper }}] {{ message['content'] | trim }}{{ eos_token if message['role'] == 'assistant' }}
{% if ns.turns == 4 %}{% break %}{% endif %}
{% endfor %}
{{ tools | tojson(indent=2) if tools else 'no tools' }} {{ {'a<b': "ß'"} | tojson }} {{ strftime_now('%Y') }}
{% if pad_token is defined %}{{ pad_token }}{% endif %} {{ style | default('plain') }}
{% if add_generation_prompt %}[ASSISTANT]{% endif %}
"""
TOOL = {"type": "function", "function": {"name": "time", "description": "Tells the time <now> & date"}}
CHATS = [
    [{"role": "user", "content": "Hello?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " a\n b "}],
    [
        {"role": "user", "content": "x", "name": None},
        {"role": "assistant", "content": "ü"},
        {"role": "user", "content": "y"},
    ],
    [{"role": r, "content": c} for r, c in [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]],
]


@pytest.mark.parametrize("template", [CHATML, ALTERNATING])
@pytest.mark.parametrize("options", [{}, {"tools": [TOOL]}, {"style": "terse"}, {"add_generation_prompt": False}])
def test_rendering_is_that_of_transformers(
    byte_level: Any, tokenizer_directory: Callable[..., Path], template: str, options: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    directory = tokenizer_directory(byte_level, chat_template=template, **names)
    theirs, ours = AutoTokenizer.from_pretrained(directory), TextTokenizer.from_directory(directory)
    options = {"add_generation_prompt": True, **options}
    for chat in CHATS:
        assert ours.render_chat(chat, **options) == theirs.apply_chat_template(chat, tokenize=False, **options)
        assert ours.encode_chat(chat, **options) == theirs.apply_chat_template(chat, return_dict=False, **options)


def test_a_generation_block_has_its_own_scope() -> None:
    template = "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    assert render_chat(template, CHATS[0], variables={}) == "21"


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (ALTERNATING, [{"role": "assistant", "content": "x"}], "refuses these messages: Conversation roles must"),
        (CHATML, [{"role": "poet", "content": "x"}], "Unknown role poet"),
        ("ok\n{% for %}", CHATS[0], "does not parse at line 2"),
        (CHATML, [], "conversation is empty"),
        ("{{ messages[0]['content'] + 1 }}", CHATS[0], "refuses these messages"),
        ("{{ messages.append(1) }}", CHATS[0], "refuses these messages: .*safe"),
        ("{{ messages.__class__.__mro__ }}", CHATS[0], "refuses these messages: .*unsafe"),
    ],
)
def test_what_is_refused(template: str, chat: list[dict[str, str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render_chat(template, chat, variables={"bos_token": "", "eos_token": ""})
