"""What was lost, in words with fixed limits."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from llmc.compiler.artifact.loss import CLASSES, Loss, loss_of

PAGE = Path(__file__).parents[3] / "docs" / "quality.md"


@pytest.mark.parametrize(
    ("kl", "word", "warns"),
    [
        (0.0, "as the model", False),
        (0.002, "as the model", False),
        (0.0021, "hardly noticeable", False),
        (0.05, "hardly noticeable", False),
        (0.051, "noticeable", True),
        (0.2, "noticeable", True),
        (0.201, "heavy", True),
        (1e30, "heavy", True),
    ],
)
def test_words_have_fixed_limits(kl: float, word: str, warns: bool) -> None:
    loss = Loss(kl, 0.9, "model.onnx")
    assert (loss.word, loss.warns, loss.to_json()["class"]) == (word, warns, word)


def test_the_page_has_the_same_limits() -> None:
    """A row for each word: the divergence up to which it stands, the rise of the perplexity that this is."""
    rows = re.findall(
        r"^\| ([a-z ]+?) \| (?:up to )?([\d.]+|more) \| (?:up to )?([\d.]+) % ?", PAGE.read_text(), re.M
    )
    written = {word: (math.inf if limit == "more" else float(limit)) for word, limit, _ in rows}
    assert written == dict(CLASSES)
    for word, limit, percent in rows[:-1]:
        assert float(percent) == pytest.approx(100 * math.expm1(float(limit)), rel=0.05), word


def test_sentences() -> None:
    assert Loss(0.746, 0.563, "engine.onnx").sentence == (
        "heavy loss against the model: mean KL divergence 0.75, the same first choice at 56% of the positions"
    )
    assert Loss(1e-6, 1.0, "engine.onnx").sentence == (
        "as the model: mean KL divergence 1e-06, the same first choice at 100% of the positions"
    )


def test_the_largest_divergence_of_any_graph_counts_with_its_own_agreement() -> None:
    measured = {
        "engine.onnx": {"mean KL divergence": 0.1, "top-1 agreement": 0.5, "largest logit error": 9.0},
        "model.onnx": {
            "mean KL divergence": 0.05,
            "top-1 agreement": 0.4,
            "mean KL divergence, long text": 0.3,
            "top-1 agreement, long text": 0.7,
        },
    }
    assert loss_of(measured) == Loss(0.3, 0.7, "model.onnx")
    del measured["model.onnx"]
    assert loss_of(measured) == Loss(0.1, 0.5, "engine.onnx")


def test_nothing_is_known_of_what_was_not_measured() -> None:
    assert loss_of({}) is None
    assert loss_of({"model.onnx": {"largest logit error": 0.5}}) is None
