"""What a request asks of the choice of its tokens: temperature, filters, penalty and seed, checked when made."""

from __future__ import annotations

from dataclasses import dataclass

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option

_SEED_LIMIT = 2**64
_LARGEST = 1e6
"""Of what logits are divided by or multiplied with; beyond it and below its inverse float32 ends."""


@dataclass(frozen=True)
class SamplingParams:
    """How a token is chosen; the default is greedy.

    Attributes:
        temperature: 0 is greedy: the most likely token (after the penalty), with no filter and no draw.
        top_k: Keep the k most likely tokens, and those as likely as the k-th; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens whose probability reaches top_p; 1 keeps all.
        min_p: Keep tokens at least min_p times as likely as the most likely one; 0 keeps all.
        repetition_penalty: Positive logits of tokens in the prompt or the text so far are divided by it, negative
            ones multiplied (Keskar et al., "CTRL", 2019); 1 changes nothing.
        seed: 64-bit seed of the draws.

    Raises:
        UsageError: a value lies outside its range.
    """

    temperature: float = option(0.0, "0 is greedy; higher is more random.")
    top_k: int = option(0, "Keep the k most likely tokens; 0 keeps all.")
    top_p: float = option(1.0, "Keep the likeliest tokens up to this probability.")
    min_p: float = option(0.0, "Keep tokens this likely relative to the likeliest.")
    repetition_penalty: float = option(1.0, "Above 1 makes what was said less likely.")
    seed: int = option(0, "Of the random draws; the same seed gives the same text.")

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 1 / _LARGEST <= self.temperature <= _LARGEST:
            raise UsageError(
                f"temperature is {self.temperature}: it must be 0 (greedy) or positive, for example 0.7, and from "
                f"{1 / _LARGEST:g} to {_LARGEST:g}"
            )
        if self.top_k < 0:
            raise UsageError(f"top-k is {self.top_k}: it must be 0 (keep all) or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is {self.top_p}: it must be above 0 and at most 1 (keep all)")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p is {self.min_p}: it must lie between 0 (keep all) and 1")
        if not 1 / _LARGEST <= self.repetition_penalty <= _LARGEST:
            raise UsageError(
                f"the repetition penalty is {self.repetition_penalty}: it must be positive, from {1 / _LARGEST:g} to "
                f"{_LARGEST:g}; 1 changes nothing"
            )
        if not 0 <= self.seed < _SEED_LIMIT:
            raise UsageError(f"the seed is {self.seed}: it must be at least 0 and below 2^64")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0

    @property
    def needs_logits(self) -> bool:
        """Whether choosing needs the logits in host memory; without it an argmax on the device does."""
        return not self.greedy or self.repetition_penalty != 1
