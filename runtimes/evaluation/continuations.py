"""How likely an engine finds a given continuation, and what it writes itself.

In: an artifact's directory; contexts and continuations. Out: :class:`ContinuationScorer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.engines import open_for_evaluation
from llmc.runtimes.evaluation.perplexity import log_softmax
from llmc.runtimes.evaluation.scored_rows import session_source
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.generation.text_engine import TextEngine
from llmc.runtimes.session.sampling_params import SamplingParams


@dataclass(frozen=True)
class ContinuationScorer:
    """An open engine that scores texts.

    Attributes:
        engine: The engine and its tokenizer.
        max_length: Most tokens of a text, context and continuation.
    """

    engine: TextEngine
    max_length: int

    @classmethod
    def open(cls, directory: Path, threads: int | None = None, max_length: int | None = None) -> ContinuationScorer:
        """Open an artifact so that it gives the logits of every position, where that can be done.

        Args:
            directory: Of the artifact.
            threads: Threads to compute with; None: the engine's own.
            max_length: Most tokens of a text; None, or where the engine's context is shorter: the context.

        Raises:
            LlmcError: there is no engine or no tokenizer, or the runtime refuses it.
        """
        tokenizer = TextTokenizer.from_directory(directory)
        session, _ = open_for_evaluation(directory, threads=threads)
        return cls(TextEngine(session, tokenizer), min(session.info.max_context, max_length or 1 << 30))

    def log_likelihood(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """The sum of the logarithms of a continuation's probabilities, and whether it is the greedy one.

        What is too long loses its beginning; the first token of all is never scored.

        Raises:
            UsageError: nothing to score, or nothing before it.
        """
        if not continuation or not context:
            raise UsageError("a continuation is scored after a context; both need a token at least")
        tokens = np.asarray([*context, *continuation], np.int64)[-self.max_length :]
        first = max(0, len(tokens) - 1 - len(continuation))
        following = tokens[first + 1 :]
        total, greedy = 0.0, True
        for rows in session_source(self.engine.session)(tokens[None], first):
            targets = following[rows.start : rows.start + len(rows.logits)]
            total += float(log_softmax(rows.logits)[np.arange(len(targets)), targets].sum())
            greedy = greedy and bool((rows.logits.argmax(axis=1) == targets).all())
        return total, greedy

    def write(self, prompt: str, stop: Sequence[str], max_tokens: int, sampling: SamplingParams) -> str:
        """A continuation of the engine's own, which ends before a ``stop`` string; a long prompt loses its beginning.

        Raises:
            UsageError: the prompt is empty, or no room is left for a token.
        """
        room = self.max_length - max_tokens
        if room < 1:
            raise UsageError(f"{max_tokens} new tokens leave no room for a prompt in {self.max_length}")
        reply = self.engine.reply([self.engine.encode(prompt)[-room:]], sampling, stop, max_tokens)
        for _ in reply:
            pass
        return reply.texts[0]
