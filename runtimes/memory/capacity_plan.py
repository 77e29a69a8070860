"""Which engine runs with which length of the KV cache.

In: what a build made. Out: :class:`CapacityPlan`, which the manifest keeps: an engine's cache has one length, and a
decode step pays for all of it, so there is one engine per length (bucket) and the smallest that holds a request runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmc.compiler.base.errors import ArtifactError, UsageError


@dataclass(frozen=True)
class Bucket:
    """One engine.

    Attributes:
        capacity: Slots of its cache.
        file: Its name in the artifact.
        nbytes: Its size.
    """

    capacity: int
    file: str
    nbytes: int


@dataclass(frozen=True)
class CapacityPlan:
    """The engines of one artifact.

    Attributes:
        buckets: By capacity, ascending.
        max_batch: Most rows.
        chunk: Most tokens of a row in one run.
        max_context: Longest row.
        stripped: The engine files hold no weights; these are read from the graph.
    """

    buckets: tuple[Bucket, ...]
    max_batch: int
    chunk: int
    max_context: int
    stripped: bool = False

    def __post_init__(self) -> None:
        """Refuse (ArtifactError) a plan without buckets, with unordered ones, or with none for its longest row."""
        capacities = self.capacities
        if not capacities or list(capacities) != sorted(set(capacities)) or capacities[-1] < self.max_context:
            raise ArtifactError(f"engines for {list(capacities)} slots do not hold {self.max_context} tokens")

    @property
    def capacities(self) -> tuple[int, ...]:
        """Of the buckets."""
        return tuple(bucket.capacity for bucket in self.buckets)

    def bucket(self, capacity: int) -> Bucket:
        """The one of exactly this capacity."""
        return self.buckets[self.capacities.index(capacity)]

    def bucket_for(self, tokens: int) -> Bucket:
        """The smallest that holds a row of prompt and new tokens.

        Raises:
            UsageError: none does.
        """
        for bucket in self.buckets:
            if bucket.capacity >= tokens:
                return bucket
        raise UsageError(f"{tokens} tokens are more than this engine's longest cache of {self.capacities[-1]}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rule": "the smallest bucket that holds prompt and new tokens; a longer one takes a copy of the cache",
            "buckets": [{"capacity": b.capacity, "file": b.file, "bytes": b.nbytes} for b in self.buckets],
            "max_batch": self.max_batch,
            "chunk": self.chunk,
            "max_context": self.max_context,
            "stripped": self.stripped,
        }

    @classmethod
    def from_json(cls, value: object) -> CapacityPlan:
        """Read what :meth:`to_json` gives.

        Raises:
            ArtifactError: it is something else.
        """
        try:
            assert isinstance(value, Mapping)
            buckets = tuple(Bucket(int(b["capacity"]), str(b["file"]), int(b["bytes"])) for b in value["buckets"])
            sizes = (int(value["max_batch"]), int(value["chunk"]), int(value["max_context"]))
            return cls(buckets, *sizes, stripped=bool(value["stripped"]))
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the engine's plan is damaged ({error!r}); build it again") from error
