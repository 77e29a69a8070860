"""What engines of TensorRT are built for.

In: options of a build and the graph's context. Out: :class:`BuildOptions`, with the lengths of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmc.compiler.base.options import DEFAULT_CONTEXT, EngineOptions

SHORTEST, FACTOR = 1024, 8
"""The first bucket by default, and how much longer the next one is."""


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes:
        engine: What was asked for.
        context: Longest row that the graph computes; None: :data:`~llmc.compiler.base.options.DEFAULT_CONTEXT`.
        precision: Type of weights that was asked for, with which the engine is compared; None: it is not.
    """

    engine: EngineOptions = field(default_factory=EngineOptions)
    context: int | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        """Refuse a cache that is longer than the graph's context.

        Raises:
            UsageError: it is.
        """
        self.engine.require_context(self.context)

    @property
    def capacities(self) -> tuple[int, ...]:
        """Lengths of the cache, ascending."""
        if self.engine.capacities:
            return tuple(sorted(set(self.engine.capacities)))
        context = self.context or DEFAULT_CONTEXT
        sizes = [context]
        size = SHORTEST
        while size < context:
            sizes.append(size)
            size *= FACTOR
        return tuple(sorted(sizes))
