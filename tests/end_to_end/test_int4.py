"""int4 on the real models: the text reads as English, and the next token is mostly that of float32."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmc.runtimes.bench.quality import evaluate, make_windows
from llmc.runtimes.engine import Session
from llmc.runtimes.engines import open_session
from llmc.runtimes.generation import Generator
from llmc.runtimes.text import TextTokenizer

from .conftest import BOTH, Built
from .oracle import Row, lead_session

PROMPT = "The moon pulls the sea, and so the tide"
AGREEMENT = {"smollm2-135m": 0.9, "gemma3-270m": 0.9}
"""Least share of equal predictions."""
WINDOW, WINDOWS = 501, 4
ROUNDING = 0.05
"""Activations are rounded to 8 bits, so a sum taken in another order may now and then move a logit by this much."""


@pytest.fixture
def engine(built: Built) -> Iterator[Session]:
    session = open_session(built.engine(logits="all", precision="int4"), threads=2)
    yield session
    session.close()


@pytest.mark.parametrize("built", BOTH, indirect=True)
def test_greedy_text_reads_as_english(built: Built, engine: Session) -> None:
    tokenizer = TextTokenizer.from_directory(built.portable)
    made = Generator(engine).stream([tokenizer.encode(PROMPT)], max_tokens=96, eos_ids=tokenizer.eos_ids).run()
    words = tokenizer.decode(made.tokens[0]).split()
    plain = [word for word in words if re.fullmatch(r"[\"'(]?[A-Za-z]+(['’-][A-Za-z]+)*[\"')]?[.,;:!?]*", word)]
    assert len(words) > 20
    assert len(plain) > 0.85 * len(words), words
    assert len(set(words)) > 0.25 * len(words), words


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
        print(f"\n{built.name} int4 against float32 over {WINDOWS * (WINDOW - 1)} tokens: {quality}")
    assert quality.top1.value > AGREEMENT[built.name]


@pytest.mark.parametrize("built", BOTH, indirect=True)
@pytest.mark.parametrize(("side", "chunk"), [("left", 0), ("right", 7)])
def test_padding_and_chunks_change_nothing(built: Built, engine: Session, side: str, chunk: int) -> None:
    """A ragged batch against each of its rows alone, in the same engine."""
    prompts = [built.tokens(skip)[:length] for skip, length in ((2, 41), (4, 23), (7, 57))]
    rows = [own_row(engine, prompt, steps=16) for prompt in prompts]
    assert lead_session(engine, rows, side=side, chunk=chunk).error < ROUNDING


def own_row(session: Session, prompt: list[int], steps: int) -> Row:
    made = list(Generator(session).stream([prompt], max_tokens=steps).run().tokens[0])
    session.reset(1, len(prompt) + steps)
    logits: Any = session.forward(np.array([[*prompt, *made]], np.int64)).host()[0].copy()
    return Row(prompt, made, logits)
