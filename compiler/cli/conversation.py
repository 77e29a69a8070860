"""A chat in the terminal.

In: lines that a person types. Out: the model's answers, as they come; the conversation grows by both.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmc.compiler.base.errors import UsageError

if TYPE_CHECKING:
    from llmc.compiler.cli.output import Output
    from llmc.compiler.cli.text_generation import Reply, TextEngine
    from llmc.runtimes.generation.chat import Message

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) ends it; Ctrl-C stops an answer"


def print_as_it_comes(reply: Reply) -> bool:
    """Write the only row's text, flushed piece by piece; returns whether Ctrl-C ended it."""
    interrupted = False
    try:
        for pieces in reply:
            sys.stdout.write(pieces[0])
            sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    sys.stdout.write("\n")
    sys.stdout.flush()
    return interrupted


@dataclass
class Conversation:
    """What was said so far.

    Attributes:
        engine: Answers.
        begin: Begins a generation from token ids.
        system: System message, or None.
        messages: Everything said, the system message first.
    """

    engine: TextEngine
    begin: Callable[[list[list[int]]], Reply]
    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> Reply:
        """Begin the answer to a new turn; nothing is remembered before :meth:`remember`.

        Raises:
            UsageError: the model has no chat template, or the conversation fills the context.
        """
        turn: Message = {"role": "user", "content": text}
        return self.begin([self.engine.encode_chat([*self.messages, turn])])

    def remember(self, text: str, answer: str) -> None:
        """Keep a turn and its answer."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def run(self, output: Output) -> None:
        """Read turns until the input ends."""
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (gives input() its history and editing)
        output.note(HELP)
        while (text := _read_line()) is not None:
            if text in {"/exit", "/quit"}:
                return
            if text == "/reset":
                self.reset()
            elif text in {"/help", "/?"}:
                output.note(HELP)
            elif text:
                self._turn(text, output)

    def _turn(self, text: str, output: Output) -> None:
        try:
            reply = self.ask(text)
        except UsageError as error:
            if not self.messages or not self.engine.tokenizer.has_chat_template:
                raise
            output.note(f"{error}; or /reset")
            return
        print_as_it_comes(reply)
        self.remember(text, reply.texts[0])
        output.note(str(reply.speed))


def _read_line() -> str | None:
    """The next line without its end; None where the input ends or Ctrl-C is pressed."""
    try:
        if sys.stdin.isatty():
            return input("> ").strip()
        line = sys.stdin.readline()
        return line.strip() if line else None
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")
        return None
