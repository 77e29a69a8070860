"""One shape of work: how many tokens of prompt, how many generated, in how many rows.

In: three numbers. Out: :class:`BenchCase`, which has a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmc.compiler.base.errors import UsageError


@dataclass(frozen=True, order=True)
class BenchCase:
    """One shape of work: ``batch`` rows, each with ``prompt`` tokens of prompt, that generate ``gen`` tokens each."""

    DERIVED: ClassVar[tuple[str, ...]] = ("name",)
    prompt: int
    gen: int
    batch: int = 1

    def __post_init__(self) -> None:
        if self.prompt < 1 or self.batch < 1 or self.gen < 2:
            raise UsageError(
                f"case {self.name}: prompt and batch must be at least 1, gen at least 2 (TPOT needs a gap)"
            )

    @property
    def name(self) -> str:
        """As ``pp128+tg64`` or ``pp128+tg64 x4``."""
        rows = f" x{self.batch}" if self.batch != 1 else ""
        return f"pp{self.prompt}+tg{self.gen}{rows}"
