"""How much of its model an engine has lost, in words whose limits are fixed.

In: the mean KL divergence from the model, nats. Out: :class:`Loss`. What was measured when an artifact was made says
nothing about how good it is; these limits do. Their reasons stand in ``docs/quality.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LOGIT_ERROR, KL, TOP1 = "largest logit error", "mean KL divergence", "top-1 agreement"
"""Metrics by name, as a manifest has them."""
WINDOWS = "windows of another length"
"""How many there are, of those that the golden data's long text passes."""
ALONG_TEXT = ", long text"
"""Behind a metric's name, where it is of the golden data's long text and not of the prompts."""
CLASSES: Final = (("as the model", 0.002), ("hardly noticeable", 0.05), ("noticeable", 0.2), ("heavy", float("inf")))
"""Words, and the largest divergence that each stands for."""
_QUIET = 2
"""Classes of which nobody is warned."""


@dataclass(frozen=True, order=True)
class Loss:
    """What an engine lost; the larger divergence counts as more.

    Attributes:
        kl: Mean KL divergence of the engine from the model, nats.
        top1: Share of positions where both choose the same token first.
        graph: The graph in which it was measured.
    """

    kl: float
    top1: float
    graph: str

    @property
    def word(self) -> str:
        """Its class."""
        return next(word for word, limit in CLASSES if self.kl <= limit)

    @property
    def warns(self) -> bool:
        """Whether a user should know before the engine is used."""
        return self.word not in [word for word, _ in CLASSES[:_QUIET]]

    @property
    def sentence(self) -> str:
        """As ``heavy loss against the model: …``."""
        figures = f"mean KL divergence {self.kl:.2g}, the same first choice at {self.top1:.0%} of the positions"
        if self.word == CLASSES[0][0]:
            return f"as the model: {figures}"
        return f"{self.word} loss against the model: {figures}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"class": self.word, "mean_kl": self.kl, "top1_agreement": self.top1, "graph": self.graph}


def loss_of(measured: Mapping[str, Mapping[str, float]]) -> Loss | None:
    """The largest loss of any graph, along prompts or text.

    Args:
        measured: By graph, then by metric, as a manifest has it.

    Returns:
        None where no divergence is known.
    """
    losses = [
        Loss(metrics[KL + part], metrics.get(TOP1 + part, 0.0), graph)
        for graph, metrics in measured.items()
        for part in ("", ALONG_TEXT)
        if KL + part in metrics
    ]
    return max(losses, default=None)
