"""``llmc generate``: text from an engine."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from llmc.compiler.base.errors import UsageError
from llmc.compiler.cli.conversation import converse, print_as_it_comes
from llmc.compiler.cli.failures import INTERRUPTED
from llmc.compiler.cli.output import Output
from llmc.compiler.cli.parameters import Directory, Threads
from llmc.compiler.cli.signature import Without
from llmc.runtimes.session.sampling_params import SamplingParams

if TYPE_CHECKING:
    from rich.console import Group

    from llmc.runtimes.generation.text_engine import Reply, TextEngine


def generate(
    directory: Directory,
    *,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", "-p", metavar="TEXT", help="Prompt; - reads stdin; several make a batch.", show_default=False
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template; without -p, a conversation.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="System message of a chat.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help="New tokens at most. Default: 256, or what fits.", show_default=False),
    ] = None,
    sampling: SamplingParams,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="End the text where this comes; repeatable.", show_default=False),
    ] = None,
    threads: Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON at the end instead of text as it comes.")
    ] = False,
    shown: Annotated[Output, Without({"json"})],
) -> None:
    """Write text with an engine, as it comes; on stdout the text alone, on stderr how fast it came.

    Without --temperature it is greedy: the most likely token, every time.
    """
    shown = replace(shown, json=as_json)
    chat = chat or system is not None
    prompts = read_prompts(prompt or [], chat=chat, as_json=as_json)
    with shown.working() as progress:
        from llmc.runtimes.generation.text_engine import Conversation, TextEngine

        progress.start("Loading the engine")
        engine = TextEngine.open(directory, threads)
    with contextlib.closing(engine):
        writer = Writer(engine, sampling, tuple(stop or ()), max_tokens, shown)
        if not prompts:
            converse(Conversation(engine, writer.begin, system), shown)
        else:
            writer.write(prompts, [writer.encode(text, chat, system) for text in prompts])


class Writer:
    """Generates with one set of options and shows the result."""

    def __init__(
        self,
        engine: TextEngine,
        sampling: SamplingParams,
        stop: tuple[str, ...],
        max_tokens: int | None,
        output: Output,
    ) -> None:
        self._engine, self._sampling, self._stop = engine, sampling, stop
        self._max_tokens, self._output = max_tokens, output

    def begin(self, prompts: list[list[int]]) -> Reply:
        """Begin a generation."""
        return self._engine.reply(prompts, self._sampling, self._stop, self._max_tokens)

    def encode(self, text: str, chat: bool, system: str | None) -> list[int]:
        """Tokens of a plain prompt, or of the only turn of a chat."""
        if not chat:
            return self._engine.encode(text)
        first = [{"role": "system", "content": system}] if system else []
        return self._engine.encode_chat([*first, {"role": "user", "content": text}])

    def write(self, prompts: list[str], tokens: list[list[int]]) -> None:
        """Generate and show: one prompt as its text comes, several when all have ended, or JSON.

        Raises:
            typer.Exit: Ctrl-C ended it; what was written until then was shown.
        """
        reply = self.begin(tokens)
        if self._output.json or len(prompts) > 1:
            interrupted = _run_to_the_end(reply)
            self._output.show(lambda: _labelled(prompts, reply.texts), reply.to_json(prompts))
        else:
            interrupted = print_as_it_comes(reply)
        self._output.note(str(reply.speed))
        if interrupted:
            raise typer.Exit(INTERRUPTED)


def read_prompts(prompts: list[str], *, chat: bool, as_json: bool) -> list[str]:
    """The prompts, with stdin's text in place of ``-``.

    Raises:
        UsageError: no prompt and no chat, stdin asked for twice, or a conversation as JSON.
    """
    if not prompts and not chat:
        raise UsageError("nothing to write from; give a prompt with -p TEXT, or --chat for a conversation")
    if not prompts and as_json:
        raise UsageError("--json is for prompts; give one with -p TEXT, or leave --json away to chat")
    if prompts.count("-") > 1:
        raise UsageError("stdin can be read once; give -p - one time")
    return [sys.stdin.read() if prompt == "-" else prompt for prompt in prompts]


def _run_to_the_end(reply: Reply) -> bool:
    """Generate without showing anything; returns whether Ctrl-C ended it."""
    try:
        for _ in reply:
            pass
    except KeyboardInterrupt:
        return True
    return False


def _labelled(prompts: list[str], texts: list[str]) -> Group:
    """Each prompt, then its text."""
    from rich.console import Group
    from rich.text import Text

    parts = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), 1):
        parts += [Text(f"[{number}] {prompt}", style="bold"), Text(text), Text("")]
    return Group(*parts)
