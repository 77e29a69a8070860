"""What the metadata of a GGUF file say of its architecture, each value of the type that it must have.

In: a :class:`GgufHeader`. Out: numbers and strings under the names that llama.cpp has for them, without the
architecture in front: ``rope.freq_base``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.gguf_header import GgufHeader


@dataclass(frozen=True)
class GgufKeys:
    """The keys of a file's architecture.

    Every reader takes the name of a key and what it stands for where the file does not state it, and raises
    CheckpointError where the file states something of another type.
    """

    header: GgufHeader

    def names(self) -> tuple[str, ...]:
        """All that the file states, without the architecture."""
        prefix = f"{self.header.architecture}."
        return tuple(key.removeprefix(prefix) for key in self.header.metadata if key.startswith(prefix))

    def value(self, name: str) -> Any:
        """What is stated, None where nothing is."""
        return self.header.metadata.get(f"{self.header.architecture}.{name}")

    def real(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.value(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, "a number")
        return float(value)

    def count(self, name: str, default: int) -> int:
        """A whole number, not negative; of a list (one for each layer) the number that all of it is."""
        value = self.value(name)
        if value is None:
            return default
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(name, "one whole number")
        return value

    def text(self, name: str, default: str) -> str:
        """A string."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def _wrong(self, name: str, expected: str) -> CheckpointError:
        shown = repr(self.value(name))
        return CheckpointError(
            f"{self.header.path} states {self.header.architecture}.{name} = {shown[:60]}, where {expected} belongs; "
            "convert the model to GGUF again."
        )
