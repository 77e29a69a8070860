"""A chat in the terminal.

In: lines that a person types. Out: the model's answers, as they come; the conversation grows by both.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from llmc.compiler.base.errors import UsageError
from llmc.compiler.cli.streams import argument_text, read_line

if TYPE_CHECKING:
    from llmc.compiler.cli.output import Output
    from llmc.runtimes.generation.text_engine import Conversation, Reply

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it; Ctrl-C stops an answer"


def follow(reply: Reply, *, show: bool = True) -> bool:
    """Generate to the end and, with ``show``, write the first row's text as it comes; whether Ctrl-C ended it."""
    interrupted = False
    try:
        for pieces in reply:
            if show:
                sys.stdout.write(pieces[0])
                sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    if show:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return interrupted


def converse(conversation: Conversation, output: Output) -> None:
    """Read turns until the input ends, and answer them."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() its history and editing)
    output.note(HELP)
    while (text := _read_line()) is not None:
        if text in {"/exit", "/quit"}:
            return
        if text == "/reset":
            conversation.reset()
        elif text in {"/help", "/?"}:
            output.note(HELP)
        elif text:
            _take_turn(conversation, text, output)


def _take_turn(conversation: Conversation, text: str, output: Output) -> None:
    try:
        reply = conversation.ask(text)
    except UsageError as error:
        if not conversation.messages or not conversation.engine.tokenizer.has_chat_template:
            raise
        output.note(f"{error}; or /reset")
        return
    follow(reply)
    conversation.remember(text, reply.texts[0])
    output.note(str(reply.speed))


def _read_line() -> str | None:
    """The next line without its end; None where the input ends or Ctrl-C is pressed."""
    try:
        if sys.stdin.isatty():
            return argument_text(input("> "), "the line").strip()
        line = read_line()
        return line.strip() if line else None
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None
