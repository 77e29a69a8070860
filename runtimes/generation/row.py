"""A row of a session's cache, and the request that has it.

In: a request that is given a row. Out: how much of it is in the cache, and its next token.
"""

from __future__ import annotations

from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.engine import FloatArray
from llmc.runtimes.session.sampling import Sampler


class Row:
    """What a batch knows of a row of the session's cache.

    Attributes:
        request: Whose tokens the row holds; a finished one's until the row is released.
        sampler: Chooses its tokens on the host.
        fed: Tokens of its prompt that are in the cache.
    """

    __slots__ = ("fed", "request", "sampler")

    def __init__(self, request: Request, vocab_size: int) -> None:
        self.request, self.fed = request, 0
        self.sampler = Sampler(request.sampling, vocab_size, request.id)
        self.sampler.observe(request.ids)

    @property
    def rest(self) -> int:
        """Tokens of the prompt that are not in the cache yet."""
        return len(self.request.ids) - self.fed

    @property
    def position(self) -> int:
        """Position, in prompt and new tokens, of the next token that goes into the cache."""
        return self.fed + max(0, len(self.request.tokens) - 1)

    def choose(self, logits: FloatArray) -> int:
        """The next token, after ``logits`` [vocab_size]."""
        request, step = self.request, len(self.request.tokens)
        if request.forced:
            return request.forced[step]
        token = self.sampler.sample(logits, step)
        self.sampler.observe((token,))
        return token

    def state(self) -> RowState:
        """Where the row stands, for a device that goes on from there."""
        request, step = self.request, len(self.request.tokens)
        return RowState(request.tokens[-1], request.sampling, request.id, step, request.max_tokens - step)
