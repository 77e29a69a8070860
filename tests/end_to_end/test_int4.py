"""int4 on the real models: the text reads as English, and the next token is mostly that of float32."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest

from llmc.runtimes.engines import open_session
from llmc.runtimes.evaluation.quality import evaluate, make_windows
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.session.engine import Session
from llmc.runtimes.session.padding import pad_prompts

from ..generation import generate
from .conftest import BOTH, Built
from .oracle import Array

PROMPT = "Photosynthesis is the process by which"
AGREEMENT = {"smollm2-135m": 0.91, "gemma3-270m": 0.6}
"""Least share of equal predictions."""
WINDOW, WINDOWS = 501, 4
ROUNDING = 0.01
"""Mean KL, in nats: activations are rounded to 8 bits, so sums taken in another order move some by a whole step."""


@pytest.fixture
def engine(built: Built) -> Iterator[Session]:
    session = open_session(built.engine(logits="all", precision="int4"), threads=2)
    yield session
    session.close()


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_greedy_text_reads_as_english(built: Built, engine: Session) -> None:
    tokenizer = TextTokenizer.from_directory(built.portable)
    made = generate(engine, [tokenizer.encode(PROMPT)], max_tokens=96, eos_ids=tokenizer.eos_ids)
    words = tokenizer.decode(made.tokens[0]).split()
    plain = [word for word in words if re.fullmatch(r"[\"'(]?[A-Za-z]+(['’-][A-Za-z]+)*[\"')]?[.,;:!?]*", word)]
    assert len(words) > 20
    assert len(plain) > 0.85 * len(words), words
    assert len(set(words)) > 10, words


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_top1_agreement_with_float32_over_2000_tokens(
    built: Built, engine: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    windows = make_windows(built.tokens(), WINDOW, limit=WINDOWS)
    exact = open_session(built.target(logits="all"), threads=2)
    try:
        quality = evaluate(exact, engine, windows, first=0)
    finally:
        exact.close()
    assert len(windows) * (WINDOW - 1) >= 2000
    with capsys.disabled():
        print(
            f"\n{built.name}: int4 predicts the token of float32 at {quality.top1_agreement.value:.1%} of "
            f"{quality.positions} positions; mean KL {quality.mean_kl.value:.4f}"
        )
    assert quality.top1_agreement.value > AGREEMENT[built.name]


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_a_row_does_not_know_of_the_others(built: Built, engine: Session) -> None:
    """A ragged batch, whole and in chunks and token by token, against each of its rows alone in the same engine."""
    rows = [built.tokens(skip)[:length] for skip, length in ((2, 41), (4, 23), (7, 57))]
    alone = [whole(engine, row) for row in rows]
    for chunk, bound in ((57, 1e-9), (7, ROUNDING), (1, ROUNDING)):
        divergences = np.concatenate([kl(*pair) for pair in zip(alone, in_chunks(engine, rows, chunk), strict=True)])
        assert float(divergences.mean()) < bound, chunk


def whole(session: Session, row: list[int]) -> Array:
    session.reset(1, len(row))
    return session.forward(np.array([row], np.int64)).host()[0].astype(np.float64)


def in_chunks(session: Session, rows: list[list[int]], chunk: int) -> list[Array]:
    ids, lengths = pad_prompts(rows)
    session.reset(len(rows), ids.shape[1])
    parts: list[list[Array]] = [[] for _ in rows]
    for start in range(0, ids.shape[1], chunk):
        counts = np.clip(lengths - start, 0, min(chunk, ids.shape[1] - start))
        logits = session.forward(np.ascontiguousarray(ids[:, start : start + chunk]), counts).host()
        for index, count in enumerate(counts):
            parts[index].append(logits[index, :count].astype(np.float64))
    return [np.concatenate(part) for part in parts]


def kl(reference: Array, other: Array) -> Array:
    """KL divergence at each position, nats; both [positions, vocab_size]."""
    left, right = (x - x.max(axis=1, keepdims=True) for x in (reference, other))
    left, right = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (left, right))
    return (np.exp(left) * (left - right)).sum(axis=1)
