"""What Python programs call: ``compile`` a model, ``open`` an engine, ``generate`` text.

In: a model's name and options, or an engine's directory and a prompt. Out: an engine's directory and a report; text;
logits. :mod:`llmc` gives these names; nothing large is imported before a call needs it. Every error is an
:class:`~llmc.compiler.base.errors.LlmcError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from llmc.compiler.artifact.reports import CompileReport
from llmc.compiler.base.options import CompileOptions
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.runtimes.session.sampling_params import SamplingParams

if TYPE_CHECKING:
    from llmc.runtimes.generation.chat import Message
    from llmc.runtimes.generation.text_engine import TextEngine
    from llmc.runtimes.session.engine import EngineInfo, FloatArray

Prompt: TypeAlias = "str | Sequence[Message] | Sequence[int]"
"""A text, a chat's messages (``{"role": "user", "content": "…"}``), or token ids."""
GREEDY = SamplingParams()


def compile(
    model: str | PathLike[str],
    output: str | PathLike[str],
    options: CompileOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> CompileReport:
    """Make an engine of a checkpoint, as ``llmc compile`` does.

    Args:
        model: Hugging Face directory, hub id, ``.gguf`` file, or built-in name.
        output: Directory to make; it appears whole or not at all.
        options: What to make; None: a float32 engine for the CPU.
        overwrite: Replace an artifact that is there, once the new one is complete.
        progress: Told how far it is.

    Returns:
        What each pass did, and how the engine compares with the model: ``report.verification.loss``.

    Raises:
        LlmcError: the model cannot be read or captured, the target's runtime is missing or refuses it, or ``output``
            cannot be written.
    """
    from llmc.compiler.driver import driver

    return driver.compile_model(
        str(model), Path(output), options or CompileOptions(), overwrite=overwrite, progress=progress
    )


class Engine:
    """An open engine with its tokenizer, made by :func:`open`; a context manager that frees it.

    It has one KV cache: a new text, or logits, end the text before.
    """

    def __init__(self, text_engine: TextEngine) -> None:
        """Speak through ``text_engine``, which is closed with this."""
        self._text_engine = text_engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engine's memory; it cannot be used afterwards."""
        self._text_engine.close()

    @property
    def info(self) -> EngineInfo:
        """The runtime, the longest context in tokens, the width of the logits, bytes of weights and cache."""
        return self._text_engine.session.info

    def tokens(self, prompt: Prompt) -> list[int]:
        """Token ids of a text, or of a chat by the model's template; token ids stay what they are.

        Raises:
            UsageError: the model has no chat template, or the template refuses the messages.
        """
        if isinstance(prompt, str):
            return self._text_engine.encode(prompt)
        if any(isinstance(item, Mapping) for item in prompt):
            return self._text_engine.encode_chat(cast("Sequence[Message]", prompt))
        return list(cast(Sequence[int], prompt))

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingParams = GREEDY,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Go on from a prompt: pieces of text as they come.

        Args:
            prompt: A text, a chat's messages, or token ids.
            sampling: How tokens are chosen.
            max_tokens: New tokens at most; None: 256, or what the context leaves.
            stop: Strings that end the text; they are not part of it.

        Raises:
            UsageError: the prompt is empty or fills the context, or :meth:`tokens` refuses it.
            EngineError: the runtime failed, or a newer generation has begun.
        """
        reply = self._text_engine.reply([self.tokens(prompt)], sampling, stop, max_tokens)
        return (pieces[0] for pieces in reply if pieces[0])

    def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams = GREEDY,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """The whole text of :meth:`stream`, which has the arguments and errors."""
        return "".join(self.stream(prompt, sampling, max_tokens=max_tokens, stop=stop))

    def logits(self, prompt: Prompt) -> FloatArray:
        """What the model says of the next token, float32 [1, vocabulary].

        An engine that was compiled with ``logits="all"`` has a row for every token of the prompt.

        Args:
            prompt: A text, a chat's messages, or token ids.

        Raises:
            UsageError: the prompt is empty, exceeds the context, or holds what is no token.
            EngineError: the runtime failed.
        """
        return self._text_engine.logits(self.tokens(prompt))


def open(directory: str | PathLike[str], *, threads: int | None = None) -> Engine:
    """Open an engine, with the runtime that it was made for.

    Args:
        directory: What :func:`compile` or ``llmc compile`` made.
        threads: Threads to compute with; None: what the engine was built for, else one per physical core.

    Raises:
        LlmcError: the directory is no artifact or is damaged, or the runtime is missing or refuses it.
    """
    from llmc.runtimes.generation.text_engine import TextEngine

    return Engine(TextEngine.open(Path(directory), threads))


def generate(
    directory: str | PathLike[str],
    prompt: Prompt,
    sampling: SamplingParams = GREEDY,
    *,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    threads: int | None = None,
) -> str:
    """Text of an engine that is opened for it alone; see :func:`open` and :meth:`Engine.stream`."""
    with open(directory, threads=threads) as engine:
        return engine.generate(prompt, sampling, max_tokens=max_tokens, stop=stop)
