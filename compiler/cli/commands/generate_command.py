"""``llmc generate``: text from an engine."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option
from llmc.compiler.cli.conversation import converse, follow
from llmc.compiler.cli.failures import INTERRUPTED
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Directory, Threads
from llmc.compiler.cli.streams import argument_text, read_stdin
from llmc.runtimes.session.sampling_params import SamplingParams

if TYPE_CHECKING:
    from rich.console import Group

    from llmc.runtimes.generation.chat import Message
    from llmc.runtimes.generation.text_engine import Reply, TextEngine


@dataclass(frozen=True)
class Question:
    """What is to be written."""

    prompt: tuple[str, ...] = option(
        (), "Prompt; - reads stdin; several make a batch.", "--prompt", "-p", metavar="TEXT"
    )
    chat: bool = option(False, "Use the chat template; without -p, a conversation.")
    system: str | None = option(None, "System message of a chat.", metavar="TEXT")
    max_tokens: int | None = option(None, "New tokens at most. Default: 256, or what fits.")
    stop: tuple[str, ...] = option((), "End the text where this comes; repeatable.", metavar="TEXT")
    chat_template: str | None = option(
        None, "Which of the model's chat templates. Default: the one named default.", metavar="NAME"
    )
    parse_special: bool = option(
        False, "Take special tokens that a prompt spells out for what they stand for; else they are text."
    )
    json: bool = option(False, "Print JSON at the end instead of text as it comes.")

    def prompts(self) -> list[str]:
        """The prompts, with stdin's text in place of ``-``; none: a conversation.

        Raises:
            UsageError: no prompt and no chat, stdin asked for twice or no text, or a conversation as JSON.
        """
        if not self.prompt and not self.chat and self.system is None:
            raise UsageError("nothing to write from; give a prompt with -p TEXT, or --chat for a conversation")
        if not self.prompt and self.json:
            raise UsageError("--json is for prompts; give one with -p TEXT, or leave --json away to chat")
        if self.prompt.count("-") > 1:
            raise UsageError("stdin can be read once; give -p - one time")
        return [read_stdin() if prompt == "-" else argument_text(prompt, "-p") for prompt in self.prompt]

    def decoded(self) -> Question:
        """With its other texts decoded.

        Raises:
            UsageError: one is no text.
        """
        system = None if self.system is None else argument_text(self.system, "--system")
        return replace(self, system=system, stop=tuple(argument_text(stop, "--stop") for stop in self.stop))


def generate(
    directory: Directory,
    *,
    asked: Question,
    sampling: SamplingParams,
    threads: Threads = None,
    shown: Output,
) -> None:
    """Write text with an engine, as it comes; on stdout the text alone, on stderr how fast it came.

    Without --temperature it is greedy: the most likely token, every time.
    """
    prompts, asked = asked.prompts(), asked.decoded()
    with shown.working() as progress:
        from llmc.runtimes.generation.text_engine import Conversation, TextEngine

        progress.start("Loading the engine")
        engine = TextEngine.open(directory, threads)
    with contextlib.closing(engine):
        writer = Writer(engine, asked, sampling, shown)
        if not prompts:
            converse(Conversation(engine, writer.begin, asked.system, encode=writer.encode_chat), shown)
        else:
            writer.write(prompts)


@dataclass(frozen=True)
class Writer:
    """Generates as it was asked for and shows the result."""

    engine: TextEngine
    asked: Question
    sampling: SamplingParams
    output: Output

    def begin(self, prompts: list[list[int]]) -> Reply:
        """Begin a generation."""
        return self.engine.reply(prompts, self.sampling, self.asked.stop, self.asked.max_tokens)

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain prompt, or of the only turn of a chat."""
        if not self.asked.chat and self.asked.system is None:
            return self._encode_plain(text)
        first = [{"role": "system", "content": self.asked.system}] if self.asked.system else []
        return self.encode_chat([*first, {"role": "user", "content": text}])

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Tokens of a chat."""
        return self.engine.encode_chat(
            messages, parse_special=self.asked.parse_special, template=self.asked.chat_template
        )

    def _encode_plain(self, text: str) -> list[int]:
        """Tokens of a plain prompt; says where it may have been meant as a chat that is written out."""
        if not self.asked.parse_special and (spelled := self.engine.tokenizer.special_within(text)):
            self.output.note(f"{', '.join(spelled)} in the prompt is text; --parse-special makes tokens of it")
        return self.engine.encode(text, parse_special=self.asked.parse_special)

    def write(self, prompts: list[str]) -> None:
        """Generate and show: one prompt as its text comes, several when all have ended, or JSON.

        Raises:
            typer.Exit: Ctrl-C ended it; what was written until then was shown.
        """
        reply = self.begin([self.encode(text) for text in prompts])
        if self.output.json or len(prompts) > 1:
            interrupted = follow(reply, show=False)
            self.output.show(lambda: _labelled(prompts, reply.texts), reply.to_json(prompts))
        else:
            interrupted = follow(reply)
        self.output.note(str(reply.speed))
        if interrupted:
            raise typer.Exit(INTERRUPTED)


def _labelled(prompts: list[str], texts: list[str]) -> Group:
    """Each prompt, then its text."""
    from rich.console import Group
    from rich.text import Text

    parts = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), 1):
        parts += [Text(f"[{number}] {prompt}", style="bold"), Text(text), Text("")]
    return Group(*parts)
