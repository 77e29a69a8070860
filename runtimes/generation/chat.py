"""Chat templates: messages in, the text that the model was trained to continue out.

The environment is the one that templates on the Hub are written for (transformers' documentation, "Chat templates";
``transformers/utils/chat_template_utils.py``): a sandbox in which blocks eat their line breaks, loops have ``break``
and ``continue``, ``{% generation %}`` marks the assistant's text, and ``raise_exception``, ``strftime_now`` and an
unescaped ``tojson`` exist. Templates come from strangers, so the sandbox lets them change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from llmc.compiler.base.errors import UsageError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    variables: Mapping[str, Any],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Render a conversation.

    Args:
        template: The Jinja source.
        messages: ``{"role": "user", "content": "…"}`` and what else the template reads; keys whose value is None are
            left out.
        variables: What the template may name besides (``bos_token``, ``eos_token``, the template's own switches).
        add_generation_prompt: End with the header of the assistant's turn.
        tools: JSON schemas of functions, for templates that list them.

    Returns:
        The prompt; it carries its own special tokens, so it is encoded without adding more.

    Raises:
        UsageError: no message, a template that does not parse, or messages that the template refuses.
    """
    import jinja2

    if not messages:
        raise UsageError("the conversation is empty: give at least one message")
    cleaned = [{key: value for key, value in message.items() if value is not None} for message in messages]
    context: dict[str, Any] = {
        "tools": None if tools is None else [dict(tool) for tool in tools],
        "documents": None,
        **variables,
    }
    try:
        return _compile(template).render(messages=cleaned, add_generation_prompt=add_generation_prompt, **context)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"the chat template does not parse at line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"the chat template refuses these messages: {error}") from error


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """``{% generation %} … {% endgeneration %}``: its body, in a scope of its own."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
