"""A row of a session's cache, and the request that has it.

In: a request that is given a row. Out: how much of it is in the cache, and its next token.
"""

from __future__ import annotations

from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.engine import FloatArray
from llmc.runtimes.session.sampling import Sampler


class Row:
    """What a batch knows of a row.

    Attributes:
        index: Its number in the session.
        request: Whose tokens the row holds; a finished one's until the row is released.
        fed: Tokens of its prompt that are in the cache.
        needs_logits: Whether its tokens are chosen, or its logits watched, on the host.
    """

    __slots__ = ("_sampler", "fed", "index", "needs_logits", "request")

    def __init__(self, index: int, request: Request, vocab_size: int) -> None:
        self.index, self.request, self.fed = index, request, 0
        self.needs_logits = bool(request.watch or request.forced) or request.sampling.needs_logits
        self._sampler = Sampler(request.sampling, vocab_size, request.id)
        self._sampler.observe(request.ids)

    @property
    def rest(self) -> int:
        """Tokens of the prompt that are not in the cache yet."""
        return len(self.request.ids) - self.fed

    def looks(self, count: int) -> bool:
        """Whether the host must see the logits after ``count`` more tokens of a row that needs logits at all."""
        return self.request.watch is not None or self.rest <= count

    def show(self, logits: FloatArray, count: int) -> None:
        """Let a watcher see the logits of ``count`` more tokens, [positions, vocab_size]."""
        if self.request.watch is not None:
            shown = logits[: min(count, len(logits))]
            position = self.fed + max(0, len(self.request.tokens) - 1)
            self.request.watch(position + count - len(shown), shown)

    def choose(self, logits: FloatArray, count: int) -> int:
        """The token after ``count`` more tokens, by their logits [positions, vocab_size]."""
        request, step = self.request, len(self.request.tokens)
        if request.forced:
            return request.forced[step]
        token = self._sampler.sample(logits[min(count, len(logits)) - 1], step)
        self._sampler.observe((token,))
        return token

    def state(self) -> RowState:
        """Where the row stands, for a device that goes on from there."""
        request, step = self.request, len(self.request.tokens)
        return RowState(request.tokens[-1], request.sampling, request.id, step, request.max_tokens - step)
